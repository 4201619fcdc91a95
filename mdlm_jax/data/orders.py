"""Which stored row stands where in the endless stream of training rows: pure functions with O(1) seek.

An order maps positions of the stream (integers [n] from 0 on) to row numbers int64 [n]. Hosts and restarts ask for
whatever positions they need.
"""

import dataclasses
import functools
import json

import numpy as np

from mdlm_jax.config import ConfigError
from mdlm_jax.data.shuffle import permute

PARTS = 10_000  # a mixture's weights are whole ten-thousandths, so up to four decimals are exact
_NEXT_SEED = 0x9E3779B97F4A7C15


@dataclasses.dataclass(frozen=True)
class InOrder:
    """One epoch after another, each as the rows are stored."""

    num_rows: int

    def __call__(self, positions: np.ndarray) -> np.ndarray:
        return positions % self.num_rows


@dataclasses.dataclass(frozen=True)
class Shuffled:
    """One epoch after another, each with every row once in an order of its own drawn from (seed, epoch)."""

    num_rows: int
    seed: int

    def __call__(self, positions: np.ndarray) -> np.ndarray:
        epoch, index = np.divmod(positions, self.num_rows)
        return permute(index, epoch, self.num_rows, self.seed)


@dataclasses.dataclass(frozen=True)
class Mixed:
    """Rows of K sources, stored one source after the other, in given shares.

    Which source a position takes is a pattern of ``PARTS`` places, repeated without end: the chairman assignment of
    Tijdeman 1980, in which after n places each source has had its share of n to within 1 - 1/(2K - 2) rows. The places
    of each batch are shuffled among themselves, so the bound holds at the end of every batch. Each source runs through
    its own epochs, every row once in each, whatever the others do.

    Attributes:
      sizes: rows of each source.
      weights: of each source, positive; they need not sum to 1.
      batch_size, seed: of the run.
    """

    sizes: tuple[int, ...]
    weights: tuple[float, ...]
    batch_size: int
    seed: int

    @functools.cached_property
    def counts(self) -> tuple[int, ...]:
        """Places of each source among ``PARTS``: the weights by largest remainders, off by less than one place.

        Raises:
          ConfigError: a weight is too small for a single place.
        """
        total = sum(self.weights)
        exact = [weight / total * PARTS for weight in self.weights]
        counts = [int(value + 1e-9) for value in exact]
        for k in sorted(range(len(exact)), key=lambda k: counts[k] - exact[k])[: PARTS - sum(counts)]:
            counts[k] += 1
        if min(counts) < 1:
            raise ConfigError(f"data.source: the weight {min(self.weights)} in {self.weights} is less than 1 part in "
                              f"{PARTS}; raise it or leave its folder out")
        return tuple(counts)

    @functools.cached_property
    def _pattern(self) -> tuple[np.ndarray, np.ndarray]:
        """Source of each of the ``PARTS`` places [P], and how many places of each source come before each [P, K]."""
        source = np.array(_chairmen(self.counts), np.int64)
        taken = np.eye(len(self.counts), dtype=np.int64)[source]
        return source, np.cumsum(taken, axis=0) - taken

    def sources(self, positions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Of each position its source and how many rows of that source the stream has had before it, int64 [n].

        O(B) for each step that the positions touch, wherever it is.
        """
        source, before = self._pattern
        step, place = np.divmod(positions, self.batch_size)
        steps, line = np.unique(step, return_inverse=True)
        lines = np.repeat(steps[:, None], self.batch_size, axis=1)
        places = np.tile(np.arange(self.batch_size), (len(steps), 1))
        places = permute(places.ravel(), lines.ravel(), self.batch_size, self.seed + _NEXT_SEED).reshape(lines.shape)
        shown = source[(lines * self.batch_size + places) % PARTS]  # source of every place of every batch touched
        period, slot = np.divmod(steps * self.batch_size, PARTS)
        number = np.empty_like(shown)
        for k, count in enumerate(self.counts):
            mine = shown == k
            first = period * count + before[slot, k]
            number[mine] = (first[:, None] + np.cumsum(mine, axis=1) - 1)[mine]
        return shown[line, place], number[line, place]

    def __call__(self, positions: np.ndarray) -> np.ndarray:
        source, number = self.sources(positions)
        index, before = np.empty(len(positions), np.int64), 0
        for k, size in enumerate(self.sizes):
            mine = source == k
            index[mine] = before + Shuffled(size, self.seed + k * _NEXT_SEED)(number[mine])
            before += size
        return index

    def describe(self) -> str:
        """What decides the order, besides batch size and seed."""
        return json.dumps([self.sizes, self.counts])


def _chairmen(counts: tuple[int, ...]) -> list[int]:
    """Tijdeman's rule in whole numbers: of the sources due at place n, the one whose deadline comes first.

    With weights w = counts / P, source k is due if w_k n - taken_k >= 1/(2K - 2), and its deadline comes the earlier,
    the smaller (1 - 1/(2K - 2) - (w_k n - taken_k)) / w_k. All is multiplied by P (2K - 2); only the ratio is rounded.
    """
    total, halves = sum(counts), 2 * len(counts) - 2
    if not halves:
        return [0] * total
    taken, chosen = [0] * len(counts), []
    for n in range(1, total + 1):
        owed = [halves * (count * n - had * total) for count, had in zip(counts, taken, strict=True)]
        due = [k for k, value in enumerate(owed) if value >= total]
        best = min(due, key=lambda k: (total * (halves - 1) - owed[k]) / counts[k])
        taken[best] += 1
        chosen.append(best)
    return chosen
