"""DMax (arXiv 2604.08302) on a CPU: a network of ours learns to correct its own predictions, from its own rows.

    python -m launch.trajectories --checkpoint=runs/hmm --output=trajectories/hmm
    python -m launch.train --config=dmax --config.train.init_from=runs/hmm --workdir=runs/hmm_dmax \\
        --config.data.source=trajectories:trajectories/hmm --config.data.length=64

Three quarters of a row are masked, as in the paper, which trains all weights of LLaDA2.0-mini at 2e-6 for two epochs of
its own answers. Decode with ``soft_parallel``, block after block; block-causal networks are trained in their blocks.
"""

from mdlm_jax.config import recipe


def get_config():
    config = recipe("_onward")
    config.data.source = "trajectories:trajectories/hmm"
    config.data.valid_fraction = 0.02
    config.train.objective = "dmax:1,1,0"
    config.train.level_law = "fixed:0.75"
    config.train.weighting = "constant"
    config.train.steps = 1000
    config.train.learning_rate = 3e-4
    config.train.warmup_steps = 50
    config.train.lr_schedule = "cosine"
    config.train.ema_decay = 0.99
    config.sample.temperature = 0.0  # above it blocks seldom settle
    return config
