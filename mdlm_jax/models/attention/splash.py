"""Attention by the splash kernel (jax.experimental.pallas): flash attention on TPU that skips what a contract hides.

Rows, heads and, where the mesh has a ``context`` axis, queries are split over the devices; keys and values are gathered
over ``context``. Scores never leave the chip's vector memory. Where the program is compiled for CPUs the kernel runs
in interpret mode, which is slow and exact; the mesh in force says what the program is compiled for, else the default
backend.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental.pallas.ops.tpu.splash_attention import (
    BlockSizes,
    MultiHeadMask,
    SegmentIds,
    make_splash_mha,
)
from jax.sharding import NamedSharding, PartitionSpec

from mdlm_jax.models.attention import splash_masks
from mdlm_jax.models.attention.visibility import Visibility
from mdlm_jax.models.sharding import BATCH_AXES, LENGTH_AXIS

_HEADS_AXIS = "tensor"
_TILES = (512, 256, 128)  # edges of a tile of scores; 128 is the width of a TPU register
_WASTE = 1 / 16  # padding a larger tile may cost


def attend(query: jax.Array, key: jax.Array, value: jax.Array, visibility: Visibility) -> jax.Array:
    """See `dispatch.attend`. Head sizes up to 64, else a multiple of 128, lengths to whole tiles are filled up."""
    platform = target_platform()
    split = _Split.of(jax.sharding.get_abstract_mesh())
    _check(query, key, visibility, platform, split)
    heads, size = query.shape[2:]
    queries, keys = query.shape[1], key.shape[1]
    if key.shape[2] % split.heads:
        key, value = (jnp.repeat(x, heads // key.shape[2], axis=2) for x in (key, value))
    padded_queries, tile_queries = tiles(queries, split.context)
    padded_keys, tile_keys = tiles(keys)
    segments = _segments(visibility, query.shape[0], (queries, keys), (padded_queries, padded_keys))
    wide = jnp.promote_types(query.dtype, jnp.float32)
    query = (query.astype(wide) * size**-0.5).astype(query.dtype)  # the kernel does not scale
    query = _fill(query, padded_queries, _head_size(size))
    key, value = (_fill(x, padded_keys, _head_size(size)) for x in (key, value))
    kernel = _kernel(
        visibility, heads // split.heads, (queries, keys), (padded_queries, padded_keys), (tile_queries, tile_keys),
        split.context, platform == "cpu",
    )
    return split.run(kernel, query, key, value, segments)[:, :queries, :, :size]


def target_platform() -> str:
    """What the program being traced is compiled for: cpu, gpu or tpu."""
    device = jax.sharding.get_abstract_mesh().abstract_device
    return jax.default_backend() if device is None else device.platform


def tiles(length: int, shards: int = 1) -> tuple[int, int]:
    """(length filled up to whole tiles on each of ``shards`` devices, edge of a tile): the largest tile that fits."""
    least = _round_up(length, _TILES[-1] * shards)
    for tile in _TILES:
        padded = _round_up(length, tile * shards)
        if padded <= least * (1 + _WASTE):
            return padded, tile
    raise AssertionError("the smallest tile always fits")


@dataclasses.dataclass(frozen=True)
class _Split:
    """How the mesh in force shares the work: devices along rows, queries and heads; ``mesh`` None: one device."""

    mesh: jax.sharding.AbstractMesh | None
    rows: int = 1
    context: int = 1
    heads: int = 1

    @classmethod
    def of(cls, mesh: jax.sharding.AbstractMesh) -> "_Split":
        if mesh.empty:
            return cls(None)
        rows = 1
        for axis in BATCH_AXES:
            rows *= mesh.shape.get(axis, 1)
        return cls(mesh, rows, mesh.shape.get(LENGTH_AXIS, 1), mesh.shape.get(_HEADS_AXIS, 1))

    def run(self, kernel, query, key, value, segments: SegmentIds | None) -> jax.Array:
        """The kernel over all rows, on every device its share."""
        if self.mesh is None:
            return _each_row(kernel, query, key, value, segments)
        axes = tuple(axis for axis in BATCH_AXES if axis in self.mesh.shape)
        context, heads = (axis if axis in self.mesh.shape else None for axis in (LENGTH_AXIS, _HEADS_AXIS))
        by_query, by_key = PartitionSpec(axes, context, heads), PartitionSpec(axes, None, heads)
        query_spec: Any = PartitionSpec(axes, context)  # a spec in an array's place
        key_spec: Any = PartitionSpec(axes)
        segment_specs = None if segments is None else SegmentIds(query_spec, key_spec)
        if kernel.kwargs["mask_function"] is None:  # a full mask is the same on every device
            kernel_specs = jax.tree.map(lambda _: PartitionSpec(), kernel)
        else:
            kernel_specs = kernel.manual_sharding_spec(NamedSharding(self.mesh, PartitionSpec(None, context)))
        return jax.shard_map(
            _each_row,
            in_specs=(kernel_specs, by_query, by_key, by_key, segment_specs),
            out_specs=by_query,
            check_vma=False,
        )(kernel, query, key, value, segments)


def _each_row(kernel, query, key, value, segments):
    heads_first = (jnp.swapaxes(x, 1, 2) for x in (query, key, value))
    return jnp.swapaxes(jax.vmap(kernel)(*heads_first, segments), 1, 2)


def _kernel(visibility: Visibility, heads: int, lengths, padded, tile, shards: int, interpret: bool):
    """The kernel of one row for ``heads`` heads; with ``shards`` > 1, that of all devices, to be split by queries."""
    contract = visibility.contract
    if contract == "bidirectional":
        padded, shards = (padded[0] // shards, padded[1]), 1
    mask = splash_masks.make(contract, visibility.block_length, lengths, padded)
    q, k = tile
    sizes = BlockSizes(
        block_q=q, block_kv=k, block_kv_compute=k,
        block_q_dkv=q, block_kv_dkv=k, block_kv_dkv_compute=k,
        block_q_dq=q, block_kv_dq=k,
    )
    return make_splash_mha(
        MultiHeadMask([mask] * heads), block_sizes=sizes, head_shards=1, q_seq_shards=shards, interpret=interpret,
        residual_checkpoint_name="context",
    )


def _segments(visibility: Visibility, rows: int, lengths, padded) -> SegmentIds | None:
    """Segments of queries and keys with 0 on the padding; None where there are none and nothing is padded."""
    own, other = visibility.query.segment, visibility.key.segment
    if own is None or other is None:
        if lengths == padded:
            return None
        own, other = (jnp.ones((rows, length), jnp.int32) for length in lengths)
    ids = (jnp.broadcast_to(x, (rows, n)).astype(jnp.int32) for x, n in zip((own, other), lengths, strict=True))
    return SegmentIds(*(_fill(x, length) for x, length in zip(ids, padded, strict=True)))


def _fill(x: jax.Array, length: int, size: int | None = None) -> jax.Array:
    """Zeros after [B, length, ...] and, with ``size``, after the last axis."""
    widths = [(0, 0)] * x.ndim
    widths[1] = (0, length - x.shape[1])
    if size is not None:
        widths[-1] = (0, size - x.shape[-1])
    return jnp.pad(x, widths)


def _head_size(size: int) -> int:
    return 64 if size <= 64 else _round_up(size, 128)


def _round_up(n: int, multiple: int) -> int:
    return -(-n // multiple) * multiple


def _check(query, key, visibility: Visibility, platform: str, split: _Split) -> None:
    def refuse(what: str, remedy: str):
        raise ValueError(f"backend='splash': {what}; {remedy}")

    rows, length, heads = query.shape[:3]
    if platform not in ("tpu", "cpu"):
        refuse(f"runs on TPU (and, slowly, on CPU), not on {platform}", "set backend to cudnn or xla")
    if query.dtype not in (jnp.bfloat16, jnp.float32):
        refuse(f"takes bfloat16 or float32, not {query.dtype}", "set dtype, or backend='xla'")
    if visibility.contract not in ("bidirectional", *splash_masks.CONTRACTS):
        refuse(f"cannot do attention={visibility.contract!r}", "set backend='xla'")
    if visibility.shadowed:
        refuse("shadows hide single keys, which no tile knows", "set backend='xla'")
    if visibility.contract != "bidirectional" and not visibility.indexed:
        refuse(f"attention={visibility.contract!r} with a given order is not known when compiling", "set backend='xla'")
    if visibility.contract == "two_stream" and (length != key.shape[1] or length % 2):
        refuse(f"two streams of {length} queries and {key.shape[1]} keys", "give one even number, or set backend='xla'")
    if rows % split.rows:
        refuse(f"{split.rows} devices cannot share {rows} rows", "change the batch size or the mesh")
    if heads % split.heads:
        refuse(f"{split.heads} devices along {_HEADS_AXIS} cannot share {heads} heads", "change the mesh")
    edge = tiles(length, split.context)[1]
    if split.context > 1 and visibility.contract != "bidirectional" and visibility.block_length % edge == 0:
        refuse(f"blocks of {visibility.block_length} fill whole tiles, which the kernel cannot split over "
               f"{LENGTH_AXIS}", f"set the mesh axis {LENGTH_AXIS} to 1, or backend='xla'")
