"""Hidden Markov chains with any evidence: filter, messages from behind, exact paths and exact conditionals.

A row of L positions has a latent path z of S states and the weight

    w(z) = start(z_1) prod_i step(z_i, z_{i+1}) end(z_L) prod_i v_i(z_i),

where the evidence v_i is what position i says of its state: a token's emission, or the sum over tokens where it is not
known. All arguments are logs, float32. Messages are normalised at every position, so that nothing grows with L; where a
state has less than 1e-38 of the likeliest one's probability it counts as that much.

Rows may be padded and may hold several segments, [B, L] int32 numbers: segment 0 is padding, which the chain passes
over, and where the number changes one chain ends and another begins.
"""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp

from mdlm_jax.core import categorical

_TINY = 1.2e-38  # the smallest normal float32
_EXACT = jax.lax.Precision.HIGHEST


class Chain(NamedTuple):
    """log start [S], log step [S, S] (from, to) and log end [S]; the first two sum to one, the end is any weight."""

    start: jax.Array
    step: jax.Array
    end: jax.Array


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Places:
    """[B, L] bool each: positions of a chain, and its first and last ones."""

    real: jax.Array
    first: jax.Array
    last: jax.Array


def places(segment: jax.Array) -> Places:
    """Of segments [B, L] int32; of padding between two parts of a segment nothing is seen."""
    real = segment > 0
    return Places(real, real & (_before(segment) != segment), real & (_before(segment[:, ::-1])[:, ::-1] != segment))


def _before(segment: jax.Array) -> jax.Array:
    """[B, L]: the number of the nearest real position to the left; 0: none."""
    def step(last, now):
        return jnp.where(now > 0, now, last), last

    return jax.lax.scan(step, jnp.zeros_like(segment[:, 0]), segment.T)[1].T


def ended(chain: Chain, at: Places, evidence: jax.Array) -> jax.Array:
    """The evidence [B, L, S] with the weight of an end at the last position of every chain: what the others take."""
    return evidence + jnp.where(at.last[..., None], chain.end, 0.0)


def filtered(chain: Chain, at: Places, evidence: jax.Array) -> tuple[jax.Array, jax.Array]:
    """What is known of each state from the left.

    Args:
      evidence: [B, L, S], of `ended`.
    Returns:
      (predicted, log_total): log p(z_i | evidence before i) [B, L, S], and log p(evidence at i | evidence before)
      [B, L], whose sum over a row is the log of the sum of w over all paths; 0 at padding.
    """
    def step(known, now):
        (real, first), said = now
        predicted = jnp.where(first[:, None], chain.start, _forward(chain, known))
        after = predicted + said
        total = jax.nn.logsumexp(after, axis=-1)
        after = jnp.where(real[:, None], after - total[:, None], known)
        return after, (predicted, jnp.where(real, total, 0.0))

    known = jnp.broadcast_to(chain.start, evidence[:, 0].shape)
    flags = (at.real.T, at.first.T)
    predicted, total = jax.lax.scan(step, known, (flags, jnp.moveaxis(evidence, 1, 0)))[1]
    return jnp.moveaxis(predicted, 0, 1), total.T


def behind(chain: Chain, at: Places, evidence: jax.Array) -> jax.Array:
    """[B, L, S]: log p(evidence after i | z_i), up to a number of each position: the largest is 0."""
    def step(message, now):
        (real, first), said = now
        back = jnp.where(first[:, None], 0.0, _backward(chain, message + said))
        return jnp.where(real[:, None], back, message), message

    flags = (at.real.T, at.first.T)
    none = jnp.zeros_like(evidence[:, 0])
    return jnp.moveaxis(jax.lax.scan(step, none, (flags, jnp.moveaxis(evidence, 1, 0)), reverse=True)[1], 0, 1)


def conditional(predicted: jax.Array, evidence: jax.Array, clamped: jax.Array, after: jax.Array) -> jax.Array:
    """[B, L]: log of the share that ``clamped`` has of ``evidence`` at i, given all before and what is behind.

    Summed over a row it is log sum_z w(z; clamped) - log sum_z w(z; evidence), by the chain rule; where the two
    evidences are equal it is 0.

    Args:
      predicted: of `filtered` with the evidence ``clamped`` [B, L, S]. after: of `behind` with ``evidence`` [B, L, S].
    """
    around = predicted + after
    return jax.nn.logsumexp(around + clamped, axis=-1) - jax.nn.logsumexp(around + evidence, axis=-1)


def path(chain: Chain, at: Places, known: jax.Array, keys: jax.Array, greedy: jax.Array | bool = False) -> jax.Array:
    """[B, L] int32, a path drawn with probability w(z) / sum w, from the right to the left; 0 at padding.

    Args:
      known: [B, L, S], log p(z_i | evidence up to i): predicted plus evidence of `filtered`, up to a number.
      keys: [B, L], one a position.
      greedy: take the likeliest state in place of each draw.
    """
    def step(link, now):
        (real, first), known, keys = now
        law = known + link
        drawn = jax.vmap(categorical.categorical)(keys, law)
        drawn = jnp.where(greedy, jnp.argmax(law, axis=-1), drawn).astype(jnp.int32)
        linked = jnp.where(first[:, None], 0.0, chain.step.T[drawn])
        return jnp.where(real[:, None], linked, link), jnp.where(real, drawn, 0)

    flags = (at.real.T, at.first.T)
    none = jnp.zeros_like(known[:, 0])
    return jax.lax.scan(step, none, (flags, jnp.moveaxis(known, 1, 0), keys.T), reverse=True)[1].T


def _forward(chain: Chain, known: jax.Array) -> jax.Array:
    return _log(jnp.matmul(jnp.exp(known), jnp.exp(chain.step), precision=_EXACT))


def _backward(chain: Chain, message: jax.Array) -> jax.Array:
    """The largest is 0."""
    message = message - jax.lax.stop_gradient(message.max(-1, keepdims=True))
    back = _log(jnp.matmul(jnp.exp(message), jnp.exp(chain.step).T, precision=_EXACT))
    return back - jax.lax.stop_gradient(back.max(-1, keepdims=True))


def _log(x: jax.Array) -> jax.Array:
    return jnp.log(jnp.maximum(x, _TINY))
