"""Ten minutes on two CPU cores: block diffusion, blocks of 16 subwords, on the text and at the size of the quickstart.

`--config.model.block_length=4` takes other blocks, which must divide data.length;
`--config.train.block_schedule=1:200,4:200,64:800,16` grows and shrinks them on the way (LLaDA2, arXiv 2512.15745).
"""

from configs import quickstart


def get_config():
    config = quickstart.get_config()
    config.train.objective = "block"
    config.model.attention = "block_causal"
    config.model.block_length = 16
    return config
