"""KLASS (arXiv 2511.05664): what is sure and has stopped moving is revealed at once."""

import dataclasses

import jax
import jax.numpy as jnp

from mdlm_jax.core.draws import enough, over_wanted
from mdlm_jax.core.reduction import chunk_length, reduce
from mdlm_jax.sampling.confidence import ByConfidence, fraction, opened
from mdlm_jax.sampling.decoder import Look, Move, check, decoder, take_best


@decoder
class KLASS(ByConfidence):
    """Reveals the masks of the block with max p_t > threshold and the last KL(p_t || p_{t-1}) below kl_threshold.

    p_t is the network's law at a position in the block's step t. Where no mask is ready, the quota of the surest is
    revealed. The state keeps the hidden states of the step before, not its probabilities.

    A block's history begins with it: nothing is ready in its first ``history`` steps. (The published code keeps p over
    the whole canvas, so that later blocks can be ready a step earlier.)

    Attributes:
      threshold: 0.6 for LLaDA on GSM8K and MATH, 0.9 on code and for Dream.
      kl_threshold: nats; 0.015 for LLaDA on GSM8K, 0.01 elsewhere, 0.001 for Dream.
      history: how many of the last steps must have moved so little; 1 or more.
    """

    threshold: float = 0.9
    kl_threshold: float = 0.01
    history: int = 2

    scorable = True
    remembers = True

    def __post_init__(self):
        super().__post_init__()
        fraction("threshold", self.threshold)
        check("kl_threshold", self.kl_threshold, lambda x: x >= 0, "must be 0 or positive")
        check("history", self.history, lambda n: n >= 1 and n == int(n), "must be a whole number of steps, at least 1")

    def one_by_one(self) -> "KLASS":
        return dataclasses.replace(self, threshold=1.0)

    def begin(self, look: Look, hidden: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Hidden states [B, W, D] of the step before, and int32 [B, W], for how many steps a position has been calm."""
        return hidden, jnp.zeros(look.tokens.shape, jnp.int32)

    def update(self, prediction, look: Look, state) -> tuple[Move, tuple[jax.Array, jax.Array]]:
        before, calm = state
        drawn = self.draw(prediction, look, ("sample", "top_log_prob"), where=look.masked)
        moved = self._moved(prediction, before, look)
        calm = jnp.where((moved < self.kl_threshold) & (look.step > 0)[:, None], calm + 1, 0)
        ready = look.masked & (jnp.exp(drawn.top_log_prob) > self.threshold) & (calm >= self.history)
        others = take_best(drawn.top_log_prob, look.masked, jnp.maximum(jnp.maximum(look.quota, look.due), 1))
        write = jnp.where(ready.any(1, keepdims=True), ready, others)
        move = opened(Move(write, drawn.sample, log_prob=drawn.law_log_prob), look)
        return move, (prediction.hidden.astype(before.dtype), calm)

    def _moved(self, prediction, before: jax.Array, look: Look) -> jax.Array:
        """[B, W] float32: KL(p_t || p_{t-1}) at the masks, in nats; 0 elsewhere."""
        def kl(pieces):
            now, then = (dataclasses.replace(prediction, hidden=hidden) for hidden in pieces)
            return reduce(now, suppress=self.suppressed, teacher=then, reverse_kl=True).kl

        rows, width = look.tokens.shape
        chunk = min(width, enough(rows), chunk_length(rows, 2 * prediction.logits_held, self.head_budget))
        return over_wanted(kl, (prediction.hidden, before), look.masked, chunk)
