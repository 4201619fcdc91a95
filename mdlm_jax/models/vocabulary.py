"""Both ends of the network on a mesh: rows of the embedding table, and the reduction over the head's columns.

Each device gathers the table once, works on its own rows, sums its share of the gradient at home, and the shares are
reduce-scattered once. Left to the partitioner, the cotangents of all rows would be gathered to every device for the
table, and the head's gradient would be scattered again for every chunk of positions.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.sharding import AbstractMesh, PartitionSpec

from mdlm_jax.core.prediction import Head, Prediction
from mdlm_jax.core.reduction import Reduced
from mdlm_jax.core.reduction import reduce as reduce_here
from mdlm_jax.models.sharding import BATCH_AXES, LENGTH_AXIS, weight_sharding


def lookup(table: jax.Array, ids: jax.Array, axes: tuple[str | None, str]) -> jax.Array:
    """Rows of ``table`` [V, D] at ``ids`` [B, L] -> [B, L, D]; ``axes`` are the table's logical axes."""
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty:
        return jnp.take(table, ids, axis=0)
    split, tokens = _fsdp_alone(mesh, axes, table.shape), _tokens(mesh, ids.shape[1])
    run = _on_devices(mesh, lambda table, ids: jnp.take(_whole(table, split), ids, axis=0), (split, tokens), tokens)
    return run(table, ids)


def reduce(prediction: Prediction, *, teacher: Prediction | None = None, values: jax.Array | None = None,
           target: jax.Array | None = None, current: jax.Array | None = None, offset: jax.Array | None = None,
           **static) -> Reduced:
    """`core.reduction.reduce` where a mesh is set or not; ``chunk`` counts the positions of the rows on one device."""
    mesh = jax.sharding.get_abstract_mesh()
    given = {"target": target, "current": current, "offset": offset}
    if mesh.empty:
        return reduce_here(prediction, teacher=teacher, values=values, **given, **static)
    tokens = _tokens(mesh, prediction.hidden.shape[1])

    def here(prediction, teacher, values, given):
        prediction, teacher = (_gathered(mesh, p, q) for p, q in zip((prediction, teacher), whole, strict=True))
        return reduce_here(prediction, teacher=teacher, values=values, **given, **static)

    whole = tuple(None if p is None else _head_spec(mesh, p.head) for p in (prediction, teacher))
    specs = tuple(None if h is None else Prediction(tokens, h) for h in whole)
    run = _on_devices(mesh, here, (*specs, PartitionSpec(), tokens), tokens)
    return run(prediction, teacher, values, given)


def _gathered(mesh: AbstractMesh, prediction: Prediction | None, split: Head | None) -> Prediction | None:
    if prediction is None or prediction.head.kernel is None:
        return prediction
    return Prediction(prediction.hidden, Head(_whole(prediction.head.kernel, split.kernel), prediction.head.bias))


def _head_spec(mesh: AbstractMesh, head: Head) -> Head:
    kernel = None if head.kernel is None else _fsdp_alone(mesh, ("embed", "vocab"), head.kernel.shape)
    return Head(kernel, None if head.bias is None else PartitionSpec())


def _whole(weight: jax.Array, split: PartitionSpec) -> jax.Array:
    """The weight gathered over fsdp; the transpose scatters the sum of the devices' gradients."""
    for axis, name in enumerate(split):
        if name is not None:
            weight = jax.lax.all_gather(weight, name, axis=axis, tiled=True)
    return weight


def _fsdp_alone(mesh: AbstractMesh, axes, shape) -> PartitionSpec:
    """The weight's layout without ``tensor``, which the partitioner keeps to itself."""
    return PartitionSpec(*(axis if axis == "fsdp" else None for axis in weight_sharding(mesh, axes, shape).spec))


def _tokens(mesh: AbstractMesh, length: int) -> PartitionSpec:
    return PartitionSpec(BATCH_AXES, LENGTH_AXIS if length % mesh.shape[LENGTH_AXIS] == 0 else None)


def _on_devices(mesh: AbstractMesh, function: Callable, in_specs, out_specs) -> Callable:
    manual = {axis for axis in mesh.axis_names if axis != "tensor" or mesh.shape[axis] == 1}
    return jax.shard_map(function, in_specs=in_specs, out_specs=out_specs, axis_names=manual, check_vma=False)
