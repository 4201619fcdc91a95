"""A mixture of M products of laws over the vocabulary, p(x) = mean_m prod_i p_m(x_i), of which no [B, M, L, V] is made.

Logits exist for a chunk of positions at a time, and are made again for the gradient, which is what jax derives.
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp

from mdlm_jax.core.chunks import over_chunks
from mdlm_jax.core.columns import ALL_HERE
from mdlm_jax.core.prediction import Prediction
from mdlm_jax.core.reduction_chunk import suppressed_logits, teacher_log_probs


class Mixed(NamedTuple):
    """In nats.

    Attributes:
      chosen: [T, B, M, L] log p_m(x_i) of the tokens asked for.
      apart: [B, L] mean_m KL(teacher_i || p_m,i).
      together: [B, L] KL(teacher_i || mean_m p_m,i), at most ``apart``.
    """

    chosen: jax.Array
    apart: jax.Array
    together: jax.Array


def reduce(prediction: Prediction, tokens: jax.Array, teacher: Prediction, *, suppress: int | None,
           chunk: int | None = None) -> Mixed:
    """Reduces over the vocabulary, differentiably in ``prediction``.

    Args:
      prediction: hidden [B * M, L, D], component m of row b at b M + m.
      tokens: [T, B, L] int ids; -inf for the suppressed id and for ids the head has no column for.
      teacher: hidden [B, L, D]; takes no gradient.
      suppress: the id that can never be emitted (the mask), or None.
      chunk: positions of a row at a time; None: all. B * M * chunk * V logits are alive at once.
    """
    rows, length, width = teacher.hidden.shape[0], *prediction.hidden.shape[1:]
    teacher = jax.lax.stop_gradient(teacher)
    # The head's gradient is summed over chunks in the dtype that it has here.
    head = jax.tree.map(lambda w: w.astype(jnp.promote_types(w.dtype, jnp.float32)), prediction.head)

    @jax.checkpoint
    def one(pieces):
        hidden, ids, teacher_hidden = pieces  # [B, C, M, D], [B, C, T], [B, C, D]
        logits = suppressed_logits(head, hidden, suppress)
        log_probs = logits - jax.nn.logsumexp(logits, axis=-1, keepdims=True)
        log_teacher = teacher_log_probs(teacher, teacher_hidden, suppress, ALL_HERE)
        return _chosen(log_probs, ids), *_divergences(log_probs, log_teacher)

    hidden = jnp.swapaxes(prediction.hidden.reshape(rows, -1, length, width), 1, 2)
    pieces = (hidden, jnp.moveaxis(tokens, 0, -1), teacher.hidden)
    chosen, apart, together = over_chunks(one, pieces, length, length if chunk is None else min(chunk, length))
    return Mixed(jnp.transpose(chosen, (3, 0, 2, 1)), apart, together)


def _chosen(log_probs: jax.Array, ids: jax.Array) -> jax.Array:
    """[B, C, M, T]."""
    columns = log_probs.shape[-1]
    index = jnp.broadcast_to(jnp.minimum(ids, columns - 1)[:, :, None], (*log_probs.shape[:3], ids.shape[-1]))
    found = jnp.take_along_axis(log_probs, index, axis=-1)
    return jnp.where((ids < columns)[:, :, None], found, -jnp.inf)


def _divergences(log_probs: jax.Array, log_teacher: jax.Array) -> tuple[jax.Array, jax.Array]:
    """[B, C] each; 0 log 0 = 0, and what the teacher cannot say sends no gradient."""
    possible = ~jnp.isneginf(log_teacher)
    p, log_p = jnp.where(possible, jnp.exp(log_teacher), 0.0), jnp.where(possible, log_teacher, 0.0)
    log_q = jnp.where(possible[:, :, None], log_probs, 0.0)
    apart = (p * (log_p - log_q.mean(2))).sum(-1)
    return apart, (p * (log_p - mean_exp(log_q, 2))).sum(-1)


def mean_exp(log: jax.Array, axis: int) -> jax.Array:
    """log mean exp."""
    return jax.nn.logsumexp(log, axis=axis) - math.log(log.shape[axis])


def one_after_another(chosen: jax.Array) -> jax.Array:
    """[B, L]: log p(x_i | x_<i) of the mixture, from log p_m(x_i) [B, M, L]; in all log p(x)."""
    until = mean_exp(jnp.cumsum(chosen, axis=-1), 1)
    return jnp.diff(until, axis=-1, prepend=jnp.zeros_like(until[:, :1]))


def correlation(chosen: jax.Array) -> jax.Array:
    """[B, L]: log p(x_i | x_<i) - log p(x_i) of the mixture, from log p_m(x_i) [B, M, L]; 0 where M = 1."""
    return one_after_another(chosen) - mean_exp(chosen, 1)
