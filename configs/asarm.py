"""A few minutes on two CPU cores: an any-subset model (AS-ARM, arXiv 2504.20456), decoded by ``assd``.

    python -m launch.train --config=asarm --workdir=runs/asarm
    python -m launch.sample --checkpoint=runs/asarm --decoder=assd --drafts=5

Each row shows a random prompt of 1 to 10 % of its tokens, wherever they stand, and all others are learnt from left to
right in one forward. ``--config.train.objective=any_order`` learns all orders in place of these. The paper fine-tunes
XLNet (110 M) at 1e-5 with rows of 512 tokens, and grows the masked share from 15 %: a first run of
``--config.train.objective=any_subset:0.5,0.85``, from which the next begins with train.init_from.
"""

from mdlm_jax.config import default_config


def get_config():
    config = default_config()
    config.model.layers = 3
    config.model.d_model = 128
    config.model.heads = 4
    config.model.attention = "permutation"
    config.data.source = "language:hmm"
    config.data.length = 64
    config.train.objective = "any_subset:0.01,0.1"
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
    config.sample.num = 4
    return config
