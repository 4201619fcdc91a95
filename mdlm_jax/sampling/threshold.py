"""Fast-dLLM's rules (arXiv 2505.22618): every step reveals whatever the network is sure enough of."""

import dataclasses
from typing import Self

import jax
import jax.numpy as jnp

from mdlm_jax.core.draws import Drawn
from mdlm_jax.sampling.confidence import ByConfidence, fraction
from mdlm_jax.sampling.decoder import Look, check, decoder, static, take_best


@decoder
class Threshold(ByConfidence):
    """Reveals the masks i of the block with max_v p_i(v) >= threshold, and the surest one always.

    ``steps`` bounds the forwards: where the sure ones are fewer than what must go now for the rest to fit (`Look.due`),
    the surest of the others go too. With as many steps as tokens, as Fast-dLLM has it, that never happens. Positions
    depend on the canvas alone, whatever the temperature.

    Attributes:
      threshold: 0 reveals everything at once, 1 only what is certain.
      reference: as dInfer's code has it (arXiv 2510.08666): probabilities leave the mask its share, and positions where
        it is the likeliest come last. For comparisons; the head is applied twice. (There masks within 1e-5 of the
        surest go with it; here of equal ones the leftmost goes.)
    """

    threshold: float = 0.9
    reference: bool = static(False)

    scorable = True

    def __post_init__(self):
        super().__post_init__()
        fraction("threshold", self.threshold)

    def one_by_one(self) -> Self:
        return dataclasses.replace(self, threshold=1.0)

    def drawn(self, prediction, look: Look, **how) -> Drawn:
        drawn = super().drawn(prediction, look, **how)
        if not self.reference:
            return drawn
        beside = self.draw(prediction, look, ("argmax", "top_log_prob"), where=self.candidates(look),
                           may_draw_mask=True, **how)
        return drawn._replace(top_log_prob=jnp.where(beside.argmax == self.mask_id, -jnp.inf, beside.top_log_prob))

    def reveal(self, drawn: Drawn, look: Look) -> jax.Array:
        sure = look.masked & (jnp.exp(drawn.top_log_prob) >= self.least(look))
        return sure | take_best(drawn.top_log_prob, look.masked, jnp.maximum(look.due, 1))

    def least(self, look: Look) -> jax.Array | float:
        """The probability that is enough in this step, one for all or [B, 1]."""
        del look
        return self.threshold


@decoder
class Factor(ByConfidence):
    """Reveals the n surest masks, n the largest with (r + 1)(1 - c_r) <= factor for r = 2..n; at least one.

    c_1 >= c_2 >= ... are the largest probabilities max_v p_i(v) at the masks of the block. With factor 1 the n tokens
    together are then the likeliest outcome of drawing them one by one as well (Fast-dLLM, theorem 1). ``steps`` as in
    `Threshold`.

    Attributes:
      factor: 0 reveals one at a time, and what is certain.
      reference: as Fast-dLLM's code has it: where the last mask of the block alone fails, it is revealed as well. For
        comparisons.
    """

    factor: float = 1.0
    reference: bool = static(False)

    scorable = True

    def __post_init__(self):
        super().__post_init__()
        check("factor", self.factor, lambda f: 0 <= f < float("inf"), "must be 0 or positive")

    def one_by_one(self) -> "Factor":
        return dataclasses.replace(self, factor=0.0)

    def reveal(self, drawn: Drawn, look: Look) -> jax.Array:
        confidence = jnp.where(look.masked, jnp.exp(drawn.top_log_prob), -1.0)
        masks = look.masked.sum(1)
        rank = jnp.arange(1, confidence.shape[1] + 1)
        passes = -jnp.sort(-confidence, axis=1) >= 1 - self.factor / (rank + 1)
        count = jnp.cumprod((passes | (rank == 1)) & (rank <= masks[:, None]), axis=1).sum(1)
        if self.reference:
            count = jnp.where(count == masks - 1, masks, count)
        return take_best(drawn.top_log_prob, look.masked, jnp.maximum(jnp.maximum(count, look.due), 1))
