"""Slices by the names that the cloud gives them, as v5p-512: what they count, and the topology that they are.

The number counts TensorCores, two a chip, of v4, v5p and tpu7x, and chips of v5e (also v5litepod) and v6e. Sizes and
shapes are those of the pages of Google Cloud (`chips`): fixed ones below 64 chips of a torus of three axes, and from
there on cubes of 4x4x4, put together so that the shape is as near to a cube as can be.
"""

import itertools
import math
import re
from collections.abc import Iterator

from mdlm_jax.errors import ConfigError

CORES = {"v4": 2, "v5e": 1, "v5p": 2, "v6e": 1, "tpu7x": 2}  # that a name counts, a chip
_CLOUD = {"v5litepod": "v5e"}
_LARGEST = {"v4": 2048, "v5p": 6144, "tpu7x": 9216}  # chips of one slice
_FLAT = {1: (1, 1), 4: (2, 2), 8: (2, 4), 16: (4, 4), 32: (4, 8), 64: (8, 8), 128: (8, 16), 256: (16, 16)}
_SMALL = {4: (2, 2, 1), 8: (2, 2, 2), 16: (2, 2, 4), 32: (2, 4, 4)}
_CUBE = 4  # chips along an edge
_NAME = re.compile(r"([a-z0-9]+)-(\d+)")


def translated(name: str) -> str:
    """``v5p-512`` as ``v5p:4x8x8``; what is no such name, and one of an unknown generation, as it is.

    Raises:
      ConfigError: the cloud has no slice of that size; the message has the nearest that it has.

    Examples:
      >>> translated("v5p-512"), translated("v5litepod-256"), translated("v5e:4x4")
      ('v5p:4x8x8', 'v5e:16x16', 'v5e:4x4')
    """
    found = _NAME.fullmatch(name)
    generation = _CLOUD.get(found[1], found[1]) if found else ""
    if not found or generation not in CORES:
        return name
    count, known = int(found[2]), dict(sizes(generation))
    if count not in known:
        near = sorted(sorted(known, key=lambda size: abs(size - count))[:2])
        nearest = " or ".join(f"{found[1]}-{size} ({generation}:{_text(known[size])})" for size in near)
        what = "chips" if CORES[generation] == 1 else "TensorCores, two a chip"
        raise ConfigError(f"--topology={name}: the cloud has no such slice (the number counts {what}); choose "
                          f"{nearest}, or write a shape, as in {generation}:{_text(known[near[0]])}")
    return f"{generation}:{_text(known[count])}"


def known(name: str) -> bool:
    """Whether it begins as a slice of a generation that is planned for."""
    prefix = name.partition("-")[0]
    return _CLOUD.get(prefix, prefix) in CORES


def cloud_name(generation: str, shape: tuple[int, ...]) -> str | None:
    """The name that the cloud takes for a slice of that shape; None where it has another shape by every name."""
    prefix = next((cloud for cloud, ours in _CLOUD.items() if ours == generation), generation)
    return next((f"{prefix}-{size}" for size, known in sizes(generation) if known == shape), None)


def sizes(generation: str) -> Iterator[tuple[int, tuple[int, ...]]]:
    """(number of the name, shape) of every slice of a generation, the smallest first."""
    if generation not in _LARGEST:
        yield from _FLAT.items()
        return
    if generation == "tpu7x":
        yield CORES[generation], (1, 1, 1)
    cores = CORES[generation]
    yield from ((cores * chips, shape) for chips, shape in _SMALL.items())
    for cubes in range(1, _LARGEST[generation] // _CUBE**3 + 1):
        yield cores * cubes * _CUBE**3, tuple(_CUBE * edge for edge in _nearly_a_cube(cubes))


def _nearly_a_cube(number: int) -> tuple[int, ...]:
    """Three ascending factors with the least sum."""
    divisors = [n for n in range(1, math.isqrt(number) + 1) if number % n == 0]
    shapes = (tuple(sorted((a, b, number // (a * b)))) for a, b in itertools.product(divisors, divisors)
              if number % (a * b) == 0)
    return min(shapes, key=lambda shape: (sum(shape), shape))


def _text(shape: tuple[int, ...]) -> str:
    return "x".join(map(str, shape))
