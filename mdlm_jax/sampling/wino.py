"""WINO, wide in, narrow out (arXiv 2507.18578): much is drafted, and what the rest then makes doubtful is masked again.

A token that the network sees is not in doubt, so shadows score it: beside the canvas runs a second block of masks in
the same places, each of which sees all but the token in its own (`models.attention.visibility`). A forward is of so
many positions more.
"""

import dataclasses

import jax
import jax.numpy as jnp

from mdlm_jax.core.prediction import Prediction
from mdlm_jax.models.denoise import Call
from mdlm_jax.sampling.confidence import ByConfidence, fraction
from mdlm_jax.sampling.decoder import Look, Move, Plan, check, decoder, take_best


@decoder
class WINO(ByConfidence):
    """Every step writes the masks of the block whose draw has a probability above ``threshold``, and masks again those
    tokens of the block to which their shadow gives less than ``keep``.

    Of m masks at least the surest and at most the max(floor(share m), least) surest are written, and never more than
    ``most``. Where one alone is written none is masked again; else fewer than the step before wrote, the most doubtful.

    So a block of n masks takes n forwards at most: with w_t written and r_t masked again, r_1 = 0 and r_t < w_{t-1},
    so that n - w_1 + (r_2 - w_2) + ... + (r_T - w_T) <= n - T masks are left after T steps. It takes no ``steps``.

    Shadows see each other, as in the published code, and through other tokens, which see it, a token's own still
    reaches its shadow behind the first layer: p(x_i | all but x_i) approximately, and exactly in no deeper network.
    Where the published code decodes prompts, canvases here may have tokens in a block that are given: they have no
    shadow and stay, and in the first step so do those that were there to be edited.

    Attributes:
      threshold: to write; 0 is ``most`` at once.
      keep: to stay; 0 masks nothing again.
      share, least, most: bounds of how many are written at once.
    """

    threshold: float = 0.6
    keep: float = 0.9
    share: float = 0.7
    least: int = 5
    most: int = 20

    reads_steps = False
    reads_masks = False

    def __post_init__(self):
        super().__post_init__()
        for name in ("threshold", "keep", "share"):
            fraction(name, getattr(self, name))
        check("least", self.least, lambda n: n >= 1, "must be at least 1, or masks may stay")
        check("most", self.most, lambda n: n >= 1, "must be at least 1, or masks may stay")

    def check(self, call: Plan) -> None:
        if call.cache != "none":
            raise ValueError(f"cache={call.cache!r}: shadows see whole rows, and a cache has no place for them; use "
                             "cache='none'")
        if call.contract not in ("bidirectional", "block_causal"):
            raise ValueError(f"decoder: WINO doubts tokens for what is written after them, which this {call.contract} "
                             "network never sees; take a decoder that goes by confidence")
        if call.pooled or call.backend == "splash":
            what = "shares pools of experts (moe.block)" if call.pooled else "attends by backend='splash'"
            raise ValueError(f"decoder: WINO runs on shadows of tokens, which a network that {what} cannot have; take "
                             "a decoder that goes by confidence")
        if call.shifted:
            raise ValueError("decoder: WINO scores tokens by shadows in their own place, and this network (Dream) "
                             "scores a token in the place before; take threshold or klass")

    def shadows(self, block: int) -> int:
        return block

    def begin(self, look: Look, hidden) -> jax.Array:
        """The state, [B] int32: how many tokens the last step wrote."""
        del hidden
        return jnp.ones_like(look.step)

    def inputs(self, call: Call, look: Look, state) -> Call:
        del state
        shadows = jnp.full_like(look.tokens, self.mask_id)
        return dataclasses.replace(call, tokens=jnp.concatenate([call.tokens, shadows], axis=1),
                                   shadow=jnp.where(look.editable, look.index, -1))

    def update(self, prediction: Prediction, look: Look, state: jax.Array) -> tuple[Move, jax.Array]:
        tokens, shadows = (dataclasses.replace(prediction, hidden=hidden)
                           for hidden in jnp.split(prediction.hidden, [look.tokens.shape[1]], axis=1))
        drawn = self.draw(tokens, look, ("sample", "sample_log_prob"), where=look.masked)
        write = self._written(drawn.sample_log_prob, look.masked)
        number = write.sum(1, dtype=jnp.int32)
        there = look.editable & ~look.masked
        again = self.draw(shadows, look, (), where=there, current=look.tokens).current_log_prob
        doubtful = there & (jnp.exp(again) < self.keep)
        remask = take_best(-again, doubtful, jnp.where(number > 1, state - 1, 0))
        return Move(write, drawn.sample, remask=remask), number

    def _written(self, log_prob: jax.Array, masked: jax.Array) -> jax.Array:
        """[B, W] bool: the masks to write."""
        sure = (masked & (jnp.exp(log_prob) > self.threshold)).sum(1)
        most = jnp.floor(self.share * masked.sum(1)).astype(jnp.int32)
        most = jnp.minimum(jnp.maximum(most, self.least), self.most)
        return take_best(log_prob, masked, jnp.clip(sure, 1, most))

    def limit(self, steps: jax.Array, block_length: int) -> int:
        del steps
        return block_length
