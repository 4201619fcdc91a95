"""What a decoder reads off a prediction: a sample at each position and a few log-probabilities, in chunks.

No gradient here. Draws are exact (`core.categorical`), from float32 logits, with keys of their own for every position,
so that neither the batch nor the chunk a position is in can change them.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from mdlm_jax.core import categorical, truncation
from mdlm_jax.core.chunks import over_chunks
from mdlm_jax.core.prediction import Prediction
from mdlm_jax.core.reduction_chunk import suppressed_logits


class Drawn(NamedTuple):
    """Per-position results, [B, L] each; log-probabilities in nats, of the untempered, untruncated law."""

    sample: jax.Array  # int32: one draw (the argmax at temperature 0)
    sample_log_prob: jax.Array
    current_log_prob: jax.Array | None  # of the given current tokens; -inf for the suppressed id
    argmax: jax.Array  # int32
    top_log_prob: jax.Array  # of the argmax
    second_log_prob: jax.Array  # of the runner-up
    entropy: jax.Array


def draw(
    prediction: Prediction,
    keys: jax.Array,
    *,
    suppress: int | None,
    current: jax.Array | None = None,
    temperature: float = 1.0,
    top_p: float = 1.0,
    top_k: int = 0,
    chunk: int | None = None,
) -> Drawn:
    """Draws from softmax(logits / temperature) at every position.

    Args:
      prediction: hidden [B, L, D] and head.
      keys: [B] keys, one a row; position l uses ``fold_in(key, l)``.
      suppress: the id that is never drawn (the mask), or None.
      current: [B, L] ids whose log-probability is wanted too.
      temperature: 0 takes the argmax. Static.
      top_p, top_k: truncation before the draw (`core.truncation`); 1.0 and 0 turn it off. Static.
      chunk: positions of a row at a time; None: all. Changes memory, not results.
    """
    prediction = jax.lax.stop_gradient(prediction)
    rows, length = prediction.hidden.shape[:2]
    chunk = length if chunk is None else min(chunk, length)
    if chunk < 1:
        raise ValueError(f"chunk={chunk}: must be at least 1 position")

    def one(pieces):
        hidden, current_piece, positions = pieces
        logits = suppressed_logits(prediction.head, hidden, suppress)
        return _draw(logits, keys, positions, current_piece, temperature, top_p, top_k)

    positions = jnp.broadcast_to(jnp.arange(length), (rows, length))
    return over_chunks(one, (prediction.hidden, current, positions), length, chunk)


def _draw(logits, keys, positions, current, temperature, top_p, top_k) -> Drawn:
    log_probs = jax.nn.log_softmax(logits, axis=-1)
    top, ids = jax.lax.top_k(log_probs, 2)
    argmax = ids[..., 0].astype(jnp.int32)
    if temperature == 0.0:
        sample = argmax
    else:
        tempered = logits if temperature == 1.0 else truncation.temperature(logits, temperature)
        if top_k:
            tempered = truncation.top_k(tempered, top_k)
        if top_p < 1.0:
            tempered = truncation.top_p(tempered, top_p)
        place = jax.vmap(jax.vmap(jax.random.fold_in, in_axes=(None, 0)))
        sample = jax.vmap(jax.vmap(categorical.categorical))(place(keys, positions), tempered)
    probs = jnp.exp(log_probs)
    return Drawn(
        sample,
        _at(log_probs, sample),
        None if current is None else _at(log_probs, current),
        argmax,
        top[..., 0],
        top[..., 1],
        -jnp.where(probs > 0, probs * log_probs, 0.0).sum(-1),
    )


def _at(values: jax.Array, ids: jax.Array) -> jax.Array:
    """values[..., ids]; -inf for ids without a column."""
    inside = ids < values.shape[-1]
    found = jnp.take_along_axis(values, jnp.where(inside, ids, 0)[..., None], axis=-1)[..., 0]
    return jnp.where(inside, found, -jnp.inf)
