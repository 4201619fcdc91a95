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

from mdlm_jax.config import recipe


def get_config():
    config = recipe("xdlm_owt")
    config.model.vocab_size = config.model.head_size = 35
    config.data.source = "prepared:rows/text8"
    config.data.tokenizer = "text8"
    config.data.length = 256
    return config
