"""Ten to twenty minutes on two CPU cores: block diffusion, blocks of 16 subwords, on the quickstart's text.

`--config.model.block_length=4` takes other blocks; they must divide data.length, and 1 is one token at a time.
`--config.train.block_schedule=1:200,4:200,16:200,128:800,32:200,16` grows and shrinks them on the way (LLaDA2).
"""

from mdlm_jax.config import recipe


def get_config():
    config = recipe("quickstart")
    config.model.attention = "block_causal"
    config.model.block_length = 16
    config.train.objective = "block"
    return config
