"""Work along the length in chunks, so that one chunk's logits are alive at a time. Rows, often sharded, stay whole."""

import jax
import jax.numpy as jnp


def over_chunks(function, pieces, length: int, chunk: int):
    """``function`` on [B, chunk, ...] slices of ``pieces``, results joined to [B, L, ...]."""
    return scan_chunks(lambda carry, piece: (carry, function(piece)), None, pieces, length, chunk)[1]


def scan_chunks(function, carry, pieces, length: int, chunk: int):
    """``carry, results = function(carry, slices)`` chunk after chunk; the last one is filled up with zeros.

    Chunks are at most ``chunk`` long and all alike: a length just above it makes two halves, not two whole ones.
    """
    if chunk >= length:
        return function(carry, pieces)
    chunk = even(length, chunk)
    carry, joined = jax.lax.scan(function, carry, jax.tree.map(lambda x: _split(x, chunk), pieces))
    return carry, jax.tree.map(lambda x: _join(x, length), joined)


def even(length: int, chunk: int) -> int:
    """The shortest chunk that needs no more turns than ``chunk``, in whole eights where those still fit."""
    shortest = -(-length // -(-length // chunk))
    return min(chunk, -(-shortest // 8) * 8)


def _split(x: jax.Array, chunk: int) -> jax.Array:
    """[B, L, ...] -> [number of chunks, B, chunk, ...]."""
    rows, length = x.shape[:2]
    count = -(-length // chunk)
    padded = jnp.pad(x, [(0, 0), (0, count * chunk - length)] + [(0, 0)] * (x.ndim - 2))
    return jnp.moveaxis(padded.reshape(rows, count, chunk, *x.shape[2:]), 1, 0)


def _join(x: jax.Array, length: int) -> jax.Array:
    """The inverse of `_split`."""
    count, rows, chunk = x.shape[:3]
    return jnp.moveaxis(x, 0, 1).reshape(rows, count * chunk, *x.shape[3:])[:, :length]
