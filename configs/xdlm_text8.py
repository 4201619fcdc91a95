"""XDLM's network on text8, mixing 0.1, 256 characters: MDLM's and UDLM's recipe, 1M steps of 512 rows.

XDLM's paper has no figures for text8; its code brings the corpus, 27 characters and 8 special ids, with pieces of 256
characters for documents. As such a file, a piece a line: those of the first 90M characters, then the 19,531 of the
next 5M, which are held out; the last 5M are the test.

    python -m launch.prepare --source=text8.jsonl --valid_last=19531 --tokenizer=text8 --length=256 --packing=wrapped \\
        --out=rows/text8

The code of XDLM validates on that test; here it stays untouched. The special ids are tokens of the bound and no
characters: bits per byte is the sum of both over the characters. Other mixings, and what else differs from the released
code: configs/xdlm_owt.py.
"""

from mdlm_jax.config import default_config
from mdlm_jax.models import presets


def get_config():
    config = default_config()
    config.process.mixing = 0.1
    config.process.schedule = "linear"
    config.process.eps = 1e-3
    config.model.update(presets.fields("mdlm-small"))
    config.model.vocab_size = config.model.head_size = 35
    config.model.dropout = 0.1
    config.model.dtype = "bfloat16"
    config.model.backend = "splash"
    config.data.source = "prepared:rows/text8"
    config.data.tokenizer = "text8"
    config.data.length = 256
    config.data.packing = "wrapped"
    config.train.steps = 1_000_000
    config.train.batch_size = 512
    config.train.objective = "continuous"
    config.train.time_sampling = "stratified"
    config.train.learning_rate = 3e-4
    config.train.warmup_steps = 2500
    config.train.lr_schedule = "constant"
    config.train.b1 = 0.9
    config.train.b2 = 0.999
    config.train.adam_eps = 1e-8
    config.train.weight_decay = 0.0
    config.train.clip_norm = 1.0
    config.train.ema_decay = 0.9999
    config.train.seed = 1
    config.train.checkpoint_every = 10_000
    config.train.mesh = "replica:32"  # 16 rows a device
    config.eval.every = 10_000
    config.sample.steps = 1000
    return config
