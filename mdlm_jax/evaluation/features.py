"""Vectors of texts, for `evaluation.mauve`: a network's final hidden states, their mean or the last one."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from mdlm_jax.config import ConfigError

POOLINGS = ("mean", "last")


def hidden_features(network, params, rows: np.ndarray, *, pooling: str = "mean", batch: int = 64) -> np.ndarray:
    """One vector a row, float32 [N, D].

    Args:
      network: hashable, ``network(params, tokens [B, L]) -> Prediction``: a causal one sees a text as it is read, and
        its last state has seen all of it.
      rows: int [N, L] ids of that network, all of one length.
      pooling: mean over the positions, or the last one (MAUVE's own, of gpt2-large).
    Raises:
      ConfigError: another pooling, or rows that are none.
    """
    if pooling not in POOLINGS:
        raise ConfigError(f"pooling={pooling!r}: choose one of {', '.join(POOLINGS)}")
    rows = np.asarray(rows, np.int32)
    if rows.ndim != 2 or not rows.size:
        raise ConfigError(f"rows: have shape {rows.shape}; they must be [N, L], of one length")
    found = []
    for begin in range(0, len(rows), batch):
        piece = rows[begin : begin + batch]
        filled = np.pad(piece, ((0, batch - len(piece)), (0, 0)), mode="edge")
        found.append(np.asarray(_pooled(network, pooling, params, filled))[: len(piece)])
    return np.concatenate(found)


@functools.partial(jax.jit, static_argnums=(0, 1))
def _pooled(network, pooling: str, params, tokens) -> jax.Array:
    hidden = network(params, tokens).hidden.astype(jnp.float32)
    return hidden.mean(1) if pooling == "mean" else hidden[:, -1]
