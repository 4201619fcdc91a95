"""SMDM's 1028M network (1.1B with the tables) from scratch: the long run of arXiv 2410.18514, 3.3e21 FLOPs by 6 N D.

1024 rows of 2048 a step. Give your own text with --config.data.source and Llama 2's tokenizer.json with
--config.data.tokenizer; the paper trained on SlimPajama. The mask is id 32000, a row of the table without a column.

Three things differ from the released script: the learning rate is the paper's 4e-4 (the script has 2e-4), weight decay
spares norms and biases, and the noise levels of two rows are antithetic (--config.train.time_sampling=iid draws
them apart, as the paper does, at the price of a head twice as large).
"""

from mdlm_jax.config import default_config
from mdlm_jax.models import presets


def get_config():
    config = default_config()
    config.model.update(presets.fields("smdm-1028m"))
    config.model.dtype = "bfloat16"
    config.model.remat = "full"
    config.model.backend = "splash"
    config.process.eps = 1e-3
    config.data.source = "tfds:c4/en"
    config.data.tokenizer = "Llama-2-7b/tokenizer.json"
    config.data.length = 2048
    config.train.steps = 255_197  # 3.3e21 / (6 * 1_027_677_952 * 1024 * 2048)
    config.train.batch_size = 1024
    config.train.learning_rate = 4e-4
    config.train.warmup_steps = 2551  # a hundredth of the steps
    config.train.lr_schedule = "cosine"
    config.train.b2 = 0.95
    config.train.weight_decay = 0.1
    config.train.ema_decay = 0.0
    config.train.checkpoint_every = 1000
    config.train.mesh = "replica:16,fsdp:16"
    config.eval.every = 5000
    return config
