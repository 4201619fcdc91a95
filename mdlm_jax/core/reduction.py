"""The vocabulary reduction: from (hidden, head) the few per-position numbers a loss needs, without [B, L, V] arrays.

With logits u and the mask suppressed, l_e = u_e - log sum exp u is the denoiser's log-probability. One pass in chunks
of positions gives any of

    log_normaliser   log sum_e exp u_e                     target, current   l at given ids
    softplus_sum     S = sum_e softplus(l_e + c)           entropy           -sum_e exp(l_e) l_e
    kl               KL(teacher || model) or its reverse, to a teacher that takes no gradient
    mean_value       sum_e exp(l_e) w_e for given per-id values w
    top              the largest l_e, without a gradient: an id is the argmax where its own l equals it

The gradient is our own: the backward pass recomputes one chunk of logits at a time and turns the incoming cotangents
into d/du in closed form, so that only per-position numbers are kept between the passes. Chunks run along the length,
never across rows: a batch split over devices stays where it is.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from mdlm_jax.core.chunks import over_chunks, scan_chunks
from mdlm_jax.core.columns import ALL_HERE, Columns
from mdlm_jax.core.prediction import Prediction
from mdlm_jax.core.reduction_chunk import (
    Given,
    Reduced,
    Wanted,
    chunk_backward,
    chunk_forward,
    pull_back,
    suppressed_logits,
    teacher_log_probs,
)


def reduce(
    prediction: Prediction,
    *,
    suppress: int | None,
    target: jax.Array | None = None,
    current: jax.Array | None = None,
    offset: jax.Array | None = None,
    entropy: bool = False,
    values: jax.Array | None = None,
    teacher: Prediction | None = None,
    reverse_kl: bool = False,
    top: bool = False,
    chunk: int | None = None,
    columns: Columns = ALL_HERE,
) -> Reduced:
    """Reduces over the vocabulary, differentiably in ``prediction``, ``offset`` and ``values``.

    Args:
      prediction: hidden [B, L, D] and head.
      suppress: the id that can never be emitted (the mask), or None.
      target, current: [B, L] int ids whose log-probability is wanted. -inf for the suppressed id and for ids the head
        has no column for.
      offset: [B, L], c in the softplus sum; asks for ``softplus_sum`` (log(a N / u) of the mixed process).
      entropy: asks for the entropy.
      values: [V], w in ``mean_value``; differentiable.
      teacher: asks for KL(teacher || model); no gradient flows into it.
      reverse_kl: KL(model || teacher) instead.
      top: asks for the largest log-probability.
      chunk: positions of a row at a time; None: all. B * chunk * V logits are alive at once.
      columns: inside `jax.shard_map`, the mesh axis that splits the V columns of head, teacher's head and ``values``.
        Cotangents of the results, and gradients of what is not split, are then shares to be summed over that axis, as
        ``shard_map(check_vma=False)`` hands them out and takes them back.
    Returns:
      `Reduced`.
    Examples:
      >>> import jax.numpy as jnp
      >>> prediction = Prediction.from_logits(jnp.zeros((1, 2, 5)))
      >>> reduced = reduce(prediction, suppress=4, target=jnp.array([[0, 3]]), entropy=True)
      >>> jnp.exp(reduced.target), jnp.exp(reduced.entropy)  # four ids alike, since the mask is never emitted
      (Array([[0.25, 0.25]], dtype=float32), Array([[4., 4.]], dtype=float32))
    """
    length = prediction.hidden.shape[1]
    chunk = length if chunk is None else min(chunk, length)
    if chunk < 1:
        raise ValueError(f"chunk={chunk}: must be at least 1 position")
    wanted = Wanted(suppress, chunk, entropy, reverse_kl, columns, top)
    return _reduce(wanted, prediction, Given(target, current, offset), values, teacher)


def chunk_length(rows: int, columns: int, budget: int) -> int:
    """Positions a row so that rows * positions * columns stays within ``budget`` logits; at least 1."""
    return max(1, budget // max(1, rows * columns))


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _reduce(wanted: Wanted, prediction: Prediction, given: Given, values, teacher: Prediction | None) -> Reduced:
    return _forward(wanted, prediction, given, values, teacher)[0]


def _forward(wanted, prediction, given, values, teacher):
    def one(pieces):
        hidden, given_piece, teacher_hidden = pieces
        logits = suppressed_logits(prediction.head, hidden, wanted.suppress, wanted.columns)
        log_teacher = teacher_log_probs(teacher, teacher_hidden, wanted.suppress, wanted.columns)
        return chunk_forward(wanted, logits, given_piece, values, log_teacher)

    pieces = (prediction.hidden, given, None if teacher is None else teacher.hidden)
    reduced, slope = over_chunks(one, pieces, prediction.hidden.shape[1], wanted.chunk)
    return reduced, (prediction, given, values, teacher, reduced, slope)


def _backward(wanted, saved, shares: Reduced):
    prediction, given, values, teacher, reduced, slope = saved
    cotangent = wanted.columns.whole_cotangent(shares)
    head = prediction.head

    def one(sums, pieces):
        hidden, given_piece, teacher_hidden, reduced_piece, slope_piece, cotangent_piece = pieces
        logits = suppressed_logits(head, hidden, wanted.suppress, wanted.columns)
        log_teacher = teacher_log_probs(teacher, teacher_hidden, wanted.suppress, wanted.columns)
        grad_logits, grad_values = chunk_backward(
            wanted, logits, given_piece, values, log_teacher, reduced_piece, slope_piece, cotangent_piece
        )
        grad_head, grad_hidden = pull_back(head, hidden, grad_logits)
        return jax.tree.map(jnp.add, sums, (grad_head, grad_values)), grad_hidden

    teacher_hidden = None if teacher is None else teacher.hidden
    pieces = (prediction.hidden, given, teacher_hidden, reduced, slope, cotangent)
    zeros = jax.tree.map(lambda w: jnp.zeros(w.shape, jnp.promote_types(w.dtype, jnp.float32)), (head, values))
    sums, grad_hidden = scan_chunks(one, zeros, pieces, prediction.hidden.shape[1], wanted.chunk)
    grad_head, grad_values = jax.tree.map(lambda g, w: g.astype(w.dtype), sums, (head, values))
    grad_offset = None if given.offset is None else (shares.softplus_sum * slope).astype(given.offset.dtype)
    return (
        Prediction(grad_hidden.astype(prediction.hidden.dtype), grad_head),
        Given(_no_gradient(given.target), _no_gradient(given.current), grad_offset),
        grad_values,
        jax.tree.map(_no_gradient, teacher),
    )


_reduce.defvjp(_forward, _backward)


def _no_gradient(x):
    """The zero cotangent of an input that takes no gradient."""
    if x is None:
        return None
    if jnp.issubdtype(x.dtype, jnp.integer):
        return np.zeros(x.shape, jax.dtypes.float0)
    return jnp.zeros_like(x)
