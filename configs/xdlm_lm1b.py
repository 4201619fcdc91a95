"""XDLM's 139M network on One Billion Words, mixing 0.1: the recipe of arXiv 2602.01362, 1M steps of 512 rows of 128.

The rows come first: the corpus prepared by tensorflow_datasets as array_record (its test split is held out) or files
of sentences, without its spaces around signs, with the tokenizer.json of bert-base-uncased, whose [CLS] and [SEP]
begin and end each row:

    python -m launch.prepare --source=tfds:lm1b --data_dir=PREPARED --detokenizer=lm1b \\
        --tokenizer=bert-base-uncased/tokenizer.json --length=128 --packing=wrapped --out=rows/lm1b

Other mixings, and what differs from the released code: configs/xdlm_owt.py. Bits per byte are not told: this tokenizer
changes the text.
"""

from mdlm_jax.config import default_config
from mdlm_jax.models import presets


def get_config():
    config = default_config()
    config.process.mixing = 0.1
    config.process.schedule = "linear"
    config.process.eps = 1e-3
    config.model.update(presets.fields("mdlm-small"))
    config.model.vocab_size = config.model.head_size = 30522  # BERT's, its mask among them
    config.model.dropout = 0.1
    config.model.dtype = "bfloat16"
    config.model.backend = "splash"
    config.data.source = "prepared:rows/lm1b"
    config.data.detokenizer = "lm1b"
    config.data.tokenizer = "bert-base-uncased/tokenizer.json"
    config.data.length = 128
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
    config.train.mesh = "replica:32"  # 16 rows a device; 2.2 GB of weights, moments and average on each
    config.eval.every = 10_000
    config.sample.steps = 1000
    return config
