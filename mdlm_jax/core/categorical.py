"""Exact random draws in float32: exponential, Gumbel, Bernoulli, categorical.

A rare class wins a Gumbel-max draw only with a uniform very near 1, where float32 has no resolution: `jax.random`'s
default Gumbel ends at 15.94, so classes below 1e-7 of the winner are under-drawn and, in a masked process, confident
positions unmask first (arXiv 2409.02908). Here the race is run on exponentials whose *small* end is the finely resolved
one, from two 32-bit words, so nothing wider than float32 is needed. Large vocabularies race in two levels: blocks
first, then the classes of the winning block. That is the same law from V/256 + 256 random numbers instead of V.

Reverse steps should draw *whether* a position moves (`bernoulli`) apart from *what* it becomes (`categorical`).
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp

BLOCK = 256  # classes that race together on the second level
TWO_LEVEL_FROM = 512  # smallest vocabulary for which two levels are the faster ones


def exponential(key: jax.Array, shape: Sequence[int]) -> jax.Array:
    """Exp(1) draws, float32 [*shape], in [2^-65, 16.64].

    E = -log(1 - x) with x = (high + (low + 1/2) / 2^32) / 2^32 from two uint32 words, rounded to float32: the relative
    precision is 2^-24 all the way down to 2^-65. Draws above 16.64 (probability 6e-8) are cut to it, which touches
    only losers of a race.
    """
    bits = jax.random.bits(key, (2, *shape), jnp.uint32)
    high, low = bits[0].astype(jnp.float32), bits[1].astype(jnp.float32)
    uniform = (high + (low + 0.5) * 2.0**-32) * 2.0**-32
    return -jnp.log1p(-jnp.minimum(uniform, 1.0 - 2.0**-24))


def gumbel(key: jax.Array, shape: Sequence[int]) -> jax.Array:
    """Standard Gumbel draws, float32 [*shape], in [-2.81, 45.05]: minus the log of `exponential`."""
    return -jnp.log(exponential(key, shape))


def bernoulli(key: jax.Array, p: jax.Array | float, shape: Sequence[int] | None = None) -> jax.Array:
    """True with probability p, bool [*shape].

    Compares a 64-bit uniform integer, held as two words, with p 2^64. A float32 p is met exactly down to 2^-41 and
    to within 2^-64 below; `jax.random.bernoulli` is exact to 2^-23 only.

    Args:
      p: probabilities in [0, 1], any shape that broadcasts to ``shape``; narrower floats are widened to float32
        first. 0 never and 1 always happens. Values outside [0, 1] count as the nearer end, NaN as 0.
      shape: of the result; None: the shape of p.
    """
    p = jnp.asarray(p)
    p = p.astype(jnp.promote_types(p.dtype, jnp.float32))
    shape = p.shape if shape is None else tuple(shape)
    if len(p.shape) > len(shape) or any(a not in (1, b) for a, b in zip(p.shape[::-1], shape[::-1], strict=False)):
        raise ValueError(f"p: has shape {p.shape}; it must broadcast to {shape}")
    scaled = jnp.where((p > 0) & (p < 1), p, 0.0) * 2.0**32
    whole = jnp.floor(scaled)
    high = whole.astype(jnp.uint32)
    low = ((scaled - whole) * 2.0**32).astype(jnp.uint32)
    bits = jax.random.bits(key, (2, *shape), jnp.uint32)
    return (bits[0] < high) | ((bits[0] == high) & (bits[1] < low)) | (p >= 1)


def categorical(key: jax.Array, logits: jax.Array, axis: int = -1) -> jax.Array:
    """Draws class i with probability softmax(logits)_i, one draw for each of the other axes.

    argmin_i E_i / exp(logits_i) with E_i ~ Exp(1). The result depends on ``key`` and on the whole shape of ``logits``;
    for rows that do not depend on their batch, vmap over one key a row.

    Args:
      key: a typed key.
      logits: floats of any width, [..., V]; made float32 before anything else. -inf is an impossible class. If some
        logits are +inf the draw is among them. If all are -inf, or one is NaN, the result is meaningless.
      axis: the axis of the classes.
    Returns:
      int32 ids, the shape of ``logits`` without ``axis``.
    Raises:
      TypeError: logits are not floats.
      ValueError: there are no classes.
    """
    logits = jnp.asarray(logits)
    if not jnp.issubdtype(logits.dtype, jnp.floating):
        raise TypeError(f"logits: are {logits.dtype} and must be floats; convert them, or take jnp.log of "
                        "probabilities")
    logits = jnp.moveaxis(logits, axis, -1)
    if logits.shape[-1] == 0:
        raise ValueError(f"logits: of shape {logits.shape} have no classes to draw from; give one at least")
    if logits.shape[-1] < TWO_LEVEL_FROM:
        return _race(key, _weights(logits))
    return _two_level_race(key, logits)


def _weights(logits: jax.Array) -> jax.Array:
    """Float32 exp(logits), scaled so that the largest is 1, also when it is infinite."""
    logits = logits.astype(jnp.float32)
    peak = jnp.max(logits, axis=-1, keepdims=True)
    return jnp.exp(jnp.where(logits == peak, 0.0, logits - peak))


def _race(key: jax.Array, weights: jax.Array) -> jax.Array:
    """Index of the first arrival when class i arrives at rate weights_i; int32, last axis gone."""
    arrivals = exponential(key, weights.shape) / weights
    return jax.lax.argmin(arrivals, arrivals.ndim - 1, jnp.int32)


def _two_level_race(key: jax.Array, logits: jax.Array) -> jax.Array:
    """Races the masses of blocks of `BLOCK` classes, then the classes inside the winner."""
    size = logits.shape[-1]
    blocks = -(-size // BLOCK)
    padding = [(0, 0)] * (logits.ndim - 1) + [(0, blocks * BLOCK - size)]
    weights = jnp.pad(_weights(logits), padding)
    masses = weights.reshape(*logits.shape[:-1], blocks, BLOCK).sum(-1)
    first = BLOCK * _race(jax.random.fold_in(key, 0), masses)

    def take(row, start):
        return jax.lax.dynamic_slice_in_dim(row, start, BLOCK)

    for _ in range(logits.ndim - 1):
        take = jax.vmap(take)
    # The last block may be short: its slice starts early and the classes before the block are shut out.
    start = jnp.minimum(first, size - BLOCK)
    ids = start[..., None] + jnp.arange(BLOCK, dtype=jnp.int32)
    inside = jnp.where(ids >= first[..., None], take(logits, start), -jnp.inf)
    return start + _race(jax.random.fold_in(key, 1), _weights(inside))
