"""Attention as plain XLA operations: every backend runs it, and it is what other backends are tested against."""

import jax
import jax.numpy as jnp


def attend(query: jax.Array, key: jax.Array, value: jax.Array, mask: jax.Array | None) -> jax.Array:
    """softmax(q k^T / sqrt(H)) v with grouped key/value heads.

    Heads come before positions in every product, so each is a plain batched matmul. Scores and softmax are float32.

    Args:
      query: [B, Lq, N, H].
      key, value: [B, Lk, K, H], K divides N.
      mask: [B or 1, 1, Lq, Lk] bool, True where a query sees a key; None: everywhere. A query that sees nothing gets
        zeros.
    Returns:
      [B, Lq, N, H] in the dtype of ``query``.
    """
    rows, length, heads, size = query.shape
    groups = heads // key.shape[2]
    wide = jnp.promote_types(query.dtype, jnp.float32)
    q = jnp.moveaxis(query.reshape(rows, length, key.shape[2], groups, size), 1, 3)  # [B, K, N/K, L, H]
    k, v = jnp.swapaxes(key, 1, 2), jnp.swapaxes(value, 1, 2)  # [B, K, L, H]
    scores = jnp.einsum("bkglh,bkmh->bkglm", q, k, preferred_element_type=wide) * size**-0.5
    if mask is not None:
        scores = jnp.where(mask[:, :, None], scores, jnp.finfo(wide).min)
    weights = jax.nn.softmax(scores, axis=-1)
    if mask is not None:
        weights = jnp.where(mask[:, :, None], weights, 0.0)  # of a query that sees nothing too
    weights = weights.astype(query.dtype)
    context = jnp.einsum("bkglm,bkmh->bkglh", weights, v)
    return jnp.moveaxis(context, 3, 1).reshape(rows, length, heads, size)
