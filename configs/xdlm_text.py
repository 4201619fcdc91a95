"""Five minutes on a CPU core: XDLM on real text, the bytes of the Python standard library's source."""

from mdlm_jax.config import default_config


def get_config():
    config = default_config()
    config.process.mixing = 0.1
    config.model.layers = 2
    config.model.d_model = 128
    config.model.heads = 4
    config.data.source = "stdlib"
    config.data.length = 128
    config.train.steps = 2000
    config.train.batch_size = 16
    config.train.learning_rate = 2e-3
    config.train.warmup_steps = 100
    config.train.b2 = 0.98
    config.train.ema_decay = 0.995
    config.train.checkpoint_every = 2000
    config.train.keep_checkpoints = 1
    config.eval.every = 500
    config.eval.rows = 64
    config.eval.final_rows = 512
    config.sample.steps = 32
    return config
