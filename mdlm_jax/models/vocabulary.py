"""Both ends of the network on a mesh: rows of the embedding table, and the reduction over the head's columns.

Each device gathers its part of the table over fsdp once, works on its own rows, sums its share of the gradient at home,
and the shares are reduce-scattered once. Over tensor the ids stay split: a device looks up those it holds and reduces
over its own columns, and small numbers of every position are summed. Left to the partitioner, the cotangents of all
rows would be gathered to every device for the table, and the head's gradient would be scattered again for every chunk
of positions.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AbstractMesh, PartitionSpec

from mdlm_jax.core.columns import Columns
from mdlm_jax.core.prediction import Head, Prediction
from mdlm_jax.core.reduction import Reduced
from mdlm_jax.core.reduction import reduce as reduce_here
from mdlm_jax.models.sharding import BATCH_AXES, LENGTH_AXIS, sum_over_tensor, weight_sharding


def lookup(table: jax.Array, ids: jax.Array, axes: tuple[str | None, str]) -> jax.Array:
    """Rows of ``table`` [V, D] at ``ids`` [B, L] -> [B, L, D]; ``axes`` are the table's logical axes."""
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty:
        return _take(table, ids)
    layout, tokens = weight_sharding(mesh, axes, table.shape).spec, _tokens(mesh, ids.shape[1])
    take = _take_own if "tensor" in layout else _take
    run = _on_devices(lambda table, ids: take(_gathered(table, layout), ids), (layout, tokens), tokens)
    return run(table, ids)


def reduce(prediction: Prediction, *, teacher: Prediction | None = None, values: jax.Array | None = None,
           target: jax.Array | None = None, current: jax.Array | None = None, offset: jax.Array | None = None,
           **static) -> Reduced:
    """`core.reduction.reduce` where a mesh is set or not; ``chunk`` counts the positions of the rows on one device."""
    mesh = jax.sharding.get_abstract_mesh()
    given: dict[str, Any] = {"target": target, "current": current, "offset": offset}
    if mesh.empty:
        return reduce_here(prediction, teacher=teacher, values=values, **given, **static)
    tokens = _tokens(mesh, prediction.hidden.shape[1])
    both = tuple(p for p in (prediction, teacher) if p is not None)
    columns = Columns("tensor" if all(_splits(mesh, p.head) for p in both) else None)
    layouts = tuple(None if p is None else _head_layout(mesh, p.head, columns) for p in (prediction, teacher))

    def here(prediction, teacher, values, given):
        prediction, teacher = (_whole(p, layout) for p, layout in zip((prediction, teacher), layouts, strict=True))
        return reduce_here(prediction, teacher=teacher, values=values, **given, **static, columns=columns)

    place: Any = tokens  # specs in the places of arrays, here and in `_head_layout`
    specs = tuple(None if layout is None else Prediction(place, layout) for layout in layouts)
    run = _on_devices(here, (*specs, PartitionSpec(columns.axis), tokens), tokens)
    return run(prediction, teacher, values, given)


@jax.custom_vjp
def _take(table: jax.Array, ids: jax.Array) -> jax.Array:
    """Rows of the table; the gradient of each row is summed in float32 or wider.

    Half of all ids may be the mask: a sum of thousands of terms in bfloat16 stands still at 256 of them.
    """
    return jnp.take(table, ids, axis=0)


def _take_backward(saved, grad):
    table, ids = saved
    wide = jnp.zeros(table.shape, jnp.promote_types(grad.dtype, jnp.float32))
    summed = wide.at[ids].add(grad.astype(wide.dtype))
    return summed.astype(table.dtype), np.zeros(ids.shape, jax.dtypes.float0)


_take.defvjp(lambda table, ids: (_take(table, ids), (table, ids)), _take_backward)


def _take_own(table: jax.Array, ids: jax.Array) -> jax.Array:
    """Each device looks up the ids it holds rows of."""
    own = ids - jax.lax.axis_index("tensor") * table.shape[0]
    held = (own >= 0) & (own < table.shape[0])
    rows = _take(table, jnp.where(held, own, 0))
    return sum_over_tensor(jnp.where(held[..., None], rows, 0))


def _splits(mesh: AbstractMesh, head: Head) -> bool:
    """Whether the head's columns lie over tensor."""
    return head.kernel is not None and not head.columns and "tensor" in _kernel_layout(mesh, head.kernel)


def _kernel_layout(mesh: AbstractMesh, kernel: jax.Array) -> PartitionSpec:
    return weight_sharding(mesh, ("embed", "vocab"), kernel.shape).spec


def _head_layout(mesh: AbstractMesh, head: Head, columns: Columns) -> Head:
    kernel: Any = None if head.kernel is None else PartitionSpec(_kernel_layout(mesh, head.kernel)[0], columns.axis)
    bias: Any = None if head.bias is None else PartitionSpec(columns.axis)
    guidance: Any = None if head.guidance is None else PartitionSpec(None)
    return dataclasses.replace(head, kernel=kernel, bias=bias, guidance=guidance)


def _whole(prediction: Prediction | None, layout: Head | None) -> Prediction | None:
    """The head's kernel gathered over fsdp."""
    spec: Any = None if layout is None else layout.kernel
    if prediction is None or prediction.head.kernel is None:
        return prediction
    head = dataclasses.replace(prediction.head, kernel=_gathered(prediction.head.kernel, spec))
    return Prediction(prediction.hidden, head)


def _gathered(weight: jax.Array, layout: PartitionSpec) -> jax.Array:
    """The weight gathered over fsdp; the transpose scatters the sum of the devices' gradients."""
    for axis, name in enumerate(layout):
        if name == "fsdp":
            weight = jax.lax.all_gather(weight, name, axis=axis, tiled=True)
    return weight


def _tokens(mesh: AbstractMesh, length: int) -> PartitionSpec:
    return PartitionSpec(BATCH_AXES, LENGTH_AXIS if length % mesh.shape[LENGTH_AXIS] == 0 else None)


def _on_devices(function: Callable, in_specs, out_specs) -> Callable:
    return jax.shard_map(function, in_specs=in_specs, out_specs=out_specs, check_vma=False)
