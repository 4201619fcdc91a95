"""A minute on a CPU core: XDLM of scikit-learn's digits, 8 x 8 pixels of 17 grey levels, told their class.

``--config.process.mixing=0`` is masked noise (MDLM), ``1`` uniform (UDLM); benchmarks/digits.py trains them all. A
fifth of the images are held out. Needs scikit-learn: ``pip install 'mdlm_jax[images]'``.
"""

from mdlm_jax.config import default_config


def get_config():
    config = default_config()
    config.process.mixing = 0.1
    config.model.layers = 3
    config.model.d_model = 48
    config.model.heads = 3
    config.model.learned_positions = 64  # of an 8 x 8 grid, which a rotation by the index does not show
    config.model.rope_theta = 0.0
    config.model.conditioning = "constant"  # AdaLN that sees the class alone, as in the paper's networks
    config.model.classes = 10
    config.model.vocab_size = 18  # the greys and the mask
    config.data.source = "digits"
    config.data.length = 64
    config.data.valid_fraction = 0.2
    config.train.steps = 1000
    config.train.batch_size = 32
    config.train.class_dropout = 0.1
    config.train.learning_rate = 2e-3
    config.train.warmup_steps = 100
    config.train.b2 = 0.98
    config.train.weight_decay = 0.02
    config.train.ema_decay = 0.995
    config.train.checkpoint_every = 250
    config.train.log_every = 50
    config.eval.every = 250
    config.eval.rows = 128
    config.eval.final_rows = 359  # all of them
    config.eval.draws = 8
    config.sample.num = 50
    config.sample.steps = 32
    config.sample.guidance = 1.0
    return config
