"""What short runs on a CPU share that go on from a network of ours, runs/hmm, or train something beside it."""

from mdlm_jax.config import default_config


def get_config():
    config = default_config()
    config.data.source = "language:hmm"
    config.data.length = 64
    config.train.init_from = "runs/hmm"
    config.train.steps = 2000
    config.train.batch_size = 32
    config.train.learning_rate = 1e-3
    config.train.warmup_steps = 100
    config.train.lr_schedule = "constant"
    config.train.ema_decay = 0.995
    config.train.checkpoint_every = 1000
    config.train.keep_checkpoints = 1
    config.eval.every = 500
    config.eval.rows = 64
    config.eval.final_rows = 512
    config.eval.draws = 8
    config.sample.num = 4
    return config
