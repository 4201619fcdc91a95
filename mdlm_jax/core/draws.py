"""What a decoder reads off a prediction: a sample at each position and a few log-probabilities, in chunks.

No gradient here. Draws are exact (`core.categorical`), from float32 logits, with keys of their own for every position,
so that neither the batch, nor the window, nor the chunk a position is in can change them.
"""

import functools
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp

from mdlm_jax.core import categorical, truncation
from mdlm_jax.core.chunks import over_chunks
from mdlm_jax.core.prediction import Asked, Prediction
from mdlm_jax.core.reduction_chunk import suppressed_logits

_ROWS = 256  # of the head at once where only some positions are wanted: enough to keep a matrix product busy


class Drawn(NamedTuple):
    """Per-position results, [B, L] each, None where not wanted; log-probabilities in nats.

    All are of the untempered, untruncated law, ``law_log_prob`` apart.
    """

    sample: Asked = None  # int32: one draw (the argmax at temperature 0), or the forced id
    sample_log_prob: Asked = None
    law_log_prob: Asked = None  # of the sample under the law it is drawn from; 0 at temperature 0
    current_log_prob: Asked = None  # of the given current tokens; -inf for the suppressed id
    argmax: Asked = None  # int32
    top_log_prob: Asked = None  # of the argmax
    second_log_prob: Asked = None  # of the runner-up
    entropy: Asked = None


EVERYTHING = ("sample", "sample_log_prob", "argmax", "top_log_prob", "second_log_prob", "entropy")


def draw(
    prediction: Prediction,
    keys: jax.Array,
    *,
    suppress: int | None,
    wants: tuple[str, ...] = EVERYTHING,
    current: jax.Array | None = None,
    forced: jax.Array | None = None,
    positions: jax.Array | None = None,
    where: jax.Array | None = None,
    most: int | None = None,
    raised: tuple[jax.Array, jax.Array] | None = None,
    temperature: float | jax.Array = 1.0,
    top_p: float | jax.Array = 1.0,
    top_k: int = 0,
    keep_crossing: bool = True,
    extrapolate: tuple[jax.Array, jax.Array] | None = None,
    sharpen: Callable[[jax.Array], jax.Array] | None = None,
    unsure: tuple[int, ...] = (),
    chunk: int | None = None,
) -> Drawn:
    """Draws from softmax(logits / temperature) at every position.

    Args:
      prediction: hidden [B, L, D] and head.
      keys: [B] keys, one a row; position l uses ``fold_in(key, positions[l])``.
      suppress: the id that is never drawn (the mask), or None.
      wants: fields of `Drawn` to compute.
      current: [B, L] ids whose log-probability is wanted too.
      forced: [B, L] ids to take in place of the draw.
      positions: [B, L] int32; None: 0..L-1.
      where: [B, L] bool, the positions whose results are wanted; the head is applied to those alone (to whole chunks of
        them), and elsewhere results are 0. None: all.
      most: positions that a row wants at most, if that is known before; smaller chunks then suffice.
      raised: [B, L, N] ids, -1 for none, and [B, L, N] float32, what is added to their logits there before all else.
      temperature: 0 takes the argmax. May be traced, as ``top_p`` may.
      top_p, top_k, keep_crossing: truncation before the draw (`core.truncation`); 1.0 and 0 turn it off. All but
        ``top_p`` are static.
      extrapolate: hidden states [B, L, D] of an earlier prediction and weights w [B, L]: in place of p the law is
        p + w (p - earlier), cut at 0 and made to sum to one. w = 0 is p itself.
      sharpen: function of logits [..., V]; what it gives takes the place of the network's own in every result.
      unsure: ids that ``sample_log_prob`` takes for impossible: -inf for them, the others renormalised.
      chunk: positions of a row at a time; None: all. Changes memory, not results.
    """
    prediction = jax.lax.stop_gradient(prediction)
    rows, length = prediction.hidden.shape[:2]
    chunk = length if chunk is None else min(chunk, length)
    if chunk < 1:
        raise ValueError(f"chunk={chunk}: must be at least 1 position")
    sharper = functools.partial(law, temperature=temperature, top_p=top_p, top_k=top_k, keep_crossing=keep_crossing)
    wants = tuple(wants) + (("law_log_prob",) if forced is not None and "sample" in wants else ())

    def one(pieces):
        hidden, current_piece, forced_piece, places, earlier, raised_piece = pieces
        logits = suppressed_logits(prediction.head, hidden, suppress)
        if earlier is not None:
            logits = _extrapolated(logits, suppressed_logits(prediction.head, earlier[0], suppress), earlier[1])
        logits = logits if sharpen is None else sharpen(logits)
        logits = logits if raised_piece is None else _raised(logits, *raised_piece)
        return _draw(logits, keys, places, wants, current_piece, forced_piece, sharper, temperature, unsure)

    if positions is None:
        positions = jnp.broadcast_to(jnp.arange(length), (rows, length))
    pieces = (prediction.hidden, current, forced, positions, jax.lax.stop_gradient(extrapolate), raised)
    if where is None:
        return over_chunks(one, pieces, length, chunk)
    wanted = enough(rows) if most is None else most
    return over_wanted(one, pieces, where, min(chunk, wanted, length))


def outside(
    prediction: Prediction,
    keys: jax.Array,
    barred: Sequence[jax.Array],
    *,
    positions: jax.Array,
    where: jax.Array | None = None,
    temperature: float | jax.Array = 1.0,
    chunk: int | None = None,
) -> tuple[tuple[jax.Array, jax.Array], ...]:
    """For each set of ids a draw from softmax(logits / temperature) without them, and its probability with them.

    Args:
      prediction, keys, positions, where, temperature, chunk: as for `draw`; all sets share a position's key.
      barred: arrays of ids, [..., N] before [B, L]; -1 for none.
    Returns:
      (ids [B, L] int32, log-probabilities [B, L] in nats) of each set. At temperature 0 the likeliest id, and its
      probability under the network's own law. -inf: no id was left.
    """
    prediction, shape = jax.lax.stop_gradient(prediction), prediction.hidden.shape[:2]
    barred = tuple(jnp.broadcast_to(ids, (*shape, jnp.shape(ids)[-1])) for ids in barred)

    def one(pieces):
        hidden, places, *sets = pieces
        logits = law(suppressed_logits(prediction.head, hidden, None), temperature, 1.0, 0)
        normaliser = jax.nn.logsumexp(logits, axis=-1)
        columns, found = jnp.arange(logits.shape[-1]), []
        for ids in sets:
            left = jnp.where((columns == ids[..., None]).any(-2), -jnp.inf, logits)
            argmax = jnp.argmax(left, axis=-1).astype(jnp.int32)
            drawn = _sample(left, keys, places, argmax, lambda logits: logits, temperature)
            found.append((drawn, _at(left, drawn) - normaliser))
        return tuple(found)

    pieces, chunk = (prediction.hidden, positions, *barred), min(chunk or shape[1], shape[1])
    if where is None:
        return over_chunks(one, pieces, shape[1], chunk)
    return over_wanted(one, pieces, where, min(chunk, enough(shape[0]), shape[1]))


def enough(rows: int) -> int:
    """Positions of each of ``rows`` that keep a matrix product busy."""
    return max(8, -(-_ROWS // rows))


def over_wanted(one: Callable, pieces, where: jax.Array, chunk: int):
    """``one`` on the positions of ``where`` alone: gathered to the front of each row, taken ``chunk`` at a time.

    ``pieces``: arrays [B, L, ...]. Results [B, L, ...] are 0 elsewhere.
    """
    rows, length = where.shape
    order = jnp.argsort(~where, axis=1, stable=True)
    order = jnp.pad(order, ((0, 0), (0, -length % chunk)))
    count = where.sum(1)
    most = count.max()

    def gather(start):
        index = jax.lax.dynamic_slice_in_dim(order, start, chunk, axis=1)
        taken = jax.tree.map(lambda x: jax.vmap(lambda row, at: row[at])(x, index), pieces)
        inside = start + jnp.arange(chunk) < count[:, None]
        return jnp.where(inside, index, length), taken  # a place beyond the end is dropped when written

    def body(carry):
        start, found = carry
        index, taken = gather(start)
        put = jax.vmap(lambda row, at, value: row.at[at].set(value, mode="drop"))
        return start + chunk, jax.tree.map(lambda all_, piece: put(all_, index, piece), found, one(taken))

    shapes = jax.eval_shape(lambda: one(gather(0)[1]))
    empty = jax.tree.map(lambda x: jnp.zeros((rows, length, *x.shape[2:]), x.dtype), shapes)
    return jax.lax.while_loop(lambda carry: carry[0] < most, body, (jnp.int32(0), empty))[1]


def _draw(logits, keys, positions, wants, current, forced, sharper, temperature, unsure) -> Drawn:
    found = {}
    normaliser = jax.nn.logsumexp(logits, axis=-1, keepdims=True)
    if {"argmax", "top_log_prob", "second_log_prob"} & set(wants) or "sample" in wants:
        argmax = jnp.argmax(logits, axis=-1).astype(jnp.int32)
        found["argmax"] = argmax
        found["top_log_prob"] = (jnp.max(logits, axis=-1, keepdims=True) - normaliser)[..., 0]
    if "second_log_prob" in wants:
        others = jnp.where(jnp.arange(logits.shape[-1]) == argmax[..., None], -jnp.inf, logits)
        found["second_log_prob"] = (jnp.max(others, axis=-1, keepdims=True) - normaliser)[..., 0]
    if forced is not None:
        found["sample"] = forced
    elif "sample" in wants:
        found["sample"] = _sample(logits, keys, positions, argmax, sharper, temperature)
    if "sample_log_prob" in wants:
        others = _without(logits, unsure)
        total = jax.nn.logsumexp(others, axis=-1) if unsure else normaliser[..., 0]
        found["sample_log_prob"] = _at(others, found["sample"]) - total
    if "law_log_prob" in wants:
        found["law_log_prob"] = _law_log_prob(logits, found["sample"], argmax, sharper, temperature)
    if current is not None:
        found["current_log_prob"] = _at(logits, current) - normaliser[..., 0]
    if "entropy" in wants:
        log_probs = logits - normaliser
        probs = jnp.exp(log_probs)
        found["entropy"] = -jnp.where(probs > 0, probs * log_probs, 0.0).sum(-1)
    kept = {*wants, *(["current_log_prob"] if current is not None else []), *(["sample"] if forced is not None else [])}
    return Drawn(**{name: value for name, value in found.items() if name in kept})


def _raised(logits, ids, by) -> jax.Array:
    """``by`` [..., N] added at ``ids`` [..., N]; ids without a column are left out."""
    ids = jnp.where(ids < 0, logits.shape[-1], ids)
    add = jax.vmap(jax.vmap(lambda row, at, more: row.at[at].add(more, mode="drop")))
    return add(logits, ids, by.astype(logits.dtype))


def _without(logits, ids: tuple[int, ...]) -> jax.Array:
    """-inf at ``ids``."""
    columns = jnp.arange(logits.shape[-1])
    return functools.reduce(lambda left, id_: jnp.where(columns == id_, -jnp.inf, left), ids, logits)


def _sample(logits, keys, positions, argmax, sharper, temperature) -> jax.Array:
    def sampled():
        place = jax.vmap(jax.vmap(jax.random.fold_in, in_axes=(None, 0)))
        return jax.vmap(jax.vmap(categorical.categorical))(place(keys, positions), sharper(logits))

    if isinstance(temperature, jax.Array):
        return jax.lax.cond(temperature > 0, sampled, lambda: argmax)
    return sampled() if temperature else argmax


def law(logits: jax.Array, temperature, top_p, top_k: int, nucleus_first: bool = False,
        keep_crossing: bool = True) -> jax.Array:
    """The logits that are drawn from: by the temperature (0 counts as 1), then cut to top-k, then to the nucleus.

    ``nucleus_first`` exchanges the two cuts; ``keep_crossing`` as in `truncation.top_p`.
    """
    if isinstance(temperature, jax.Array):
        logits = truncation.temperature(logits, jnp.where(temperature > 0, temperature, 1.0))
    elif temperature not in (0.0, 1.0):
        logits = truncation.temperature(logits, temperature)
    if top_k and not nucleus_first:
        logits = truncation.top_k(logits, top_k)
    nucleus = functools.partial(truncation.top_p, keep_crossing=keep_crossing)
    if isinstance(top_p, jax.Array):
        logits = jax.lax.cond(top_p < 1, lambda: nucleus(logits, top_p), lambda: logits)
    elif top_p < 1.0:
        logits = nucleus(logits, top_p)
    return truncation.top_k(logits, top_k) if top_k and nucleus_first else logits


def _extrapolated(logits, earlier, weight) -> jax.Array:
    """Logits of p + w (p - earlier), -inf where that is not positive."""
    probs, before = jax.nn.softmax(logits), jax.nn.softmax(earlier)
    found = probs + weight[..., None] * (probs - before)
    cut = jnp.where(found > 0, jnp.log(jnp.where(found > 0, found, 1.0)), -jnp.inf)
    return jnp.where(weight[..., None] == 0, logits, cut)


def _law_log_prob(logits, ids, argmax, sharper, temperature) -> jax.Array:
    """log of the chance that the draw gives ``ids``; at temperature 0 that is 0 at the argmax and -inf elsewhere."""
    drawn = sharper(logits)
    found = _at(drawn, ids) - jax.nn.logsumexp(drawn, axis=-1)
    return jnp.where(jnp.asarray(temperature) > 0, found, jnp.where(ids == argmax, 0.0, -jnp.inf))


def _at(values: jax.Array, ids: jax.Array) -> jax.Array:
    """values[..., ids]; -inf for ids without a column."""
    inside = ids < values.shape[-1]
    found = jnp.take_along_axis(values, jnp.where(inside, ids, 0)[..., None], axis=-1)[..., 0]
    return jnp.where(inside, found, -jnp.inf)
