"""ADJUST (arXiv 2509.22738) on a CPU: a joint layer beside a network of ours, from trajectories that it wrote.

    python -m launch.trajectories --checkpoint=runs/hmm --output=trajectories/hmm
    python -m launch.train --config=joint --config.train.init_from=runs/hmm --workdir=runs/hmm_joint \\
        --config.data.source=trajectories:trajectories/hmm --config.data.length=64

The network is that of the checkpoint and stays as it is. Three passes: up to four tokens a forward, by the decoder
``adjust``. The paper trains Dream-7B's layer with AdamW at 5e-5 on 100,000 trajectories of 128 tokens.
"""

from mdlm_jax.config import recipe


def get_config():
    config = recipe("_onward")
    config.data.source = "trajectories:trajectories/hmm"
    config.data.valid_fraction = 0.02
    config.train.objective = "joint:3"
    config.train.any_order = 0.5  # 0 is the paper's; see benchmarks/adjust.md
    return config
