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

from mdlm_jax.config import default_config
from mdlm_jax.models import presets


def get_config():
    config = default_config()
    config.process.mixing = 0.1
    config.process.schedule = "linear"
    config.process.eps = 1e-3
    config.model.update(presets.fields("mdlm-small"))
    config.model.vocab_size = config.model.head_size = 16385  # the codes and the mask
    config.model.classes = 1000
    config.model.dropout = 0.1
    config.model.dtype = "bfloat16"
    config.model.backend = "splash"
    config.data.source = "codes:rows/imagenet_codes"
    config.data.codes = 16384
    config.data.length = 256
    config.data.valid_fraction = 0.01
    config.train.steps = 500_000
    config.train.batch_size = 512
    config.train.objective = "continuous"
    config.train.class_dropout = 0.1
    config.train.time_sampling = "stratified"
    config.train.learning_rate = 3e-4
    config.train.warmup_steps = 2500
    config.train.lr_schedule = "constant"
    config.train.b1 = 0.9
    config.train.b2 = 0.999
    config.train.weight_decay = 0.0
    config.train.clip_norm = 1.0
    config.train.ema_decay = 0.9999
    config.train.seed = 1
    config.train.checkpoint_every = 10_000
    config.train.mesh = "fsdp:-1"
    config.eval.every = 10_000
    config.sample.num = 100
    config.sample.steps = 64
    config.sample.guidance = 1.0
    return config
