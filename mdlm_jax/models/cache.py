"""Key/value caches: a pytree that `api.forward` reads and returns, never changes in place.

A window of tokens is run against the cache: its keys and values are written at slots [start, start + L) of a new cache,
and each query sees every filled slot that its attention contract allows, its own window included. Tokens that do not
stand in a row are written at slots of their own, [B, L]; those beyond the last are padding and dropped. Keeping the
returned cache commits the window; dropping it leaves the window a draft. That gives block decoding (commit a finished
block), prefix caches (clear what lies behind the prefix, run the rest) and dual caches (overwrite a block among stale
keys).
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import AbstractMesh, Mesh, NamedSharding, PartitionSpec

from mdlm_jax.models.config import TransformerConfig
from mdlm_jax.models.sharding import BATCH_AXES


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Cache:
    """Keys after rotation and values of all layers.

    Attributes:
      key, value: [layers, B, S, K, H] in the compute dtype.
      segment: [B, S] int32; 0: the slot is empty, nothing sees it.
      order: [B, S] int32, what causal contracts compare: the index of the slot's token in its row.
    """

    key: jax.Array
    value: jax.Array
    segment: jax.Array
    order: jax.Array

    @property
    def slots(self) -> int:
        return self.segment.shape[1]

    def keep(self, filled: jax.Array) -> "Cache":
        """The same cache with the slots emptied where ``filled`` [B, S] or [S] is False."""
        return dataclasses.replace(self, segment=jnp.where(filled, self.segment, 0))


def empty(config: TransformerConfig, rows: int, slots: int) -> Cache:
    """A cache for ``rows`` rows of at most ``slots`` tokens, with nothing in it."""
    shape = (config.layers, rows, slots, config.kv_heads, config.head_dim)
    dtype = jnp.dtype(config.dtype)  # an array each: a loop gives their memory away
    return Cache(jnp.zeros(shape, dtype), jnp.zeros(shape, dtype), *(jnp.zeros((rows, slots), jnp.int32) for _ in "so"))


def shardings(config: TransformerConfig, mesh: Mesh) -> Cache:
    """The cache's layout: rows as those of a batch, heads over tensor where it divides them, slots whole."""
    rows: Any = NamedSharding(mesh, PartitionSpec(BATCH_AXES))
    keys: Any = NamedSharding(mesh, PartitionSpec(None, *_layer(mesh, config.kv_heads)))
    return Cache(keys, keys, rows, rows)


def constrain_layer(slots: jax.Array) -> jax.Array:
    """One layer's keys or values [B, S, K, H], laid out as `shardings` says where a mesh is set."""
    mesh = jax.sharding.get_abstract_mesh()
    return slots if mesh.empty else jax.lax.with_sharding_constraint(slots, _layer(mesh, slots.shape[2]))


def constrained(cache: Cache) -> Cache:
    """The whole cache laid out as `shardings` says where a mesh is set."""
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty:
        return cache
    keys: Any = PartitionSpec(None, *_layer(mesh, cache.key.shape[3]))  # specs in the places of arrays
    rows: Any = PartitionSpec(BATCH_AXES)
    return jax.tree.map(jax.lax.with_sharding_constraint, cache, Cache(keys, keys, rows, rows))


def _layer(mesh: Mesh | AbstractMesh, heads: int) -> PartitionSpec:
    return PartitionSpec(BATCH_AXES, None, "tensor" if heads % mesh.shape["tensor"] == 0 else None)


def write(slots: jax.Array, window: jax.Array, start: jax.Array) -> jax.Array:
    """``window`` [B, L, ...] put at [start, start + L) of ``slots`` [B, S, ...]; start [] or [B], one a row.

    start [B, L]: a slot for each token; those beyond the last are dropped.
    """
    if start.ndim == 0:
        index = (0, start) + (0,) * (slots.ndim - 2)
        return jax.lax.dynamic_update_slice(slots, window.astype(slots.dtype), index)
    if start.ndim == 2:
        put = jax.vmap(lambda row, new, at: row.at[at].set(new, mode="drop"))
        return put(slots, window.astype(slots.dtype), start)
    return jax.vmap(write_row)(slots, window.astype(slots.dtype), start)


def write_row(slots: jax.Array, window: jax.Array, start: jax.Array) -> jax.Array:
    return jax.lax.dynamic_update_slice(slots, window, (start,) + (0,) * (slots.ndim - 1))
