"""XDLM of ImageNet's images as 256 codes of LlamaGen's VQ model each, told their class: arXiv 2602.01362, 0.5M steps.

The codes come from files, .npz with tokens [N, 256] below 16384 and labels [N] below 1000 (`data.images`), made by
LlamaGen's encoder; its decoder makes images of the samples.npz that a run leaves behind. Neither is here.

The paper: 16384 codes, rows of 256, one class of 1000, dropped for a tenth of the rows, 0.5M steps. It does not say
which network, batch and learning rate: these are those of its text runs (configs/xdlm_owt.py, where what differs from
the released code is told). Its code encodes images on the way, mirrored at random, and validates on
ImageNet's own validation images; codes in files are not mirrored (do not put both mirrors in: one might be held out).
Ours are the share of images held out, the rotation by the index of a code, which shows a
row's order and not its second dimension, and guidance 1 for the samples.
"""

from mdlm_jax.config import recipe


def get_config():
    config = recipe("xdlm_owt")
    config.model.vocab_size = config.model.head_size = 16385  # the codes and the mask
    config.model.classes = 1000
    config.data.source = "codes:rows/imagenet_codes"
    config.data.tokenizer = "byte"
    config.data.codes = 16384
    config.data.length = 256
    config.data.packing = "concat"
    config.data.valid_fraction = 0.01
    config.train.steps = 500_000
    config.train.class_dropout = 0.1
    config.train.mesh = "fsdp:-1"
    config.sample.num = 100
    config.sample.steps = 64
    config.sample.guidance = 1.0
    return config
