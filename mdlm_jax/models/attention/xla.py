"""Attention as plain XLA operations: every backend runs it, and it is what other backends are tested against."""

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name


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
    q = jnp.moveaxis(query.reshape(rows, length, key.shape[2], groups, size), 1, 3)  # [B, K, N/K, L, H]
    k, v = jnp.swapaxes(key, 1, 2), jnp.swapaxes(value, 1, 2)  # [B, K, L, H]
    context = _context(q, k, v, mask)
    return jnp.moveaxis(context, 3, 1).reshape(rows, length, heads, size)


def _weights(q, k, mask):
    """[B, K, N/K, Lq, Lk], in the dtype of q."""
    wide = jnp.promote_types(q.dtype, jnp.float32)
    scores = jnp.einsum("bkglh,bkmh->bkglm", q, k, preferred_element_type=wide) * q.shape[-1] ** -0.5
    if mask is not None:
        scores = jnp.where(mask[:, :, None], scores, jnp.finfo(wide).min)
    largest = scores.max(-1, keepdims=True)
    terms = jnp.exp(scores - largest)
    factor = 1.0 / terms.sum(-1, keepdims=True)
    if mask is not None:
        factor = jnp.where(largest > jnp.finfo(wide).min, factor, 0.0)  # of a query that sees nothing
    return (terms * factor).astype(q.dtype)


@jax.custom_vjp
def _context(q, k, v, mask):
    return jnp.einsum("bkglm,bkmh->bkglh", _weights(q, k, mask), v)


def _context_forward(q, k, v, mask):
    weights = checkpoint_name(_weights(q, k, mask), "context")
    context = checkpoint_name(jnp.einsum("bkglm,bkmh->bkglh", weights, v), "context")
    return context, (q, k, v, weights, context)


def _context_backward(saved, grad):
    """With W the weights and G the gradient of W v: dv = W^T G, and of the scores W (G v^T - rowsum(G (W v))).

    Differentiating the softmax step by step passes over the [Lq, Lk] arrays several times more (1.5 times the time of
    the whole branch on CPU) and keeps several of them.
    """
    q, k, v, weights, context = saved
    wide = jnp.promote_types(q.dtype, jnp.float32)
    mean = (grad.astype(wide) * context.astype(wide)).sum(-1, keepdims=True)
    on_weights = jnp.einsum("bkglh,bkmh->bkglm", grad, v, preferred_element_type=wide)
    on_scores = (weights * (on_weights - mean)).astype(q.dtype)
    scale = q.shape[-1] ** -0.5
    return (
        jnp.einsum("bkglm,bkmh->bkglh", on_scores, k) * scale,
        jnp.einsum("bkglm,bkglh->bkmh", on_scores, q) * scale,
        jnp.einsum("bkglm,bkglh->bkmh", weights, grad),
        None,
    )


_context.defvjp(_context_forward, _context_backward)
