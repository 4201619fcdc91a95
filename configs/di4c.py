"""Di4C (arXiv 2410.08709) on a CPU: a mixture student that writes a row in a few steps, correlations and all.

    python -m launch.train --config=di4c --config.train.init_from=runs/hmm --workdir=runs/hmm_di4c \\
        --config.data.source=language:hmm --config.data.length=64
    python -m launch.sample --checkpoint=runs/hmm_di4c --decoder=ancestral --steps=8

Teacher and start are the checkpoint, whose steps are then 64. The paper's runs on OpenWebText have 1,024 steps of the
teacher and 16 latents, di4c:1024,16,DELTA,1, and begin with a student of SDTT, so that 2 of its steps become 1; where a
share of 0.3 of all times lies below DELTA is not told, and 0.1 is ours. There it takes half the steps or fewer for the
same quality, and at most 5 % more time a step.
"""

from mdlm_jax.config import default_config


def get_config():
    config = default_config()
    config.model.latent = 32
    config.data.source = "language:hmm"
    config.data.length = 64
    config.train.objective = "di4c:64,16,0.1,1"
    config.train.init_from = "runs/hmm"
    config.train.steps = 2000
    config.train.batch_size = 32
    config.train.learning_rate = 1e-3
    config.train.warmup_steps = 100
    config.train.lr_schedule = "constant"
    config.train.b2 = 0.98  # the plateau before components part is short only if its small gradients soon count
    config.train.ema_decay = 0.995
    config.train.checkpoint_every = 1000
    config.train.keep_checkpoints = 1
    config.eval.every = 500
    config.eval.rows = 64
    config.eval.final_rows = 512
    config.eval.draws = 8
    config.sample.steps = 8
    config.sample.num = 4
    return config
