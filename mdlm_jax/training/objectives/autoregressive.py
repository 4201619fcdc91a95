"""The causal twin: next-token cross-entropy, which is the log-likelihood itself."""

import dataclasses

from mdlm_jax.core.loss_parts import LossParts
from mdlm_jax.models import flops
from mdlm_jax.models.denoise import one_before
from mdlm_jax.training.objectives.base import Objective, scored


@dataclasses.dataclass(frozen=True)
class AutoregressiveObjective(Objective):
    """-log p(x_i | x_{<i}) at every position, the first included: the chain rule, so the loss is exact.

    The network is causal and its row i scores token i+1 (``logit_shift``). It is fed each token's predecessor; before
    the first of a row, and of a document where attention stops at document ends, stands the mask, which an
    autoregressive text has no other use for. Of the noise only the mask's id is read.
    """

    one_level = False
    exact = True

    def __post_init__(self):
        super().__post_init__()
        if self.network.attention != "causal" or not self.network.logit_shift or self.network.time_conditioning:
            raise ValueError(f"network={self.network}: must be causal, with logit_shift and without a time")

    def network_flops(self, rows: int, length: int, head_positions: int) -> int:
        """A query sees (L + 1) / 2 keys on average."""
        return flops.train_flops(self.network, rows * length, (length + 1) // 2, head_positions)

    def loss_at(self, trainable, batch, key, rows, u):
        del u
        tokens = batch["tokens"]
        before = one_before(tokens, batch["attention_mask"], self.process.mask_id)
        prediction, routers = self.run(trainable, batch, before, None, key, rows, raw=True)
        return LossParts.of(scored(batch), *routers, diffusion=-self.reduce(prediction, target=tokens).target)
