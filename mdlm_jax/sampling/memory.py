"""What decoding holds in a device's memory at least, and refusing what cannot fit before anything is compiled."""

import dataclasses
import os
from collections.abc import Iterable
from typing import Any

import jax
import jax.numpy as jnp

from mdlm_jax.config import ConfigError
from mdlm_jax.core.reduction import chunk_length
from mdlm_jax.models.sharding import data_shards

CACHES_ALIVE = 2  # a forward reads one cache and writes the next
_GIB = 2.0**30


@dataclasses.dataclass(frozen=True)
class Need:
    """Bytes of one device.

    Attributes:
      parameters: as they are stored, the decoder's own among them. cache: all that are alive at once, a twin's too.
      head: the copy in the network's dtype that the loop keeps where the head is stored in another, or is part of a
        tied table; 0 where the stored one serves.
      logits: those that the head makes at once, float32. Hidden states and scores of attention come on top.
    """

    parameters: int
    cache: int
    head: int
    logits: int

    @property
    def total(self) -> int:
        return self.parameters + self.cache + self.head + self.logits


def need(model, params, decoder, *, rows: int, slots: int, length: int = 0, mesh=None,
         guided: bool = False) -> Need:
    """The arithmetic.

    Args:
      params: arrays, or their shapes with their shardings.
      rows: of the canvas; slots: of the cache, 0 for none. length: of the canvas, which a twin of the decoder reads.
      mesh: what rows are shared by; None: one device.
      guided: whether every row goes through the network twice, with its prompt and without.
    """
    shards = 1 if mesh is None else data_shards(mesh)
    branches, cache = 1 + guided, 0
    if slots:
        shapes = jax.eval_shape(lambda: model.cache(branches * rows, slots))
        layout = None if mesh is None else model.cache_shardings(mesh)
        cache = CACHES_ALIVE * bytes_of(shapes, layout)
    if (twin := getattr(decoder, "twin", None)) is not None:
        cache += CACHES_ALIVE * bytes_of(jax.eval_shape(lambda: twin.cache(rows, length))) // shards
    logits = 0
    if hasattr(model, "network") and hasattr(decoder, "head_budget"):
        columns = branches * model.network.head_size
        logits = 4 * rows * chunk_length(rows, columns, decoder.head_budget) * columns // shards
    return Need(bytes_of(params) + _own(decoder, params), cache, _head(model, params), logits)


def _own(decoder, params) -> int:
    """Bytes of the decoder's arrays that are not the network's: small networks, twins."""
    known = {id(leaf) for leaf in jax.tree.leaves(params)}
    return bytes_of([leaf for leaf in jax.tree.leaves(decoder)
                     if isinstance(leaf, jax.Array) and id(leaf) not in known])


def _head(model, params) -> int:
    """Bytes of the head's copy on a device."""
    network = getattr(model, "network", None)
    params = params.get("network", params) if isinstance(params, dict) else {}
    stored = params.get("embedding" if network is not None and network.tied else "head")
    if network is None or stored is None:
        return 0
    itself = stored.dtype == network.dtype and not (network.tied and network.head_size < network.vocab_size)
    kept = network.head_size / network.vocab_size if network.tied else 1
    return 0 if itself else int(bytes_of(stored) * kept) // stored.dtype.itemsize * jnp.dtype(network.dtype).itemsize


def bytes_of(tree, layout=None) -> int:
    """Bytes that one device holds of arrays or shapes, laid out as they are or as ``layout`` says."""
    leaves = jax.tree.leaves(tree)
    if layout is None:
        layouts = [getattr(x, "sharding", None) for x in leaves]
    else:
        layouts = jax.tree.leaves(layout, is_leaf=lambda x: x is None)
    return sum(_size(x, on) for x, on in zip(leaves, layouts, strict=True))


def _size(x, on) -> int:
    shape = x.shape if on is None else on.shard_shape(x.shape)
    size = x.dtype.itemsize
    for axis in shape:
        size *= axis
    return size


def limit(params) -> int | None:
    """Bytes of the device that the parameters lie on: what its runtime says, or on a CPU its share of the machine.

    None: the parameters are abstract, or nobody knows.
    """
    found = [x for x in jax.tree.leaves(params) if isinstance(x, jax.Array) and not isinstance(x, jax.core.Tracer)]
    device: Any = next(iter(found[0].sharding.addressable_devices)) if found else None
    if device is None:
        return None
    stats = device.memory_stats() or {}
    if "bytes_limit" in stats:
        return stats["bytes_limit"]
    if device.platform != "cpu" or not hasattr(os, "sysconf"):
        return None
    devices: Iterable[Any] = found[0].sharding.addressable_devices
    sharing = sum(x.platform == "cpu" for x in devices)
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // sharing


def check(model, params, decoder, layout, *, rows: int, mesh, budget: int | None) -> None:
    """Refuses what does not fit into ``budget`` bytes of a device, or, without one, into the device.

    Args:
      layout: `windows.Layout`. ``rows``, ``mesh``, ``params``: as in `need`.
    Raises:
      ConfigError: with the numbers and what would help.
    """
    if budget is not None and budget < 1:
        raise ConfigError(f"memory_budget={budget}: must be a positive number of bytes; None: what the device has")
    needed = need(model, params, decoder, rows=rows, slots=layout.slots, length=layout.length, mesh=mesh,
                  guided=layout.guided)
    available = limit(params) if budget is None else budget
    if available is None or needed.total <= available:
        return
    there = f"{'it has' if budget is None else 'memory_budget allows'} {available / _GIB:.3g}"
    kept, fewer = "", ["fewer rows at a time", "a shorter canvas"]
    if needed.cache:
        held = f"{CACHES_ALIVE} of {rows * (1 + layout.guided)} rows of {layout.slots} slots"
        kept = f", cache {needed.cache / _GIB:.3g} ({held})"
        fewer.append(f"cache='none' for {layout.cache!r}")
    if needed.head:
        kept += f", a copy of the head {needed.head / _GIB:.3g}"
    raise ConfigError(
        f"memory: decoding needs at least {needed.total / _GIB:.3g} GiB on a device and {there}: parameters "
        f"{needed.parameters / _GIB:.3g}{kept}, logits {needed.logits / _GIB:.3g}; take {', '.join(fewer)}, bfloat16 "
        "weights, or a mesh of more devices"
    )
