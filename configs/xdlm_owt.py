"""XDLM's 170M network on OpenWebText, mixing 0.1: the recipe of arXiv 2602.01362, 1M steps of 512 rows of 1024.

The rows come first, from a file with a document a line (the last 100,000 are held out) and GPT-2's tokenizer.json:

    python -m launch.prepare --source=openwebtext.jsonl --valid_last=100000 --tokenizer=gpt2/tokenizer.json \\
        --length=1024 --packing=wrapped --out=rows/openwebtext

process.mixing=0 is MDLM, 1 UDLM; the paper's others are 0.001, 0.5 and 0.9. (For mixing=0 train.objective=continuous
keeps to the paper's loss; the default there is the bound by counts, whose noise is smaller.)

What differs from the released code: what is left of each 1000 documents is not dropped but joined to the next; logits
are reduced in float32 (theirs are bfloat16); devices share no noise (theirs start from one seed); initial weights are
this library's. Its validation perplexity leaves out prior and reconstruction, which the bound here holds. Its sampler
makes sample.steps + 1 forwards at times down to 1e-5, the last for what is left of the noise; ours makes sample.steps
at times down to 1 / sample.steps, the last likewise, and loses no small probabilities.
"""

from mdlm_jax.config import default_config
from mdlm_jax.models import presets


def get_config():
    config = default_config()
    config.process.mixing = 0.1
    config.process.schedule = "linear"
    config.process.eps = 1e-3
    config.model.update(presets.fields("mdlm-small"))
    config.model.vocab_size = config.model.head_size = 50258  # GPT-2's and the mask
    config.model.dropout = 0.1
    config.model.dtype = "bfloat16"
    config.model.backend = "splash"
    config.data.source = "prepared:rows/openwebtext"
    config.data.tokenizer = "gpt2/tokenizer.json"
    config.data.length = 1024
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
    config.train.mesh = "replica:32"  # 16 rows a device, the paper's; 2.7 GB of weights, moments and average on each
    config.eval.every = 10_000
    config.sample.steps = 1000
    return config
