"""The canvas: what a decoder writes on."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Canvas:
    """Rows of tokens under construction.

    Attributes:
      tokens: [B, L] int32.
      editable: [B, L] bool, what a decoder may change; a prompt is not. The loop, not the decoder, sees to that.
      row_ids: [B] int32; keys are folded per row id, so a row's result does not depend on its batch.
      start: [B] int32, where a row's first block begins: usually the end of its prompt.
      segment: [B, L] int32 or None, 0 where there is padding, which nothing sees; None: no padding.
      positions: [B, L] int32 or None, each token's place in its row, which its noise and its rotation belong to; None:
        its index.
      condition: [B] int32 or None, the class that a row is to have, `conditioning.NO_CLASS` for none; None: none for
        all. For networks with classes; guidance is then towards it.
    """

    tokens: jax.Array
    editable: jax.Array
    row_ids: jax.Array
    start: jax.Array
    segment: jax.Array | None = None
    positions: jax.Array | None = None
    condition: jax.Array | None = None

    @property
    def shape(self) -> tuple[int, int]:
        rows, length = self.tokens.shape
        return rows, length

    def place(self) -> jax.Array:
        """[B, L] int32: ``positions``, or the index."""
        return jnp.broadcast_to(jnp.arange(self.shape[1]), self.shape) if self.positions is None else self.positions


@dataclasses.dataclass(frozen=True)
class Trace:
    """How one row came about. ``tokens``: int [S + 1, L], the canvas before the first step and after each."""

    tokens: np.ndarray


def blank(mask_id: int, rows: int, length: int, prompt: np.ndarray | None = None, first_row: int = 0,
          condition=None) -> Canvas:
    """``rows`` canvases of masks, each beginning with ``prompt`` [P] int32; ``condition``: a class for each, or None.

    Raises:
      ValueError: a prompt that leaves nothing to write.
    Examples:
      >>> blank(mask_id=9, rows=1, length=5, prompt=[3, 1]).tokens
      Array([[3, 1, 9, 9, 9]], dtype=int32)
    """
    prompt = np.zeros((0,), np.int32) if prompt is None else np.asarray(prompt, np.int32)
    if len(prompt) >= length:
        raise ValueError(f"prompt of {len(prompt)} tokens: must be shorter than the length {length}")
    tokens = np.full((rows, length), mask_id, np.int32)
    tokens[:, : len(prompt)] = prompt
    editable = np.ones((rows, length), bool)
    editable[:, : len(prompt)] = False
    return canvas(tokens, editable, first_row=first_row, condition=condition)


def canvas(tokens, editable, *, segment=None, start=None, first_row: int = 0, condition=None) -> Canvas:
    """A canvas from arrays [B, L] on the host; blocks begin at the first editable position, or at ``start`` [B].

    With ``segment`` the places of a row are counted without its padding, so that padding changes nothing.

    Raises:
      ValueError: no rows, shapes that differ, nothing editable in a row, or not a class [B] for each row.
    """
    tokens, editable = np.asarray(tokens, np.int32), np.asarray(editable, bool)
    if tokens.ndim != 2 or not tokens.size or tokens.shape != editable.shape:
        raise ValueError(f"tokens {list(tokens.shape)} and editable {list(editable.shape)}: must be the same [B, L]")
    if not editable.any(1).all():
        raise ValueError(f"row {int((~editable.any(1)).argmax())}: has nothing to write; leave it out")
    if condition is not None and np.shape(condition) != tokens.shape[:1]:
        raise ValueError(f"condition: has shape {list(np.shape(condition))}; it must be {list(tokens.shape[:1])}, a "
                         "class for each row")
    start = editable.argmax(1) if start is None else np.broadcast_to(start, tokens.shape[:1])
    positions = None
    if segment is not None:
        segment = np.asarray(segment, np.int32)
        if (editable & (segment == 0)).any():
            raise ValueError("segment: a position to be written is padding; make it 1 there")
        positions = jnp.asarray(np.maximum(np.cumsum(segment > 0, axis=1) - 1, 0), jnp.int32)
    return Canvas(
        jnp.asarray(tokens),
        jnp.asarray(editable),
        jnp.arange(first_row, first_row + len(tokens), dtype=jnp.int32),
        jnp.asarray(start, jnp.int32),
        None if segment is None else jnp.asarray(segment),
        positions,
        None if condition is None else jnp.asarray(condition, jnp.int32),
    )
