"""A hundred steps that turn a masked run into XDLM: --config.train.init_from=DIR and its --config.data.source.

LLaDA-XDLM's loss (arXiv 2602.01362): a mixing of 0.1 with alpha = 1 - t, levels drawn apart, every position noised and
counted. By default the run that is adapted is one of configs/oracle.py on language:copy.
"""

from mdlm_jax.config import default_config


def get_config():
    config = default_config()
    config.process.mixing = 0.1
    config.process.eps = 0.0
    config.data.source = "language:copy"
    config.data.length = 64
    config.train.time_sampling = "iid"
    config.train.steps = 100
    config.train.batch_size = 32
    config.train.learning_rate = 3e-4
    config.train.warmup_steps = 10
    config.train.lr_schedule = "constant"
    config.train.weight_decay = 0.1
    config.train.ema_decay = 0.0
    config.train.checkpoint_every = 100
    config.eval.every = 50
    return config
