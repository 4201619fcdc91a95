"""Ten minutes on two CPU cores: the causal twin of the quickstart, next-token prediction on the same text.

Its held-out figure is the exact log-likelihood, beside the quickstart's bound.
"""

from mdlm_jax.config import recipe


def get_config():
    config = recipe("quickstart")
    config.model.attention = "causal"
    config.model.logit_shift = True
    config.train.objective = "autoregressive"
    config.eval.draws = 4
    return config
