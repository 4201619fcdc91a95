"""LLaDA2.0-flash (100B, 6B of them active, arXiv 2512.15745): the network, to be planned for, loaded or continued.

`python -m launch.plan --config=llada2_flash --topology=v5p:2x2x2 --step=decode --rows=64 --config.model.backend=xla`
compiles a decoding step of one block. To train, give text, the published tokenizer.json and a learning rate of your
own: the report starts from an autoregressive checkpoint, and its recipe is not repeated here.
"""

from mdlm_jax.config import default_config
from mdlm_jax.models import presets


def get_config():
    config = default_config()
    config.model.update(presets.fields("llada2-flash"))
    config.model.dtype = "bfloat16"
    config.model.remat = "full"
    config.model.backend = "splash"
    config.data.tokenizer = "LLaDA2.0-flash/tokenizer.json"
    config.data.length = 4096
    config.train.ema_decay = 0.0
    return config
