"""x @ W for a weight split over devices: gathered over fsdp for the product, its gradient scattered back.

For the gradient each device multiplies its own tokens, the products are reduce-scattered over fsdp, and each device's
share is summed over the axes that split tokens besides. That is written out in `jax.shard_map`, because whether the
partitioner's "sum everything, keep a part" becomes a reduce-scatter is the compiler's choice: XLA:CPU and the compiler
for tpu7x sum whole gradients on every device, twice the bytes.
"""

import functools
import math

import jax
from jax.sharding import AbstractMesh, PartitionSpec

from mdlm_jax.core import linear
from mdlm_jax.models.sharding import BATCH_AXES, LENGTH_AXIS, gather_weight, weight_sharding

Split = tuple[str | None, str | None]  # mesh axes of a weight's rows and columns


def project(x: jax.Array, weight: jax.Array, axes: tuple[str | None, ...], contracted: int = 1) -> jax.Array:
    """x [B, L, D] times ``weight``, whose leading ``contracted`` axes hold D and whose others hold F -> [B, L, F].

    Args:
      weight: as it is stored, in the dtype of x.
      axes: its logical axes.
    """
    mesh = jax.sharding.get_abstract_mesh()
    whole = gather_weight(weight, axes).reshape(math.prod(weight.shape[:contracted]), -1)
    if mesh.empty:
        return linear.project(x, whole)
    spec = weight_sharding(mesh, axes, weight.shape).spec
    return _project(x, whole, (spec[0], spec[contracted]))


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _project(x: jax.Array, weight: jax.Array, split: Split) -> jax.Array:
    return linear.project(x, weight)


def _forward(x, weight, split):
    return linear.project(x, weight), (x, weight)


def _backward(split, saved, grad):
    x, weight = saved
    return grad @ weight.T, _outer(x, grad, split)


_project.defvjp(_forward, _backward)


def _outer(x: jax.Array, grad: jax.Array, split: Split) -> jax.Array:
    """x^T grad over all tokens, [B, L, D] and [B, L, F] -> [D, F] in the dtype of x, laid out as ``split`` says."""
    if "fsdp" not in split:
        return linear.outer(x, grad, x.dtype)
    mesh = jax.sharding.get_abstract_mesh()
    tokens = PartitionSpec(BATCH_AXES, LENGTH_AXIS if x.shape[1] % mesh.shape[LENGTH_AXIS] == 0 else None)
    operands = tuple(PartitionSpec(*tokens, None if name == "fsdp" else name) for name in split)
    local = functools.partial(_on_one_device, split.index("fsdp"), _summed_over(mesh, tokens))
    return jax.shard_map(local, in_specs=operands, out_specs=PartitionSpec(*split), check_vma=False)(x, grad)


def _summed_over(mesh: AbstractMesh, tokens: PartitionSpec) -> tuple[str, ...]:
    split = (*BATCH_AXES, tokens[1])
    return tuple(name for name in mesh.axis_names if name in split and name != "fsdp" and mesh.shape[name] > 1)


def _on_one_device(axis: int, others: tuple[str, ...], x: jax.Array, grad: jax.Array) -> jax.Array:
    part = jax.lax.psum_scatter(linear.outer(x, grad, x.dtype), "fsdp", scatter_dimension=axis, tiled=True)
    return jax.lax.psum(part, others) if others else part
