"""Rows of unequal lengths as canvases of few shapes, so that few programs serve them all.

A row is filled up on the right with padding that nothing sees, and a batch with copies of its last row. Lengths come
four to an octave and numbers of rows in powers of two, or as the whole batch: one compilation serves a (rows, length)
bucket, and less than a fifth of the positions are padding where rows are alike.
"""

import dataclasses
from collections.abc import Iterator, Sequence

import jax.numpy as jnp
import numpy as np

from mdlm_jax.sampling.canvas import Canvas, canvas

_SHORTEST = 32  # positions


@dataclasses.dataclass(frozen=True)
class Row:
    """One row to be written.

    Attributes:
      tokens: [n] int32, masks where ``editable``; where they are to be scored, what is to be scored.
      editable: [n] bool, what is to be written.
      row_id: what its randomness belongs to, with the seed.
      condition: the class it is to have; None: nothing is said, of all rows alike.
    """

    tokens: np.ndarray
    editable: np.ndarray
    row_id: int
    condition: int | None = None

    @property
    def start(self) -> int:
        """Where its first block begins."""
        return int(self.editable.argmax())

    def __len__(self) -> int:
        return len(self.tokens)


def bucket(length: int, most: int = 0) -> int:
    """The least length of a canvas that holds ``length``: 32, 40, 48, 56, 64, 80, ...; ``most``: at most, if not 0."""
    unit = max(_SHORTEST, 1 << (length - 1).bit_length() >> 1) // 4
    rounded = max(_SHORTEST, -(-length // unit) * unit)
    return min(rounded, most) if most else rounded


def batches(rows: Sequence[Row], fill_id: int, *, batch_size: int, most: int = 0, shards: int = 1, context: int = 1,
            segments: bool = True) -> Iterator[tuple[list[int], Canvas]]:
    """The rows in canvases of at most ``batch_size``, shortest first: yields (indices of its rows, canvas).

    Args:
      fill_id: stands in the padding: the mask.
      most: positions the network can tell apart; 0: any number.
      shards, context: devices that share the rows of a batch, and the positions of a row.
      segments: whether padding is marked as such; False for networks that do not look to the right anyway.
    """
    order = sorted(range(len(rows)), key=lambda i: len(rows[i]))
    for begin in range(0, len(order), batch_size):
        chosen = order[begin : begin + batch_size]
        length = bucket(len(rows[chosen[-1]]), most)
        count = min(1 << (len(chosen) - 1).bit_length(), batch_size)
        yield chosen, _canvas([rows[i] for i in chosen], count, -(-length // context) * context, fill_id, shards,
                              segments)


def _canvas(rows: list[Row], count: int, length: int, fill_id: int, shards: int, segments: bool) -> Canvas:
    rows = rows + rows[-1:] * (-(-count // shards) * shards - len(rows))
    tokens = np.full((len(rows), length), fill_id, np.int32)
    editable = np.zeros((len(rows), length), bool)
    segment = np.zeros((len(rows), length), np.int32)
    for i, row in enumerate(rows):
        tokens[i, : len(row)] = row.tokens
        editable[i, : len(row)] = row.editable
        segment[i, : len(row)] = 1
    condition = None if rows[0].condition is None else [row.condition for row in rows]
    made = canvas(tokens, editable, start=np.array([row.start for row in rows]), condition=condition)
    return dataclasses.replace(
        made,
        row_ids=jnp.asarray([row.row_id for row in rows], jnp.uint32).astype(jnp.int32),
        segment=jnp.asarray(segment) if segments else None,
    )
