"""SMDM's family (arXiv 2410.18514) and its causal twins: --config=smdm:170 or --config=smdm:170,autoregressive,6e18.

SMDM:SIZE[,FAMILY[,FLOPS]]: SIZE is one of the 30, in millions of parameters without embedding and head; FAMILY masked
or autoregressive; FLOPS the budget C, from which the steps follow: C = 6 N D with D = steps x 256 x 2048 tokens.

The twins differ in their attention, their loss, and a shift of the rows, and in nothing else: the causal one keeps the
row of the mask, which stands before its text. Give your own text with --config.data.source and Llama 2's tokenizer.json
with --config.data.tokenizer; the paper trained on SlimPajama. Three things differ from the released script, as in
configs/smdm_1028m.py: the learning rate is the paper's 4e-4, norms and biases do not decay, and noise levels are
antithetic. Networks that are to be asked short questions are trained with --config.data.random_length=0.01 (the paper
cuts one batch in a hundred to a random length, we one row in a hundred). Its temporal shift is launch.evaluate with
--held_out=false --samples=0 --text=MARCH.jsonl,APRIL.jsonl on both twins.
"""

from mdlm_jax.config import ConfigError, default_config
from mdlm_jax.models import presets
from mdlm_jax.models.shapes import layer_parameter_count

FAMILIES = ("masked", "autoregressive")


def get_config(choice="170"):
    size, family, flops = [*(part.strip() for part in choice.split(",")), "", ""][:3]
    if not size.isdigit() or int(size) not in presets.SMDM_SIZES:
        raise ConfigError(f"smdm:{choice}: SIZE is one of {', '.join(map(str, presets.SMDM_SIZES))}")
    if (family or FAMILIES[0]) not in FAMILIES:
        raise ConfigError(f"smdm:{choice}: FAMILY must be {' or '.join(FAMILIES)}")
    name = f"smdm-{size}m"
    config = default_config()
    config.model.update(presets.fields(name))
    config.model.dtype = "bfloat16"
    config.model.remat = "full"
    config.model.backend = "splash"
    config.process.eps = 1e-3
    config.data.source = "tfds:c4/en"
    config.data.tokenizer = "Llama-2-7b/tokenizer.json"
    config.data.length = 2048
    config.train.batch_size = 256
    step_flops = 6 * layer_parameter_count(presets.get(name)) * config.train.batch_size * config.data.length
    config.train.steps = max(round(float(flops or 1e20) / step_flops), 1)
    config.train.learning_rate = 4e-4
    config.train.warmup_steps = min(max(100, config.train.steps // 100), config.train.steps)
    config.train.b2 = 0.95
    config.train.weight_decay = 0.1
    config.train.ema_decay = 0.0
    config.train.checkpoint_every = 1000
    config.train.mesh = "fsdp:-1"
    config.eval.every = 1000
    if family == "autoregressive":
        config.model.attention = "causal"
        config.model.logit_shift = True
        config.train.objective = "autoregressive"
    else:
        config.eval.draws = 32  # few draws put outliers on the parabolas of a study
    return config
