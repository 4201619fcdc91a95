"""The contracts as rules the splash kernel evaluates inside its tiles: no L x L array, on the host or on the device.

The kernel gives a mask one int32 number a query and asks, tile by tile, rule(number, index of the key) -> bool. All
that depends on the query alone is put into the number here, so a tile costs comparisons and no division:

    contract       number of a query                        sees key j if
    causal         i + 1                                    j < number
    block_causal   end of its block                         j < number
    two_stream     noisy: start of its block in its half    number <= j < number + block_length, noisy half, or
                   clean: -(end of its block in its half)   j - half < |number|, clean half

This file is all that leans on how `jax.experimental.pallas` reads a mask: it takes any `Mask` with the attributes
``q_sequence`` and ``mask_function`` as computable. tests/models/attention/test_splash_masks.py fails where that ends.
"""

import dataclasses

import numpy as np
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask

CONTRACTS = ("causal", "block_causal", "two_stream")


@dataclasses.dataclass(frozen=True)
class Rule:
    """Who sees whom by index; hashable, since the kernel compiles it.

    Attributes:
      contract, block_length: as in `visibility`.
      queries, keys: true lengths; indices beyond them are padding, which segments hide.
    """

    contract: str
    block_length: int
    queries: int
    keys: int

    def numbers(self, padded: int) -> np.ndarray:
        """[padded] int32, what the table above says of each query."""
        index = np.arange(padded, dtype=np.int32)
        if self.contract == "causal":
            return index + 1
        block = self.block_length
        if self.contract == "block_causal":
            return (index // block + 1) * block
        half = self.queries // 2
        start = index % half // block * block
        return np.where(index < half, start, -(start + block)).astype(np.int32)

    def __call__(self, number, key):
        """Broadcasts; NumPy arrays on the host, jax arrays in the kernel."""
        if self.contract != "two_stream":
            return key < number
        half = self.keys // 2
        noisy = (number <= key) & (key < number + self.block_length) & (key < half)
        return noisy | ((key >= half) & (key - half < abs(number)))


class RuleMask(splash_attention_mask.Mask):
    """A `Rule` over a padded [queries, keys] plane, in the form the kernel takes."""

    def __init__(self, rule: Rule, shape: tuple[int, int]):
        self.mask_function = rule
        self.q_sequence = rule.numbers(shape[0])
        self._shape = shape

    @property
    def shape(self) -> tuple[int, int]:
        return self._shape

    def __getitem__(self, tile: tuple[slice, slice]) -> np.ndarray:
        rows, columns = tile
        keys = np.arange(*columns.indices(self._shape[1]), dtype=np.int32)
        return self.mask_function(self.q_sequence[rows, None], keys[None, :])

    def __eq__(self, other: object) -> bool:
        return isinstance(other, RuleMask) and self._identity == other._identity

    def __hash__(self) -> int:
        return hash(self._identity)

    @property
    def _identity(self):
        return self.mask_function, self._shape


def make(contract: str, block_length: int, lengths: tuple[int, int], padded: tuple[int, int]):
    """The mask of one head over [padded queries, padded keys]; ``lengths`` are the true ones."""
    if contract == "bidirectional":
        return splash_attention_mask.FullMask(padded)
    return RuleMask(Rule(contract, block_length, *lengths), padded)
