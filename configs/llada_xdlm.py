"""LLaDA-8B adapted into XDLM: the recipe of arXiv 2602.01362, 600 steps of 512 rows of 4096, 1.26 B tokens.

--config.train.init_from=LLaDA-8B-Base gives weights, network and tokenizer; --config.data.source the text (the paper
took a sample of FineWeb-Edu). Decode with launch.sample --decoder=draft_edit. The mesh is that of 64 chips of v5p, by
arithmetic (launch.plan --topology=v5p:4x4x4 --compile=0: 13.3 of 91.2 GiB).

What differs from the released script: weight decay spares norms and biases; uniform noise falls on the tokenizer's ids,
not on the empty rows that fill the table up to 126,464; documents end with the tokenizer's end of text, which it leaves
out; times lie in [1e-3, 1], which is what 1 - ((1 - 1e-3) t + 1e-3) says. The script runs 1000 steps and the paper
measures step 600.
"""

from mdlm_jax.config import recipe


def get_config():
    config = recipe("llada_8b")
    config.process.mixing = 0.1
    config.process.eps = 0.0
    config.train.time_sampling = "iid"
    config.train.steps = 600
    config.train.batch_size = 512
    config.train.microbatches = 8
    config.train.learning_rate = 2e-5
    config.train.warmup_steps = 100
    config.train.b2 = 0.999
    config.train.checkpoint_every = 100
    config.train.keep_every = 200
    config.train.mesh = "replica:4,fsdp:16"
    config.eval.every = 100
    return config
