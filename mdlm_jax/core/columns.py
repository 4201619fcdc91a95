"""Columns of a head, all here or split over a mesh axis: the sums, maxima and ids that need all of them.

Split, inside `jax.shard_map`, each device holds as many columns as every other, in the order of the axis. What comes
out of a sum is the same on all of them.
"""

import dataclasses

import jax
import jax.numpy as jnp


@dataclasses.dataclass(frozen=True)
class Columns:
    """``axis``: the mesh axis that splits them; None: they are all here."""

    axis: str | None = None

    def ids(self, held: int) -> jax.Array:
        """[held] int32, which columns these are."""
        return jnp.arange(held) + (jax.lax.axis_index(self.axis) * held if self.axis else 0)

    def count(self, held: int) -> int:
        return held * (jax.lax.axis_size(self.axis) if self.axis else 1)

    def sum(self, x: jax.Array) -> jax.Array:
        """Over the last axis, and the devices."""
        return jax.lax.psum(x.sum(-1), self.axis) if self.axis else x.sum(-1)

    def max(self, x: jax.Array) -> jax.Array:
        return jax.lax.pmax(x.max(-1), self.axis) if self.axis else x.max(-1)

    def logsumexp(self, x: jax.Array) -> jax.Array:
        if not self.axis:
            return jax.nn.logsumexp(x, axis=-1)
        largest = self.max(x)
        return largest + jnp.log(self.sum(jnp.exp(x - largest[..., None])))

    def at(self, x: jax.Array, ids: jax.Array) -> jax.Array:
        """x[..., ids] by comparison, which partitions over split columns; -inf for ids without a column."""
        return self.max(jnp.where(ids[..., None] == self.ids(x.shape[-1]), x, -jnp.inf))

    def whole_cotangent(self, shares):
        """The cotangent of a result that every device holds: `jax.shard_map` hands each a share."""
        return jax.lax.psum(shares, self.axis) if self.axis else shares


ALL_HERE = Columns()
