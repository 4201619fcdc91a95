"""LoPA (arXiv 2512.16229): of several canvases that a step might lead to, the one goes on that makes the next surest.

All of them are in one forward, a row each: see `sampling.copies`.
"""

import dataclasses
from typing import Self

import jax
import jax.numpy as jnp

from mdlm_jax.core.prediction import Prediction
from mdlm_jax.models.denoise import Call
from mdlm_jax.sampling import copies
from mdlm_jax.sampling.confidence import fraction
from mdlm_jax.sampling.decoder import Look, Move, Plan, check, decoder, ranks, static
from mdlm_jax.sampling.threshold import Threshold


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Branches:
    """``windows`` [B, b, W] int32; ``sureness`` [B, b] float32, of the token by which each differs; -1: none."""

    windows: jax.Array
    sureness: jax.Array


@decoder
class LoPA(Threshold):
    """What `Threshold` writes is the anchor, and b branches write one further mask each, the b surest. The next forward
    runs on all of them; the best goes on, and from its law `Threshold` writes again.

    The best has the largest alpha c + (1 - alpha) f, c the probability that its own token had, 1 for the anchor, and f
    the mean of the ``lowest`` share (rounded down, at least one) of max_v p_i(v) at the masks i it has left in the
    block, 1 where it has none. Of equal ones a branch comes before the anchor, and the surest first.

    The paper's value is alpha = 0, lowest = 1; its code has 0.5 and 0.5 unless told otherwise. That takes the
    probability of what was drawn, here it is the largest, as `Threshold` has it: at temperature 0 they are the same.
    Blocks come one after another, where the paper opens several (D2F).

    Attributes:
      branches: b; 0 is `Threshold` itself.
      alpha, lowest: of the value.
    """

    branches: int = static(3)
    alpha: float = 0.5
    lowest: float = 0.5

    scorable = False

    def __post_init__(self):
        super().__post_init__()
        check("branches", self.branches, lambda n: n >= 0 and n == int(n), "must be a whole number, 0 or more")
        fraction("alpha", self.alpha)
        fraction("lowest", self.lowest)

    @property
    def copies(self) -> int:
        return self.branches + 1

    def check(self, call: Plan) -> None:
        copies.check_whole(self, call)

    def one_by_one(self) -> Self:
        return dataclasses.replace(super().one_by_one(), branches=0)

    def begin(self, look: Look, hidden) -> Branches:
        """There are none yet."""
        del hidden
        rows, width = look.tokens.shape
        return Branches(jnp.broadcast_to(look.tokens[:, None], (rows, self.branches, width)),
                        jnp.full((rows, self.branches), -1.0))

    def inputs(self, call: Call, look: Look, state: Branches) -> Call:
        return copies.asked(call, look, _shown(look, state))

    def update(self, prediction: Prediction, look: Look, state: Branches) -> tuple[Move, Branches]:
        each, number = copies.looked_at(look, _shown(look, state)), self.copies
        drawn = self.draw(prediction, each, ("sample", "top_log_prob"), where=each.masked)
        sure = jnp.exp(drawn.top_log_prob)
        future = copies.of_rows(lowest_mean(sure, each.masked, self.lowest), number)
        own = jnp.concatenate([state.sureness, jnp.ones((len(future), 1))], axis=1)
        value = jnp.where(own < 0, -1.0, self.alpha * own + (1 - self.alpha) * future)
        best = jnp.argmax(value, axis=1)
        write, sample, before, masked, sure = (copies.chosen(copies.of_rows(x, number), best) for x in (
            self.reveal(drawn, each), drawn.sample, each.tokens, each.masked, sure))
        after = jnp.where(write, sample, before)
        return Move(after != look.tokens, after), self._branched(after, sample, sure, masked & ~write)

    def _branched(self, after: jax.Array, sample: jax.Array, sure: jax.Array, left: jax.Array) -> Branches:
        """``after`` [B, W] with one more mask of those ``left`` written, the surest in the first branch."""
        own = left[:, None] & (ranks(sure, left)[:, None] == jnp.arange(self.branches)[:, None])
        windows = jnp.where(own, sample[:, None], after[:, None])
        return Branches(windows.astype(jnp.int32), jnp.where(own, sure[:, None], -1.0).max(-1))


def lowest_mean(sure: jax.Array, masked: jax.Array, share: float | jax.Array) -> jax.Array:
    """[B]: the mean of the ``share`` of ``sure`` [B, W] that is lowest where ``masked``, at least of one; 1 of none."""
    masks = masked.sum(1)
    count = jnp.maximum(jnp.floor(share * masks).astype(jnp.int32), 1)
    taken = masked & (ranks(-sure, masked) < count[:, None])
    mean = jnp.where(taken, sure, 0.0).sum(1) / count
    return jnp.where(masks > 0, mean, 1.0)


def _shown(look: Look, state: Branches) -> jax.Array:
    """[B, b + 1, W]: the branches, and the anchor."""
    return jnp.concatenate([state.windows, look.tokens[:, None]], axis=1)
