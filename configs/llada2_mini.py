"""LLaDA2.0-mini (16B, 1.4B of them active, arXiv 2512.15745): the network, to be planned for, loaded or continued.

`python -m launch.plan --config=llada2_mini --topology=v5e:16x16 --search --config.train.batch_size=512` says how it
could be trained. Give text, the published tokenizer.json and a learning rate of your own: the report starts from an
autoregressive checkpoint, and its recipe is not repeated here.
"""

from mdlm_jax.config import default_config
from mdlm_jax.models import presets


def get_config():
    config = default_config()
    config.model.update(presets.fields("llada2-mini"))
    config.model.dtype = "bfloat16"
    config.model.remat = "full"
    config.model.backend = "splash"
    config.data.tokenizer = "LLaDA2.0-mini/tokenizer.json"
    config.data.length = 4096
    config.train.ema_decay = 0.0
    return config
