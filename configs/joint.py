"""ADJUST (arXiv 2509.22738) on a CPU: a joint layer beside a network of ours, from trajectories that it wrote.

    python -m launch.trajectories --checkpoint=runs/hmm --output=trajectories/hmm
    python -m launch.train --config=joint --config.train.init_from=runs/hmm --workdir=runs/hmm_joint \\
        --config.data.source=trajectories:trajectories/hmm --config.data.length=64

The network is that of the checkpoint and stays as it is. Three passes: up to four tokens a forward, by the decoder
``adjust``. The paper trains Dream-7B's layer with AdamW at 5e-5 on 100,000 trajectories of 128 tokens.
"""

from mdlm_jax.config import default_config


def get_config():
    config = default_config()
    config.data.source = "trajectories:trajectories/hmm"
    config.data.length = 64
    config.data.valid_fraction = 0.02
    config.train.objective = "joint:3"
    config.train.init_from = "runs/hmm"
    config.train.any_order = 0.5  # 0 is the paper's; see benchmarks/adjust.md
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
