"""XDLM's 139M network on One Billion Words, mixing 0.1: the recipe of arXiv 2602.01362, 1M steps of 512 rows of 128.

The rows come first: the corpus prepared by tensorflow_datasets as array_record (its test split is held out) or files
of sentences, without its spaces around signs, with the tokenizer.json of bert-base-uncased, whose [CLS] and [SEP]
begin and end each row:

    python -m launch.prepare --source=tfds:lm1b --data_dir=PREPARED --detokenizer=lm1b \\
        --tokenizer=bert-base-uncased/tokenizer.json --length=128 --packing=wrapped --out=rows/lm1b

Other mixings, and what differs from the released code: configs/xdlm_owt.py. Bits per byte are not told: this tokenizer
changes the text.
"""

from mdlm_jax.config import recipe


def get_config():
    config = recipe("xdlm_owt")
    config.model.vocab_size = config.model.head_size = 30522  # BERT's, its mask among them
    config.data.source = "prepared:rows/lm1b"
    config.data.detokenizer = "lm1b"
    config.data.tokenizer = "bert-base-uncased/tokenizer.json"
    config.data.length = 128
    return config
