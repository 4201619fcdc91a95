"""CoDD (arXiv 2603.00045) on a CPU: a circuit beside a network of ours; their product is a joint law.

    python -m launch.train --config=codd --config.train.init_from=runs/hmm --workdir=runs/hmm_codd \\
        --config.data.source=language:hmm --config.data.length=64
    python -m launch.sample --checkpoint=runs/hmm_codd --decoder=codd --tokens=4

The network is that of the checkpoint and stays as it is. ``--config=codd:64`` has 64 states instead of 16. The paper's
circuit has 1,024 over blocks of 32 tokens of LLaDA-8B or Dream-7B, and trains for about three hours on one GPU. The
weights of the loss vary as L / n over n masks; train.weighting=clipped:10 steadies rows that are long.
"""

from mdlm_jax.config import ConfigError, recipe


def get_config(states: str = "16"):
    if not states.isdecimal() or int(states) < 2:
        raise ConfigError(f"--config=codd:{states}: the states must be a whole number of at least 2, as in codd:64")
    config = recipe("_onward")
    config.train.objective = f"codd:{states}"
    config.train.batch_size = 64
    config.train.learning_rate = 3e-2  # suits tens of states and ids; lower it for more
    config.train.lr_schedule = "cosine"
    config.sample.steps = 16
    return config
