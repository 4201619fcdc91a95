"""Speculative sampling (arXiv 2302.01318): a draft x of one law, q, becomes a draw of another, p.

It is kept with probability min(1, p(x) / q(x)), and otherwise replaced by a draw from (p - q)+.
"""

import jax
import jax.numpy as jnp

from mdlm_jax.core import categorical


def log_law(logits: jax.Array, temperature: jax.Array | float) -> jax.Array:
    """[B, V] log-probabilities of what is drawn from logits [B, V]; at temperature 0 all of it on the argmax."""
    surest = jnp.where(jnp.arange(logits.shape[-1]) == logits.argmax(-1)[:, None], 0.0, -jnp.inf)
    return jnp.where(jnp.asarray(temperature) > 0, jax.nn.log_softmax(logits), surest)


def rest(p: jax.Array, q: jax.Array, keys: jax.Array) -> jax.Array:
    """[B] draws from (p - q)+ of log laws [B, V]; where rounding leaves nothing of it, from p."""
    left = jnp.maximum(jnp.exp(p) - jnp.exp(q), 0.0)
    logits = jnp.where(left > 0, jnp.log(jnp.where(left > 0, left, 1.0)), -jnp.inf)
    return jax.vmap(categorical.categorical)(keys, jnp.where((left > 0).any(-1, keepdims=True), logits, p))
