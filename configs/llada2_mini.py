"""LLaDA2.0-mini (16B, 1.4B of them active, arXiv 2512.15745): continued training by block lengths, on 256 chips.

The published order of the warm-up, stable phase and decay: blocks of 1, 4, 32, 64 and the whole row of 4096, then
2048 and downwards by halves to 32. Not published, and chosen here: the steps of each, the batch and the learning rate.
The report starts from Ling-mini-2.0, a causal base, and averages checkpoints instead of decaying the rate. Give your
text and the published tokenizer.json.

Its fine-tuning, on prompts and answers (`data.prompt_field`, with the public code's defaults):
  --config.train.block_schedule= --config.train.steps=3000 --config.train.warmup_steps=90 --config.data.length=2048
  --config.train.level_law=band:0.3,0.8 --config.train.weighting=constant --config.train.each_twice=true
  --config.train.confidence=1 --config.train.learning_rate=1e-5 --config.data.answer_multiple=32
"""

from mdlm_jax.config import default_config
from mdlm_jax.models import presets


def get_config():
    config = default_config()
    config.model.update(presets.fields("llada2-mini"))
    config.model.dtype = "bfloat16"
    config.model.remat = "full"
    config.model.backend = "splash"
    config.data.tokenizer = "LLaDA2.0-mini/tokenizer.json"
    config.data.length = 4096
    config.train.objective = "block"
    config.train.block_schedule = (
        "1:1000,4:1000,32:1000,64:1000,4096:20000,2048:500,1024:500,512:500,256:500,128:500,64:500,32"
    )
    config.train.steps = 30_000
    config.train.batch_size = 512
    config.train.microbatches = 2
    config.train.learning_rate = 1e-4
    config.train.warmup_steps = 1000
    config.train.lr_schedule = "constant"
    config.train.b2 = 0.95
    config.train.weight_decay = 0.1
    config.train.router_bias_rate = 1e-3
    config.train.ema_decay = 0.0
    config.train.checkpoint_every = 1000
    config.train.mesh = "replica:8,fsdp:32"
    config.eval.every = 5000
    return config
