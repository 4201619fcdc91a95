"""Where the numbers of a network lie on a mesh, by formula and free of jax: what `models.api.shardings` says.

A test compares the two for every kind of network.
"""

import functools
import math

from mdlm_jax.models.config import TransformerConfig
from mdlm_jax.models.shapes import Shapes, shapes

# Mesh axes of each weight's own dimensions, the last ones of its shape; stacked layers stand before them, unsplit.
_AXES = {
    "embedding": ("tensor", "fsdp"), "positions": (None, "fsdp"), "head": ("fsdp", "tensor"), "head_bias": ("tensor",),
    "query": ("fsdp", "tensor", None), "key": ("fsdp", "tensor", None), "value": ("fsdp", "tensor", None),
    "out": ("tensor", None, "fsdp"), "query_bias": ("tensor", None), "key_bias": ("tensor", None),
    "value_bias": ("tensor", None), "gate": ("fsdp", "tensor"), "up": ("fsdp", "tensor"), "down": ("tensor", "fsdp"),
    "up_bias": ("tensor",), "router": ("fsdp", None), "shared_gate": ("fsdp", "tensor"),
    "shared_up": ("fsdp", "tensor"), "shared_down": ("tensor", "fsdp"),
}
_EXPERTS = {"gate": ("expert", "fsdp", "tensor"), "up": ("expert", "fsdp", "tensor"),
            "down": ("expert", "tensor", "fsdp")}


def splits(network: TransformerConfig, sizes: dict[str, int]) -> dict[str, tuple[int, tuple[str, ...]]]:
    """path -> numbers of the whole leaf, and the mesh axes that split it: those of more than one that divide it."""
    return _splits(network, tuple(sizes.items()))


def local(network: TransformerConfig, sizes: dict[str, int]) -> dict[str, int]:
    """path -> numbers of the leaf on one device."""
    return {path: size // math.prod(sizes[axis] for axis in used)
            for path, (size, used) in splits(network, sizes).items()}


@functools.lru_cache(maxsize=8)
def _shapes(network: TransformerConfig) -> Shapes:
    return shapes(network)


@functools.lru_cache(maxsize=8)
def _splits(network: TransformerConfig, sizes: tuple[tuple[str, int], ...]) -> dict:
    named = dict(sizes)
    return {path: (math.prod(shape), _used(path, shape, named)) for path, shape in _shapes(network).items()}


def _used(path: str, shape: tuple[int, ...], sizes: dict[str, int]) -> tuple[str, ...]:
    *folders, name = path.split("/")
    axes: tuple[str | None, ...] = _EXPERTS.get(name, ()) if "moe" in folders else ()
    axes = axes or _AXES.get(name, ())
    own = shape[len(shape) - len(axes):]
    return tuple(axis for axis, size in zip(axes, own, strict=True)
                 if axis and sizes[axis] > 1 and size % sizes[axis] == 0)
