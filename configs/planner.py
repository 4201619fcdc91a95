"""Learned self-correction on a CPU: P2's planner, or with ``planner:prism`` PRISM's head, beside a network of ours.

    python -m launch.train --config=planner --config.train.init_from=runs/hmm --workdir=runs/hmm_planner \\
        --config.data.source=language:hmm --config.data.length=64

The network is that of the checkpoint and stays as it is. Decoders: ``p2`` with planner=trained, and ``prism``. The
weights of the planner's loss vary as L / n over n masks; train.weighting=clipped:10 steadies rows that are long.
"""

from mdlm_jax.config import ConfigError, recipe

OBJECTIVES = {"planner": "planner:2", "prism": "prism:1"}


def get_config(kind: str = "planner"):
    if kind not in OBJECTIVES:
        raise ConfigError(f"--config=planner:{kind}: choose one of {', '.join(OBJECTIVES)}")
    config = recipe("_onward")
    config.train.objective = OBJECTIVES[kind]
    config.sample.steps = 32
    return config
