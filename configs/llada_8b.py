"""LLaDA-8B from scratch on a TPU pod slice of 256 chips (v5e or v6e, 16 x 16): the recipe of arXiv 2502.09992.

2.3 T tokens in rows of 4096. Give your own text with --config.data.source and the published tokenizer.json with
--config.data.tokenizer. On 512 v5p or v4 chips: --config.train.mesh=replica:8,fsdp:64. One flat fsdp axis over a whole
slice makes the TPU compiler sum unsharded gradients; the two axes do not.

tfds:c4/en must be prepared first, which needs TensorFlow and Beam: tfds build c4/en --file_format=array_record
--data_dir=PREPARED, then --config.data.data_dir=PREPARED here.

The paper cuts one row in a hundred to a random length: --config.data.random_length=0.01. Its learning rate drops twice
(to 1e-4 after 1.2 T tokens, to 1e-5 for the last 0.3 T), which was decided on the way and is not here.
"""

from mdlm_jax.config import default_config
from mdlm_jax.models import presets


def get_config():
    config = default_config()
    config.model.update(presets.fields("llada-8b"))
    config.model.dtype = "bfloat16"
    config.model.remat = "full"
    config.model.backend = "splash"
    config.process.eps = 1e-3
    config.data.source = "tfds:c4/en"
    config.data.tokenizer = "LLaDA-8B-Base/tokenizer.json"
    config.data.length = 4096
    config.train.steps = 438_690  # 2.3e12 / (1280 * 4096)
    config.train.batch_size = 1280
    config.train.microbatches = 5
    config.train.learning_rate = 4e-4
    config.train.warmup_steps = 2000
    config.train.lr_schedule = "constant"
    config.train.b2 = 0.95
    config.train.weight_decay = 0.1
    config.train.ema_decay = 0.0
    config.train.checkpoint_every = 1000
    config.train.mesh = "replica:16,fsdp:16"
    config.eval.every = 5000
    return config
