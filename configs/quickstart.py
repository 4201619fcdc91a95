"""Ten minutes on two CPU cores: a masked diffusion model of the Python standard library's own text, byte by byte."""

from mdlm_jax.config import default_config


def get_config():
    config = default_config()
    config.model.layers = 4
    config.model.d_model = 192
    config.model.heads = 4
    config.data.source = "stdlib"
    config.data.tokenizer = "byte"
    config.data.length = 256
    config.train.steps = 1500
    config.train.batch_size = 16
    config.train.learning_rate = 1e-3
    config.train.warmup_steps = 100
    config.train.ema_decay = 0.995
    config.train.checkpoint_every = 500
    config.eval.every = 500
    config.sample.num = 4
    config.sample.steps = 64
    return config
