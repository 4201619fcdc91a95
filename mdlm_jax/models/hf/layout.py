"""How a tensor of a file lies in a leaf of ours, in einsum letters: ``"(N H) D -> D N H"``.

Left of the arrow stand the axes of the file's tensor, right of it those of the leaf (without the axes that stack layers
and experts). A bracket is a product of axes. ``P`` is an axis that several leaves share: each takes its section of it,
as in a fused query_key_value. Both arrays are looked at through views, so the same pair serves reading and writing.
"""

import dataclasses
import functools
import math
import re

import numpy as np

Ranges = tuple[tuple[int, int], ...]
_TOKEN = re.compile(r"\(([A-Za-z ]+)\)|([A-Za-z])")


@functools.cache
def _parse(side: str) -> tuple[tuple[str, ...], ...]:
    return tuple(tuple((many or one).split()) for many, one in _TOKEN.findall(side))


@dataclasses.dataclass(frozen=True)
class Layout:
    """A pattern with its sizes.

    Attributes:
      pattern: as above.
      sizes: (letter, size) of every letter but P.
      sections: sizes of the sections of P, empty without P.
      section: which of them is the leaf's.
    """

    pattern: str
    sizes: tuple[tuple[str, int], ...]
    sections: tuple[int, ...] = ()
    section: int = 0

    @property
    def file_shape(self) -> tuple[int, ...]:
        """Shape of the tensor in the file."""
        sizes = dict(self.sizes) | {"P": sum(self.sections)}
        return tuple(math.prod(sizes[letter] for letter in axis) for axis in self._sides[0])

    @property
    def leaf_shape(self) -> tuple[int, ...]:
        """Shape of the part of the leaf that this tensor fills."""
        sizes = self._leaf_sizes
        return tuple(math.prod(sizes[letter] for letter in axis) for axis in self._sides[1])

    def views(self, file: np.ndarray, part: np.ndarray, ranges: Ranges) -> tuple[np.ndarray, np.ndarray]:
        """The same numbers seen in the file's tensor and in ``part``, the ``ranges`` of the leaf. Nothing is copied.

        Args:
          file: C-contiguous, of ``file_shape``.
          part: C-contiguous, as long as the ranges; every range of a bracket must be whole, see ``splits``.
        """
        left, right = self._sides
        sizes, bounds = self._leaf_sizes, self._bounds(ranges)
        order = [letter for axis in left for letter in axis]
        whole = sizes | {"P": sum(self.sections)}
        start = sum(self.sections[: self.section])
        cut = tuple(
            slice(low + start, high + start) if letter == "P" else slice(low, high)
            for letter in order for low, high in (bounds[letter],)
        )
        seen = file.reshape([whole[letter] for letter in order])[cut]
        ours = [letter for axis in right for letter in axis]
        lengths = [bounds[letter][1] - bounds[letter][0] for letter in ours]
        return seen.transpose([order.index(letter) for letter in ours]), part.reshape(lengths)

    def splits(self, ranges: Ranges) -> bool:
        """Whether ``views`` can serve these ranges: brackets of the leaf are whole, or cut along their first axis."""
        sizes = self._leaf_sizes
        for axis, bound in zip(self._sides[1], ranges, strict=True):
            inner = math.prod(sizes[letter] for letter in axis[1:])
            if len(axis) > 1 and (bound[0] % inner or bound[1] % inner):
                return False
        return True

    @property
    def _sides(self):
        left, right = self.pattern.split("->")
        return _parse(left.strip()), _parse(right.strip())

    @property
    def _leaf_sizes(self) -> dict[str, int]:
        return dict(self.sizes) | ({"P": self.sections[self.section]} if self.sections else {})

    def _bounds(self, ranges: Ranges) -> dict[str, tuple[int, int]]:
        sizes = self._leaf_sizes
        bounds: dict[str, tuple[int, int]] = {}
        for axis, (low, high) in zip(self._sides[1], ranges, strict=True):
            inner = math.prod(sizes[letter] for letter in axis[1:])
            bounds |= {letter: (0, sizes[letter]) for letter in axis[1:]}
            bounds[axis[0]] = (low // inner, high // inner)
        return bounds
