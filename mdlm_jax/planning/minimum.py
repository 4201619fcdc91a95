"""What a step of data-parallel training must at least move: weights gathered twice, gradients scattered once.

Twice, since a weight is needed in the forward and in the backward pass and is not kept between them. A weight split
over fsdp travels in the compute dtype; what is split over ``tensor`` or ``expert`` besides stays split. With replicas
each device's share of the gradient is then summed over them. Free of jax until `traffic` is called.
"""

import math
from collections.abc import Iterable


def traffic(params: dict, dtype: str, sizes: dict[str, int], microbatches: int = 1) -> dict[str, float]:
    """`of_leaves` for a tree of ``ShapeDtypeStruct``s with shardings, computed with in ``dtype``."""
    import jax
    import jax.numpy as jnp

    leaves = ((leaf.size, tuple(axis for axis in leaf.sharding.spec if axis is not None))
              for leaf in jax.tree.leaves(params))
    return of_leaves(leaves, jnp.dtype(dtype).itemsize, sizes, microbatches)


def of_leaves(leaves: Iterable[tuple[int, tuple[str, ...]]], width: int, sizes: dict[str, int],
              microbatches: int = 1) -> dict[str, float]:
    """kind of collective -> bytes of whole arrays a device and step (`collectives.Collective.bytes`).

    Args:
      leaves: numbers of a weight, and the mesh axes that split it.
      width: bytes of a number on its way.
      sizes: of the mesh axes.
    """
    gathered = shared = 0.0
    for size, used in leaves:
        held = size * width / math.prod(sizes[axis] for axis in used)
        shared += held
        if "fsdp" in used:
            gathered += held * sizes["fsdp"]
    found = {"all-gather": 2 * microbatches * gathered, "reduce-scatter": microbatches * gathered}
    if sizes["replica"] > 1:
        found["all-reduce"] = microbatches * shared
    return {kind: size for kind, size in found.items() if size}


def wire(kind: str, size: float, sizes: dict[str, int]) -> float:
    """Bytes a device sends for it in a ring."""
    group = sizes["replica"] if kind == "all-reduce" else sizes["fsdp"]
    return size * (group - 1) / group * (2 if kind == "all-reduce" else 1)
