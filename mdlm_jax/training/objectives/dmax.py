"""DMax's on-policy uniform training: from masks, and from what the network itself would put in their place."""

import dataclasses

import jax
import jax.numpy as jnp

from mdlm_jax.core.loss_parts import LossParts
from mdlm_jax.core.prediction import Prediction
from mdlm_jax.training.objectives.base import scored
from mdlm_jax.training.objectives.block import BlockObjective
from mdlm_jax.training.objectives.count import CountObjective


@dataclasses.dataclass(frozen=True)
class DMaxObjective(CountObjective):
    """On-policy uniform training (OPUT, DMax, arXiv 2604.08302), for networks that see whole rows.

    Every row is noised by masks, as `CountObjective`, and read twice: with the masks, and with the network's own
    prediction in place of each, so that nothing tells its tokens from those of the text. Terms:

      diffusion   ``masked_weight`` w(level) -log p(x_i) at masks: a bound, where w is
      own         ``own_weight`` -log p(x_i) at every position that noise may touch, in the second reading

    The predictions are those of the first reading, without gradient. The paper masks 3/4 of a row
    (train.level_law=fixed:0.75, train.weighting=constant) and takes both losses over all positions; its code reads
    some rows with masks and the others without, and predicts without dropout. `DraftEditObjective` goes on from its
    own draws as well, but masks afresh: it shows them beside new masks, where this shows nothing else.

    Attributes:
      temperature: of the predictions; 0 takes the likeliest, which the decoder `SoftParallel` writes too.
    """

    masked_weight: float = 1.0
    own_weight: float = 1.0
    temperature: float = 0.0

    def __post_init__(self):
        super().__post_init__()
        if not self.process.masked_only:
            raise ValueError(f"process={self.process}: the wrong tokens are the network's own; mixing must be 0")
        if not min(self.masked_weight, self.own_weight, self.temperature) >= 0:
            raise ValueError(f"masked_weight={self.masked_weight}, own_weight={self.own_weight}, temperature="
                             f"{self.temperature}: must not be negative")
        if self.both or self.confidence:
            raise ValueError("both, confidence: are of rows that are read once; leave them out")

    def train_flops(self, rows: int, length: int) -> int:
        return super().train_flops(rows, length) + self.network_flops(rows, length, rows * length)

    def loss_at(self, trainable, batch, key, rows, u):
        row, tokens = self.noised(batch, key, rows, u), batch["tokens"]
        first, routers = self.run(trainable, batch, row.noisy, row.time, key, rows)
        terms = self.masked_terms(first, tokens, row.draw.masked, self.masked_weight * row.weight)
        shown = jnp.where(row.draw.masked, self.own(first, key, rows).astype(tokens.dtype), tokens)
        second, more = self.run(trainable, batch, shown, row.time, key, rows)
        own = -self.own_weight * self.reduce(second, target=tokens).target
        routers = routers + more
        if routers.loss is not None:
            routers = routers._replace(loss=routers.loss / 2)
        return LossParts.of(scored(batch), *routers, **terms, own=own)

    def own(self, prediction: Prediction, key: jax.Array, rows: jax.Array) -> jax.Array:
        """[B, L] int32: what the network would write at each position."""
        return self.drawn(prediction, key, rows, 0, ("sample",), temperature=self.temperature).sample


@dataclasses.dataclass(frozen=True)
class DMaxBlockObjective(DMaxObjective, BlockObjective):
    """The same for block-causal networks: the noisy stream is read twice, before it the clean blocks."""
