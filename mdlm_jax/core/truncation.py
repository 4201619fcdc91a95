"""Sharper draws: temperature, top-k and top-p (nucleus) on logits. Each gives logits back, -inf where a class is out.

They change the law that is sampled, so a figure of quality made with one must say which.
"""

import jax
import jax.numpy as jnp
import numpy as np

_ONE = 0x3F800000  # the bits of float32 1.0; for floats >= 0, order of values is order of bits


def temperature(logits: jax.Array, value: jax.Array | float) -> jax.Array:
    """logits / T, at least float32.

    Args:
      logits: [..., V].
      value: T > 0, a number or an array that broadcasts against logits; may be traced.
    Raises:
      ValueError: T is known and not a positive finite number. Zero means argmax, which is the caller's to take.
    """
    _check(value, "temperature", lambda t: (t > 0) & np.isfinite(t), "must be positive; for 0 take the argmax instead")
    logits = _wide(logits)
    return logits / jnp.asarray(value, logits.dtype)


def top_k(logits: jax.Array, k: int) -> jax.Array:
    """Keeps the k largest logits of each row, exactly k of them: of equal ones those of lower index. At least float32.

    Args:
      logits: [..., V].
      k: a Python int, at least 1; V or more keeps everything.
    """
    if k < 1:
        raise ValueError(f"top_k={k}: must be at least 1")
    logits = _wide(logits)
    size = logits.shape[-1]
    if k >= size:
        return logits
    ordered = jnp.where(logits == 0, 0.0, logits)  # lax.top_k puts -0.0 below 0.0; to us they are equal
    values, indices = jax.lax.top_k(ordered, k)  # equal values come in order of index
    # The last of them by reductions: XLA turns a slice of top_k into a sort of all V (80 times slower on a CPU).
    last = jnp.min(values, axis=-1, keepdims=True)
    last_index = jnp.max(jnp.where(values == last, indices, -1), axis=-1, keepdims=True)
    keep = (ordered > last) | ((ordered == last) & (jnp.arange(size, dtype=indices.dtype) <= last_index))
    return jnp.where(keep, logits, -jnp.inf)


def top_p(logits: jax.Array, p: jax.Array | float, *, keep_crossing: bool = True) -> jax.Array:
    """Nucleus truncation (arXiv 1904.09751) without a sort. At least float32.

    Keeps {i: p_i >= threshold}, so that equal classes are kept or dropped together, and always the most probable one.
    The threshold is found by 30 bisections of the bit pattern of a float32 in [0, 1], each one masked sum over V;
    masses are float32 sums, so a set within about 1e-6 of p may fall on either side.

    Args:
      logits: [..., V].
      p: in (0, 1], a number or an array that broadcasts against [..., 1]; may be traced. 1 keeps everything.
      keep_crossing: True: the smallest such set of mass >= p, so the class that crosses p stays (MD4, Dream, most
        libraries). False: the largest such set of mass <= p, so the class that crosses p goes (ReMDM,
        BD3LM).
    Raises:
      ValueError: p is known and not in (0, 1].
    """
    _check(p, "top_p", lambda x: (x > 0) & (x <= 1), "must lie in (0, 1]; for 0 take the argmax instead")
    logits = _wide(logits)
    peak = jnp.max(logits, axis=-1, keepdims=True)
    weights = jnp.exp(jnp.where(logits == peak, 0.0, logits - peak).astype(jnp.float32))
    total = jnp.sum(weights, axis=-1, keepdims=True)
    p = jnp.asarray(p, jnp.float32)
    allowed = (1.0 - p) * total

    def dropped(bits):
        return jnp.sum(jnp.where(weights < _as_float(bits), weights, 0.0), axis=-1, keepdims=True)

    def halve(_, bounds):
        low, high = bounds
        middle = low + (high - low) // 2
        below = dropped(middle) <= allowed if keep_crossing else dropped(middle) < allowed
        return jnp.where(below, middle, low), jnp.where(below, high, middle)

    low = jnp.zeros(total.shape, jnp.int32)
    high = jnp.full(total.shape, _ONE + keep_crossing, jnp.int32)
    low, high = jax.lax.fori_loop(0, 30, halve, (low, high))
    keep = (weights >= _as_float(low if keep_crossing else high)) | (p >= 1)
    return jnp.where(keep, logits, -jnp.inf)


def _wide(logits: jax.Array) -> jax.Array:
    logits = jnp.asarray(logits)
    return logits.astype(jnp.promote_types(logits.dtype, jnp.float32))


def _as_float(bits: jax.Array) -> jax.Array:
    return jax.lax.bitcast_convert_type(bits, jnp.float32)


def _check(value, name: str, valid, remedy: str) -> None:
    """Refuses a bad value while it is still a value, that is unless it is traced."""
    if not isinstance(value, jax.core.Tracer) and not np.all(valid(np.asarray(value))):
        raise ValueError(f"{name}={value}: {remedy}")
