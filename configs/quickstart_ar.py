"""Ten minutes on two CPU cores: the causal twin of the quickstart, next-token prediction on the same text.

Its held-out figure is the exact log-likelihood, beside the quickstart's bound.
"""

from mdlm_jax.config import default_config


def get_config():
    config = default_config()
    config.model.layers = 4
    config.model.d_model = 192
    config.model.heads = 3
    config.model.attention = "causal"
    config.model.logit_shift = True
    config.data.source = "stdlib"
    config.data.tokenizer = "bpe:2048"
    config.data.length = 128
    config.train.objective = "autoregressive"
    config.train.steps = 2000
    config.train.batch_size = 16
    config.train.learning_rate = 2e-3
    config.train.warmup_steps = 100
    config.train.b2 = 0.98
    config.train.weight_decay = 0.02
    config.train.ema_decay = 0.995
    config.train.checkpoint_every = 500
    config.eval.every = 250
    config.eval.rows = 128
    config.eval.final_rows = 2000
    config.sample.num = 4
    return config
