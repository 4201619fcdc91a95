"""Di4C (arXiv 2410.08709) on a CPU: a mixture student that writes a row in a few steps, correlations and all.

    python -m launch.train --config=di4c --config.train.init_from=runs/hmm --workdir=runs/hmm_di4c \\
        --config.data.source=language:hmm --config.data.length=64
    python -m launch.sample --checkpoint=runs/hmm_di4c --decoder=ancestral --steps=8

Teacher and start are the checkpoint, whose steps are then 64. The paper's runs on OpenWebText have 1,024 steps of the
teacher and 16 latents, di4c:1024,16,DELTA,1, and begin with a student of SDTT, so that 2 of its steps become 1; where a
share of 0.3 of all times lies below DELTA is not told, and 0.1 is ours. There it takes half the steps or fewer for the
same quality, and at most 5 % more time a step.
"""

from mdlm_jax.config import recipe


def get_config():
    config = recipe("_onward")
    config.model.latent = 32
    config.train.objective = "di4c:64,16,0.1,1"
    config.train.b2 = 0.98  # the plateau before components part is short only if its small gradients soon count
    config.sample.steps = 8
    return config
