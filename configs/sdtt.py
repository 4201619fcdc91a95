"""Fewer steps on a CPU by self-distillation: a round of SDTT (arXiv 2410.21035), or with ``sdtt:duo`` of Duo's.

    python -m launch.distil --config=sdtt --from=runs/hmm --steps=64 --rounds=5 --workdir=runs/hmm_few \\
        --config.data.source=language:hmm --config.data.length=64

One round alone is launch.train with train.init_from=runs/hmm and train.objective=sdtt:64, 64 the teacher's steps; the
network and its noise are the checkpoint's. ``sdtt:duo`` is discrete consistency distillation (arXiv 2506.10892) of a
network of uniform noise, as --config=xdlm_oracle --config.process.mixing=1 trains one. Published for SDTT: 7 rounds of
10,000 updates from 1024 steps, Adam at 6e-5 without decay, 500 steps of warm-up, batch 128, average 0.9999; for Duo 5
rounds of 10,000 from dt = 1/512, 6e-5, batch 128, average 0.999.
"""

from mdlm_jax.config import ConfigError, recipe

OBJECTIVES = {"sdtt": "sdtt:64", "duo": "duo:64"}


def get_config(kind: str = "sdtt"):
    if kind not in OBJECTIVES:
        raise ConfigError(f"--config=sdtt:{kind}: choose one of {', '.join(OBJECTIVES)}")
    config = recipe("_onward")
    config.process.mixing = 1.0 if kind == "duo" else 0.0
    config.train.objective = OBJECTIVES[kind]
    config.train.steps = 500
    config.train.learning_rate = 3e-4
    config.train.warmup_steps = 50
    config.train.ema_decay = 0.99
    config.train.checkpoint_every = 500
    config.eval.draws = 4
    config.sample.steps = 16
    return config
