"""Ten to twenty minutes on two CPU cores: block diffusion, blocks of 16 subwords, on the quickstart's text.

`--config.model.block_length=4` takes other blocks; they must divide data.length, and 1 is one token at a time.
`--config.train.block_schedule=1:200,4:200,16:200,128:800,32:200,16` grows and shrinks them on the way (LLaDA2).
"""

from mdlm_jax.config import default_config


def get_config():
    config = default_config()
    config.model.layers = 4
    config.model.d_model = 192
    config.model.heads = 3
    config.model.attention = "block_causal"
    config.model.block_length = 16
    config.data.source = "stdlib"
    config.data.tokenizer = "bpe:2048"
    config.data.length = 128
    config.train.objective = "block"
    config.train.steps = 2000
    config.train.batch_size = 16
    config.train.learning_rate = 2e-3
    config.train.warmup_steps = 100
    config.train.b2 = 0.98
    config.train.weight_decay = 0.02
    config.train.ema_decay = 0.995
    config.train.checkpoint_every = 500
    config.eval.every = 250
    config.eval.rows = 128
    config.eval.final_rows = 2000
    config.eval.draws = 2
    config.sample.num = 4
    config.sample.steps = 64
    return config
