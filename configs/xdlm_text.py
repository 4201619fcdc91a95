"""Five minutes on a CPU core: XDLM on real text, the bytes of the Python standard library's source."""

from mdlm_jax.config import recipe


def get_config():
    config = recipe("xdlm_oracle")
    config.data.source = "stdlib"
    config.data.length = 128
    config.train.steps = 2000
    config.train.batch_size = 16
    config.train.checkpoint_every = 2000
    config.eval.every = 500
    return config
