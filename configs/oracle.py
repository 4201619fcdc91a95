"""A few minutes on two CPU cores: an oracle language, whose exact log-probability is known.

``--config.data.source=language:copy`` takes another one. ``language:drift`` is a stream whose law moves with time: rows
are trained on in the order of time, and the last twentieth of the stream is held out. ``language:drift:rows=84210``
makes the 2500 steps of 32 rows one pass over the rest.
"""

from mdlm_jax.config import default_config


def get_config():
    config = default_config()
    config.model.layers = 3
    config.model.d_model = 128
    config.model.heads = 4
    config.data.source = "language:hmm"
    config.data.length = 64
    config.train.steps = 2500
    config.train.batch_size = 32
    config.train.learning_rate = 2e-3
    config.train.warmup_steps = 100
    config.train.b2 = 0.98
    config.train.ema_decay = 0.995
    config.train.checkpoint_every = 500
    config.eval.every = 250
    config.eval.rows = 128
    config.eval.final_rows = 2048
    config.eval.draws = 4
    return config
