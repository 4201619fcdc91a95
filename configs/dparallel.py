"""dParallel (arXiv 2509.26488) on a CPU: a network of ours learns to be sure of what it writes, from its own rows.

    python -m launch.trajectories --checkpoint=runs/hmm --output=trajectories/hmm
    python -m launch.train --config=dparallel --config.train.init_from=runs/hmm --workdir=runs/hmm_dparallel \\
        --config.data.source=trajectories:trajectories/hmm --config.data.length=64

Blocks of 16; decode block after block, with ``threshold`` or ``entropy_bound``. The paper trains adapters
(train.lora_rank=128, at 2e-5) of LLaDA-8B on blocks of 32 of its own answers, and decodes with a threshold of 0.5.
"""

from mdlm_jax.config import recipe


def get_config():
    config = recipe("_onward")
    config.data.source = "trajectories:trajectories/hmm"
    config.data.valid_fraction = 0.02
    config.train.objective = "dparallel:16,2,0.5"
    config.train.steps = 1000
    config.train.learning_rate = 3e-4
    config.train.warmup_steps = 50
    config.train.lr_schedule = "cosine"
    config.train.ema_decay = 0.99
    config.sample.steps = 32
    return config
