"""An IsoFLOP study for a CPU, for launch.scaling; --config=scaling:2x32,masked,1e12 is one run of it, on bytes of text.

LAYERSxWIDTH,FAMILY,FLOPS: heads of 16; FAMILY masked or autoregressive; FLOPS the budget C = 6 N D, from which the
steps of 16 rows of 128 follow, and with them the cosine of the learning rate.
"""

from mdlm_jax.config import ConfigError, default_config
from mdlm_jax.models.shapes import layer_parameter_count

FAMILIES = ("masked", "autoregressive")
STUDY = {
    "sizes": {  # amid them the optimum of bytes of Python, which moves with the budget
        1e12: ("2x16", "2x32", "2x48", "2x64", "3x64"),
        3e12: ("2x32", "2x48", "2x64", "3x64", "3x80"),
        1e13: ("2x48", "2x64", "3x64", "4x80", "4x96"),
    },
    "budgets": (1e12, 3e12, 1e13),
    "families": FAMILIES,
}


def get_config(choice="2x32,masked,1e12"):
    size, family, flops = [*(part.strip() for part in choice.split(",")), "", ""][:3]
    layers, _, width = size.partition("x")
    if not (layers.isdigit() and width.isdigit() and int(layers) and int(width) and int(width) % 16 == 0):
        raise ConfigError(f"scaling:{choice}: begin with LAYERSxWIDTH, the width a multiple of 16, as in 2x32")
    if (family or "masked") not in FAMILIES:
        raise ConfigError(f"scaling:{choice}: FAMILY must be {' or '.join(FAMILIES)}")
    config = default_config()
    config.model.layers = int(layers)
    config.model.d_model = int(width)
    config.model.heads = int(width) // 16
    config.data.source = "stdlib"
    config.data.length = 128
    config.train.batch_size = 16
    if family == "autoregressive":
        config.model.attention = "causal"
        config.model.logit_shift = True
        config.train.objective = "autoregressive"
    else:
        config.eval.draws = 8
        config.sample.steps = 16
    network = default_network(config)
    config.train.steps = max(round(float(flops or 1e12) / (6 * layer_parameter_count(network) * 16 * 128)), 1)
    config.train.learning_rate = 3e-3
    config.train.warmup_steps = min(100, config.train.steps)
    config.train.b2 = 0.98
    config.train.ema_decay = 0.0
    config.train.checkpoint_every = 1000
    config.train.keep_checkpoints = 1
    config.eval.every = max(config.train.steps // 4, 1)
    config.eval.rows = 64
    config.eval.final_rows = 1024
    config.sample.num = 1
    return config


def default_network(config):
    """The network of the config; its ids do not count among the parameters."""
    from mdlm_jax.config import freeze

    return freeze(config).model.transformer(2)
