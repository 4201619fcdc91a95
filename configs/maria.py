"""MARIA (arXiv 2502.06901) on a CPU: one linear head on a masked network and its autoregressive twin, both of ours.

    python -m launch.train --config=oracle --workdir=runs/hmm
    python -m launch.train --config=oracle --workdir=runs/hmm_ar --config.train.objective=autoregressive \\
        --config.model.attention=causal --config.model.logit_shift=true
    python -m launch.train --config=maria --config.train.init_from=runs/hmm --config.train.twin=runs/hmm_ar \\
        --workdir=runs/hmm_maria

Both networks stay as they are; at first logits are the mean of theirs. Decoder: ``maria``. Every masked token counts
alike, as in the paper; train.weighting=elbo counts every number of masks alike, which is what is held out.
"""

from mdlm_jax.config import recipe


def get_config():
    config = recipe("_onward")
    config.train.objective = "maria"
    config.train.twin = "runs/hmm_ar"
    config.train.weighting = "constant"
    config.train.steps = 1000
    return config
