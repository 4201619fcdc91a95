"""One chunk of the vocabulary reduction: its results, and their derivatives in closed form. See `core.reduction`."""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp

from mdlm_jax.core.columns import ALL_HERE, Columns
from mdlm_jax.core.linear import outer
from mdlm_jax.core.prediction import Asked, Head

_LARGE = 80.0  # softplus(s) = log(1 + e^s); beyond, it is s itself


@dataclasses.dataclass(frozen=True)
class Wanted:
    """The static part of a request."""

    suppress: int | None
    chunk: int
    entropy: bool
    reverse_kl: bool
    columns: Columns
    top: bool = False


class Given(NamedTuple):
    """Per-position inputs, [B, L] each or None."""

    target: jax.Array | None
    current: jax.Array | None
    offset: jax.Array | None


class Reduced(NamedTuple):
    """Per-position results, [B, L] each, in nats, at least float32; None where not asked for."""

    log_normaliser: jax.Array
    target: Asked = None
    current: Asked = None
    softplus_sum: Asked = None
    entropy: Asked = None
    kl: Asked = None
    mean_value: Asked = None
    top: Asked = None


def suppressed_logits(head: Head, hidden: jax.Array, suppress: int | None, columns: Columns = ALL_HERE) -> jax.Array:
    """Logits of one chunk with -inf at the suppressed id."""
    logits = head(hidden)
    held = logits.shape[-1]
    if suppress is None or suppress >= columns.count(held):
        return logits
    return jnp.where(columns.ids(held) == suppress, -jnp.inf, logits)


def teacher_log_probs(teacher, hidden, suppress, columns: Columns):
    if teacher is None:
        return None
    logits = suppressed_logits(teacher.head, hidden, suppress, columns)
    return logits - columns.logsumexp(logits)[..., None]


def chunk_forward(wanted: Wanted, logits, given: Given, values, log_teacher):
    columns = wanted.columns
    log_normaliser = columns.logsumexp(logits)
    log_probs = logits - log_normaliser[..., None]
    softplus_sum = slope = entropy = kl = mean_value = None
    if given.offset is not None:
        shifted = log_probs + given.offset[..., None]
        ratio = jnp.exp(jnp.minimum(shifted, _LARGE))
        softplus_sum = columns.sum(jnp.log1p(ratio) + jnp.maximum(shifted - _LARGE, 0.0))
        slope = columns.sum(ratio / (1.0 + ratio))
    if wanted.entropy:
        entropy = -_expectation(columns, log_probs, log_probs)
    if log_teacher is not None:
        first, second = (log_probs, log_teacher) if wanted.reverse_kl else (log_teacher, log_probs)
        kl = _expectation(columns, first, first - second)
    if values is not None:
        mean_value = columns.sum(jnp.exp(log_probs) * values)
    reduced = Reduced(
        log_normaliser,
        None if given.target is None else columns.at(log_probs, given.target),
        None if given.current is None else columns.at(log_probs, given.current),
        softplus_sum,
        entropy,
        kl,
        mean_value,
        columns.max(log_probs) if wanted.top else None,
    )
    return reduced, slope


def _expectation(columns: Columns, log_probs, values):
    """sum_e exp(log_probs) values, with 0 * inf = 0."""
    return columns.sum(jnp.where(jnp.isneginf(log_probs), 0.0, jnp.exp(log_probs) * values))


def chunk_backward(wanted, logits, given: Given, values, log_teacher, reduced: Reduced, slope, cotangent: Reduced):
    """d(loss)/du and d(loss)/d(values) from the cotangents; each block is the derivative of one field of `Reduced`."""
    # At most 0 by definition; positions that fill up the last chunk come without a normaliser and must stay finite.
    log_probs = jnp.minimum(logits - reduced.log_normaliser[..., None], 0.0)
    probs = jnp.exp(log_probs)
    possible = probs > 0
    ids_here = wanted.columns.ids(logits.shape[-1])
    on_probs = cotangent.log_normaliser  # collects the factors of p_e
    grad: float | jax.Array = 0.0
    for ids, weight in ((given.target, cotangent.target), (given.current, cotangent.current)):
        if ids is not None:
            impossible = jnp.isneginf(wanted.columns.at(log_probs, ids))  # takes no gradient
            weight = jnp.where(impossible, 0.0, weight)
            grad = grad + jnp.where(ids[..., None] == ids_here, weight[..., None], 0.0)
            on_probs = on_probs - weight
    if given.offset is not None:
        slope_here = jnp.where(possible, probs / (probs + jnp.exp(-given.offset)[..., None]), 0.0)  # at any offset
        grad = grad + cotangent.softplus_sum[..., None] * slope_here
        on_probs = on_probs - cotangent.softplus_sum * slope
    if wanted.entropy:
        surprise = jnp.where(possible, log_probs + reduced.entropy[..., None], 0.0)
        grad = grad - cotangent.entropy[..., None] * probs * surprise
    if log_teacher is not None and wanted.reverse_kl:
        excess = jnp.where(possible, log_probs - log_teacher - reduced.kl[..., None], 0.0)
        grad = grad + cotangent.kl[..., None] * probs * excess
    elif log_teacher is not None:
        grad = grad + cotangent.kl[..., None] * (probs - jnp.exp(log_teacher))
    grad_values = None
    if values is not None:
        weighted = cotangent.mean_value[..., None] * probs
        grad = grad + weighted * (values - reduced.mean_value[..., None])
        grad_values = weighted.sum((0, 1))
    return grad + on_probs[..., None] * probs, grad_values


def pull_back(head: Head, hidden: jax.Array, grad_logits: jax.Array):
    """Gradients of head (float32) and hidden from those of the logits; matmuls in the dtype of ``hidden``."""
    if head.guidance is not None:
        raise ValueError("guidance: is for decoding and takes no gradient; differentiate each branch by itself")
    wide = jnp.promote_types(hidden.dtype, jnp.float32)
    grad_bias = None if head.bias is None else grad_logits.sum((0, 1))
    if head.kernel is None:
        return dataclasses.replace(head, bias=grad_bias), _widened(head, grad_logits, hidden.shape[-1])
    narrow = grad_logits.astype(hidden.dtype)
    narrow = _widened(head, narrow, head.kernel.shape[-1])
    kernel = head.kernel.astype(hidden.dtype)
    grad_kernel = outer(hidden, narrow)
    grad_hidden = jnp.einsum("blv,dv->bld", narrow, kernel, preferred_element_type=wide)
    return dataclasses.replace(head, kernel=grad_kernel, bias=grad_bias), grad_hidden


def _widened(head: Head, grad_logits: jax.Array, width: int) -> jax.Array:
    """Zeros for the columns that the head cuts off."""
    if not head.columns:
        return grad_logits
    return jnp.pad(grad_logits, [(0, 0)] * (grad_logits.ndim - 1) + [(0, width - grad_logits.shape[-1])])
