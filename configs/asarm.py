"""A few minutes on two CPU cores: an any-subset model (AS-ARM, arXiv 2504.20456), decoded by ``assd``.

    python -m launch.train --config=asarm --workdir=runs/asarm
    python -m launch.sample --checkpoint=runs/asarm --decoder=assd --drafts=5

Each row shows a random prompt of 1 to 10 % of its tokens, wherever they stand, and all others are learnt from left to
right in one forward. ``--config.train.objective=any_order`` learns all orders in place of these. The paper fine-tunes
XLNet (110 M) at 1e-5 with rows of 512 tokens, and grows the masked share from 15 %: a first run of
``--config.train.objective=any_subset:0.5,0.85``, from which the next begins with train.init_from.
"""

from mdlm_jax.config import recipe


def get_config():
    config = recipe("oracle")
    config.model.attention = "permutation"
    config.train.objective = "any_subset:0.01,0.1"
    return config
