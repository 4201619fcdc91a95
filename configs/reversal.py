"""The reversal curse on a CPU core (arXiv 2309.12288): --config=reversal:masked, and its twin, reversal:autoregressive.

Rows are a prompt and its completion as one text, all of it noised and counted, filled up with end tokens that count too
(SMDM's recipe, 2410.18514). Give the three files of training prompts as one with --config.data.source; the twins differ
in attention, loss and the shift of rows alone. benchmarks/reversal.py trains both and asks them forwards and backwards.
"""

from mdlm_jax.config import ConfigError, default_config

FAMILIES = ("masked", "autoregressive")


def get_config(family="masked"):
    if family not in FAMILIES:
        raise ConfigError(f"reversal:{family}: FAMILY must be {' or '.join(FAMILIES)}")
    config = default_config()
    config.model.layers = 2
    config.model.d_model = 192
    config.model.heads = 6
    config.data.source = "all_prompts_train.jsonl"
    config.data.prompt_field = "prompt"
    config.data.text_field = "completion"
    config.data.prompt_loss = True
    config.data.tokenizer = "bpe:4096"
    config.data.length = 60
    config.data.valid_fraction = 0.01
    config.train.steps = 8000
    config.train.batch_size = 16
    config.train.learning_rate = 1e-3
    config.train.warmup_steps = 200
    config.train.b2 = 0.98
    config.train.ema_decay = 0.995
    config.train.checkpoint_every = 1000
    config.train.keep_checkpoints = 1
    config.eval.every = 1000
    config.eval.rows = 32
    config.sample.num = 2
    if family == "autoregressive":
        config.model.attention = "causal"
        config.model.logit_shift = True
        config.train.objective = "autoregressive"
    else:
        config.sample.steps = 30
    return config
