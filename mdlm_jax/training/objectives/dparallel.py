"""dParallel's certainty-forcing distillation: blocks of a network's own text, sure of what it gets right."""

import dataclasses

import jax
import jax.numpy as jnp

from mdlm_jax.core import counts, levels, weights
from mdlm_jax.training.objectives.base import SECOND
from mdlm_jax.training.objectives.count import CountObjective, Noised


@dataclasses.dataclass(frozen=True)
class DParallelObjective(CountObjective):
    """dParallel (arXiv 2509.26488), for networks that see whole rows.

    Of each row one block of ``block`` tokens is active, any of those with something to noise alike; blocks are counted
    from the first position that noise may touch, as decoding counts them. What stands before is clean, what comes
    behind is all masked, and of the active block half is masked, the other half in a second copy of the row. A masked
    token of the active block counts

        -log p(x_i) + confidence H[softmax(u / sharpness)] [argmax u = x_i]        (nats; u: the logits)

    The right ones are chosen without gradient. The published code masks each token with probability 1/2, here exactly
    half are, rounded; there the last block goes to the end of the row, and the entropy is a mean over the right ones
    alone, here over all masked ones (as CAP, whose code this is). It bounds nothing.

    Where tokens hang together the cross-entropy holds the laws at their marginals, and the entropy sharpens them: the
    network gives up what it could have said, and of several texts tells fewer.

    Attributes:
      block: tokens of the active block.
      confidence: beta, the published one 2. ``sharpness``: T, the published one 0.5.
    """

    law: levels.Law = levels.Fixed(0.5)  # noqa: RUF009 (frozen)
    coupling: str = "iid"
    weighting: weights.Weighting = weights.Power(0.0)  # noqa: RUF009 (frozen)
    both: bool = True
    confidence: float = 2.0
    sharpness: float = 0.5
    block: int = 32

    one_level = False

    def __post_init__(self):
        super().__post_init__()
        if not (self.block >= 1 and self.confidence >= 0 and self.sharpness > 0):
            raise ValueError(f"block={self.block}, confidence={self.confidence}, sharpness={self.sharpness}: need a "
                             "block of a token at least, a weight that is not negative and a positive temperature")
        if self.network.attention != "bidirectional" or self.network.time_conditioning:
            raise ValueError(f"network={self.network}: must see whole rows and no time, since a row has no one level")
        if not (self.process.masked_only and self.both and self.weighting == weights.Power(0.0)
                and self.law == levels.Fixed(0.5)):
            raise ValueError("process, both, weighting, law: half of a block is masked, then the other half, and every "
                             "mask counts alike; leave them as they are")

    def pair_slots(self, length: int) -> int:
        return min(self.block, length)

    def train_flops(self, rows: int, length: int) -> int:
        """The head runs a second time for an entropy at another temperature."""
        head = self.head_positions(rows, length) * (2 if self.confidence and self.sharpness != 1.0 else 1)
        return self.network_flops(2 * rows, length, head)

    def noised(self, batch: dict, key: jax.Array, rows: jax.Array, u: jax.Array) -> Noised:
        active, later = self.parts(batch["noise_mask"], key, rows)
        row = super().noised(batch | {"noise_mask": active}, key, rows, u)
        mask_id = jnp.asarray(self.process.mask_id, row.noisy.dtype)
        counted = row.batch["loss_mask"] & row.draw.masked
        return row._replace(batch=row.batch | {"loss_mask": counted},
                            noisy=jnp.where(jnp.repeat(later, 2, axis=0), mask_id, row.noisy))

    def parts(self, noise_mask: jax.Array, key: jax.Array, rows: jax.Array) -> tuple[jax.Array, jax.Array]:
        """[B, L] bool each: of ``noise_mask`` the positions of the active block, and those behind it."""
        length = noise_mask.shape[1]
        number = (jnp.arange(length) - noise_mask.argmax(1, keepdims=True)) // self.block
        blocks = jnp.arange(-(-length // self.block))
        some = ((number[..., None] == blocks) & noise_mask[..., None]).any(1)
        chosen = counts.random_ranks(self.noise_keys(key, rows, SECOND), some).argmin(1)[:, None]
        return noise_mask & (number == chosen), noise_mask & (number > chosen)
