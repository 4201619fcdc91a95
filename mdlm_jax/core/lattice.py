"""The recursive binary lattice (arXiv 2504.20456): given tokens first, then the others from left to right.

One order for each set of given tokens, 2^L in all, in place of one for each permutation, so that a network which learns
the law of any token given any others learns it from one order alone.
"""

import jax
import jax.numpy as jnp

from mdlm_jax.core import counts


def order(targets: jax.Array) -> jax.Array:
    """[B, L] int32: 0 for what is given, all of which sees itself, and 1, 2, ... for ``targets`` [B, L] bool."""
    return jnp.where(targets, jnp.cumsum(targets, axis=1), 0).astype(jnp.int32)


def targets(keys: jax.Array, share: jax.Array, noise_mask: jax.Array) -> jax.Array:
    """[B, L] bool: ``noise_mask`` without a prompt of floor(share L_i) of its L_i positions, uniformly chosen.

    Args:
      keys: [B], one a row. share: [B] in [0, 1]; at least one position stays a target.
    """
    eligible = noise_mask.sum(1, dtype=jnp.int32)
    count = jnp.minimum(jnp.floor(share * eligible).astype(jnp.int32), eligible - 1)
    return noise_mask & (counts.random_ranks(keys, noise_mask) >= count[:, None])
