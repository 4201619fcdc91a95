"""Logical axes of weights to mesh axes: one table, checked."""

import functools
import math
from collections.abc import Mapping

import jax
import numpy as np
from jax.sharding import AbstractMesh, Mesh, NamedSharding, PartitionSpec

from mdlm_jax.config import BATCH_AXES, MESH_AXES, ConfigError

# FSDP splits the model axis of every weight, tensor parallelism heads, feed-forward and vocabulary, expert parallelism
# the experts. Rows run over replica, fsdp and expert, positions over context.
WEIGHT_RULES = {
    "layers": None,
    "vocab": "tensor",
    "embed": "fsdp",
    "heads": "tensor",
    "kv_heads": "tensor",
    "head_dim": None,
    "mlp": "tensor",
    "experts": "expert",
    "norm": None,
    "condition": None,
    None: None,
}
LENGTH_AXIS = "context"


def make_mesh(sizes: dict[str, int], devices=None) -> Mesh:
    """A mesh over `MESH_AXES` with the sizes of `config.parse_mesh`; a size of -1 takes the devices left over.

    Raises:
      ConfigError: the sizes do not multiply to the number of devices.
    """
    devices = jax.devices() if devices is None else devices
    sizes = dict.fromkeys(MESH_AXES, 1) | sizes
    fixed = math.prod(size for size in sizes.values() if size > 0)
    filled = {axis: len(devices) // fixed if size == -1 else size for axis, size in sizes.items()}
    total = math.prod(filled.values())
    if total != len(devices):
        raise ConfigError(f"train.mesh={sizes} makes {total} devices and there are {len(devices)}; change train.mesh")
    return arranged(filled, devices)


def arranged(sizes: dict[str, int], devices) -> Mesh:
    """The mesh over devices of one slice or several: replicas span slices, every other axis stays inside one.

    Raises:
      ConfigError: the slices do not divide ``replica``.
    """
    from jax.experimental import mesh_utils

    shape, slices = tuple(sizes[axis] for axis in MESH_AXES), len({getattr(d, "slice_index", None) for d in devices})
    if sizes["replica"] % slices:
        raise ConfigError(f"train.mesh: replica={sizes['replica']} cannot be shared by {slices} slices; make it a "
                          "multiple: only replicas may span slices")
    if slices > 1:
        within, across = (shape[0] // slices, *shape[1:]), (slices, *(1,) * (len(shape) - 1))
        grid = mesh_utils.create_hybrid_device_mesh(within, across, devices, allow_split_physical_axes=True)
    else:
        grid = mesh_utils.create_device_mesh(shape, devices, allow_split_physical_axes=True)
    return Mesh(grid, MESH_AXES, axis_types=(jax.sharding.AxisType.Auto,) * len(MESH_AXES))


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Rows over replica, fsdp and expert, everything else whole."""
    return NamedSharding(mesh, PartitionSpec(BATCH_AXES))


def place_rows(rows: Mapping[str, np.ndarray], layout: NamedSharding, total: int, first: int = 0) -> dict:
    """The global batch [total, ...] of which this process has ``rows`` from row ``first`` on, at least its devices'."""

    def put(x: np.ndarray) -> jax.Array:
        def part(index):
            start, stop, _ = index[0].indices(total)
            return x[(slice(start - first, stop - first), *index[1:])]

        return jax.make_array_from_callback((total, *x.shape[1:]), layout, part)

    return {name: put(np.asarray(x)) for name, x in rows.items()}


def data_shards(mesh: Mesh | AbstractMesh) -> int:
    """Devices that share the rows of a batch."""
    return math.prod(mesh.shape[axis] for axis in BATCH_AXES)


def whole_parameters(axes: dict, shapes: dict, mesh: Mesh) -> dict[str, int]:
    """Matrices that fsdp should split and does not, its size not dividing them: path -> numbers in it."""
    if mesh.shape["fsdp"] == 1:
        return {}
    leaves = jax.tree.leaves_with_path(axes, is_leaf=lambda node: isinstance(node, tuple))
    sizes = dict(jax.tree.leaves_with_path(shapes))
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): sizes[path].size
        for path, names in leaves
        if "embed" in names and "fsdp" not in weight_sharding(mesh, names, sizes[path].shape).spec
    }


def replicated(mesh: Mesh) -> NamedSharding:
    return NamedSharding(mesh, PartitionSpec())


def check_split(rows: int, length: int) -> None:
    """ValueError where a mesh is set that cannot split so many rows or positions."""
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty:
        return
    if missing := [axis for axis in MESH_AXES if axis not in mesh.shape]:
        raise ValueError(f"mesh {dict(mesh.shape)}: has no axis {missing[0]}; make it with models.sharding.make_mesh")
    shards = data_shards(mesh)
    if rows % shards:
        raise ValueError(f"tokens: {rows} rows cannot be shared by {shards} devices of the mesh; make them a multiple")
    if length % mesh.shape[LENGTH_AXIS]:
        shards = mesh.shape[LENGTH_AXIS]
        raise ValueError(f"tokens: {length} positions cannot be split over {LENGTH_AXIS}={shards}; make "
                         "them a multiple")


def constrain_tokens(x: jax.Array) -> jax.Array:
    """Keeps rows and positions of an activation [B, L, ...] on their devices where a mesh is set.

    Left alone, the partitioner follows the weights: every device computes all rows with its slice of D, and sums even
    the logits over the devices.
    """
    if jax.sharding.get_abstract_mesh().empty:
        return x
    return jax.lax.with_sharding_constraint(x, PartitionSpec(BATCH_AXES, LENGTH_AXIS))


def gather_weight(weight: jax.Array, axes: tuple[str | None, ...]) -> jax.Array:
    """A weight gathered over fsdp, still split over tensor, where a mesh is set; its gradient is split like itself.

    A plain constraint would hold for the gradient too: summed whole on every device, many times the bytes.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty:
        return weight
    split = weight_sharding(mesh, axes, weight.shape).spec
    return _gathered(split, weight)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _gathered(split: PartitionSpec, weight: jax.Array) -> jax.Array:
    return jax.lax.with_sharding_constraint(weight, PartitionSpec(*(None if a == "fsdp" else a for a in split)))


def _gathered_backward(split: PartitionSpec, _, gradient: jax.Array):
    return (jax.lax.with_sharding_constraint(gradient, split),)


_gathered.defvjp(lambda split, weight: (_gathered(split, weight), None), _gathered_backward)


def weight_sharding(mesh: Mesh | AbstractMesh, axes: tuple[str | None, ...], shape: tuple[int, ...]) -> NamedSharding:
    """The layout of one weight. An axis whose size the mesh axis does not divide stays whole.

    Raises:
      ValueError: an unknown logical axis, or two axes of the weight on the same mesh axis.
    """
    spec = []
    for name, size in zip(axes, shape, strict=True):
        if name not in WEIGHT_RULES:
            raise ValueError(f"logical axis {name!r}: is not in WEIGHT_RULES; add it there")
        mesh_axis = WEIGHT_RULES[name]
        splits = mesh_axis is not None and mesh.shape[mesh_axis] > 1 and size % mesh.shape[mesh_axis] == 0
        spec.append(mesh_axis if splits else None)
    used = [axis for axis in spec if axis is not None]
    if len(used) != len(set(used)):
        raise ValueError(f"weight with axes {axes}: two of them map to one mesh axis, {spec}")
    return NamedSharding(mesh, PartitionSpec(*spec))


@jax.custom_vjp
def sum_over_tensor(y: jax.Array) -> jax.Array:
    """Sum of the tensor axis' partial results, with a gradient that does not travel.

    `shard_map` gives each of the n devices that hold one copy of a result 1/n of its cotangent and expects them to be
    summed, as the transpose of psum does; they are equal, so n times one's own is that sum.
    """
    return jax.lax.psum(y, "tensor")


sum_over_tensor.defvjp(
    lambda y: (sum_over_tensor(y), None), lambda _, grad: (grad * jax.lax.axis_size("tensor"),)
)
