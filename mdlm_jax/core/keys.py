"""Keys for noise that belongs to an example, not to a batch, a host or a microbatch."""

import jax
import jax.numpy as jnp


def row_keys(key: jax.Array, rows: jax.Array) -> jax.Array:
    """One key a row: ``fold_in(key, row)``.

    Args:
      key: the step's key, ``fold_in(seed key, step)``.
      rows: [B] int, indices of the rows in the step's global batch, so that microbatches and hosts see the same noise
        as one big batch would.
    Examples:
      >>> keys = row_keys(jax.random.key(0), jnp.arange(4))
      >>> keys.shape, bool((row_keys(jax.random.key(0), jnp.array([2]))[0] == keys[2]))
      ((4,), True)
    """
    return jax.vmap(jax.random.fold_in, in_axes=(None, 0))(key, rows.astype(jnp.uint32))
