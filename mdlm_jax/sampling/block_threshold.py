"""LLaDA2.0's decoder (arXiv 2512.15745): whatever the network is sure of, but never fewer tokens than the quota."""

import jax
import jax.numpy as jnp

from mdlm_jax.core.draws import Drawn
from mdlm_jax.sampling.confidence import ByConfidence, fraction
from mdlm_jax.sampling.decoder import Look, decoder, take_best

CONFIDENCE = ("sample_log_prob", "law_log_prob")


@decoder
class BlockThreshold(ByConfidence):
    """Reveals the masks whose draw has probability c > threshold where these reach the quota, else the quota's surest.

    The quota of step i of S is q_i = W // S + [i < W mod S]: it spreads the block's W positions, not its masks, over
    the steps of the block, so the block is done in S at most. For block-causal networks and ``cache="block"``, though
    nothing in it needs either. With as many steps as positions it is dInfer's threshold rule (arXiv 2510.08666).

    Attributes:
      threshold: LLaDA2.0: 0.95; 1 keeps to the quota.
      early_stop: a row is done with the block as soon as it holds the end token and no mask before it; masks behind it
        become end tokens. Without, the block is decoded to its end first.

    At a temperature above 0, c is the probability under the law that is drawn from, truncation included.
    """

    threshold: float = 0.95
    early_stop: bool = False

    wants = CONFIDENCE

    def __post_init__(self):
        super().__post_init__()
        fraction("threshold", self.threshold)

    def reveal(self, drawn: Drawn, look: Look) -> jax.Array:
        sure = confidence(drawn, self.temperature)
        length = look.inside.sum(1, dtype=jnp.int32)
        quota = length // look.steps + (look.step < length % look.steps)
        quota = jnp.maximum(quota, look.due)  # more where an opening step wrote one token alone
        return at_least(quota, sure, self.threshold, look.masked)

    def done(self, look: Look, state) -> jax.Array:
        return super().done(look, state) | (jnp.asarray(self.early_stop) & _stopped(look))


def confidence(drawn: Drawn, temperature: jax.Array | float) -> jax.Array:
    """[B, W] float32: the probability of the sample under the law it was drawn from; the model's own at temperature 0.

    ``drawn`` holds the sample and `CONFIDENCE`.
    """
    return jnp.exp(jnp.where(jnp.asarray(temperature) > 0, drawn.law_log_prob, drawn.sample_log_prob))


def at_least(count: jax.Array, sure: jax.Array, threshold, candidates: jax.Array) -> jax.Array:
    """[B, W] bool: the candidates above the threshold if they are ``count`` [B], else the ``count`` surest."""
    high = candidates & (sure > threshold)
    return jnp.where((high.sum(1) >= count)[:, None], high, take_best(sure, candidates, count))


def _stopped(look: Look) -> jax.Array:
    """[B] bool: the stop token is there and no mask before it."""
    stop = look.inside & look.editable & (look.tokens == look.stop_id)
    before = jnp.cumsum(stop, axis=1) == 0
    return stop.any(1) & ~(look.masked & before).any(1)
