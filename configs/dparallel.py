"""dParallel (arXiv 2509.26488) on a CPU: a network of ours learns to be sure of what it writes, from its own rows.

    python -m launch.trajectories --checkpoint=runs/hmm --output=trajectories/hmm
    python -m launch.train --config=dparallel --config.train.init_from=runs/hmm --workdir=runs/hmm_dparallel \\
        --config.data.source=trajectories:trajectories/hmm --config.data.length=64

Blocks of 16; decode block after block, with ``threshold`` or ``entropy_bound``. The paper trains adapters
(train.lora_rank=128, at 2e-5) of LLaDA-8B on blocks of 32 of its own answers, and decodes with a threshold of 0.5.
"""

from mdlm_jax.config import default_config


def get_config():
    config = default_config()
    config.data.source = "trajectories:trajectories/hmm"
    config.data.length = 64
    config.data.valid_fraction = 0.02
    config.train.objective = "dparallel:16,2,0.5"
    config.train.init_from = "runs/hmm"
    config.train.steps = 1000
    config.train.batch_size = 32
    config.train.learning_rate = 3e-4
    config.train.warmup_steps = 50
    config.train.ema_decay = 0.99
    config.train.checkpoint_every = 1000
    config.train.keep_checkpoints = 1
    config.eval.every = 500
    config.eval.rows = 64
    config.eval.final_rows = 512
    config.eval.draws = 8
    config.sample.steps = 32
    config.sample.num = 4
    return config
