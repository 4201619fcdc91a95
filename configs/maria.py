"""MARIA (arXiv 2502.06901) on a CPU: one linear head on a masked network and its autoregressive twin, both of ours.

    python -m launch.train --config=oracle --workdir=runs/hmm
    python -m launch.train --config=oracle --workdir=runs/hmm_ar --config.train.objective=autoregressive \\
        --config.model.attention=causal --config.model.logit_shift=true
    python -m launch.train --config=maria --config.train.init_from=runs/hmm --config.train.twin=runs/hmm_ar \\
        --workdir=runs/hmm_maria

Both networks stay as they are; at first logits are the mean of theirs. Decoder: ``maria``. Every masked token counts
alike, as in the paper; train.weighting=elbo counts every number of masks alike, which is what is held out.
"""

from mdlm_jax.config import default_config


def get_config():
    config = default_config()
    config.data.source = "language:hmm"
    config.data.length = 64
    config.train.objective = "maria"
    config.train.init_from = "runs/hmm"
    config.train.twin = "runs/hmm_ar"
    config.train.weighting = "constant"
    config.train.steps = 1000
    config.train.batch_size = 32
    config.train.learning_rate = 1e-3
    config.train.warmup_steps = 100
    config.train.lr_schedule = "constant"
    config.train.ema_decay = 0.995
    config.train.checkpoint_every = 1000
    config.train.keep_checkpoints = 1
    config.eval.every = 500
    config.eval.rows = 64
    config.eval.final_rows = 512
    config.eval.draws = 8
    config.sample.num = 4
    return config
