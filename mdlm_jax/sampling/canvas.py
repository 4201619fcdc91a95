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
      editable: [B, L] bool, what a decoder may change; a prompt is not.
      row_ids: [B] int32; keys are folded per row id, so a row's result does not depend on its batch.
    """

    tokens: jax.Array
    editable: jax.Array
    row_ids: jax.Array


@dataclasses.dataclass(frozen=True)
class Trace:
    """How one row came about. ``tokens``: int [S + 1, L], the canvas before the first step and after each."""

    tokens: np.ndarray


def blank(mask_id: int, rows: int, length: int, prompt: np.ndarray | None = None, first_row: int = 0) -> Canvas:
    """``rows`` canvases of masks, each beginning with ``prompt`` [P] int32.

    Raises:
      ValueError: a prompt that leaves nothing to write.
    """
    prompt = np.zeros((0,), np.int32) if prompt is None else np.asarray(prompt, np.int32)
    if len(prompt) >= length:
        raise ValueError(f"prompt of {len(prompt)} tokens: must be shorter than the length {length}")
    tokens = np.full((rows, length), mask_id, np.int32)
    tokens[:, : len(prompt)] = prompt
    editable = np.ones((rows, length), bool)
    editable[:, : len(prompt)] = False
    return Canvas(jnp.asarray(tokens), jnp.asarray(editable), jnp.arange(first_row, first_row + rows, dtype=jnp.int32))
