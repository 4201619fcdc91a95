"""Exact scoring: log q(x) of what a parallel decoder writes, and how far q is from a joint law.

Where a decoder chooses positions by the state alone, each x has exactly one path, and

    log q(x) = sum over steps of log p(x_i | canvas) at the positions i that the rule picks,

found by running the decoder with its draws replaced by x. Then, over rows of p,

    KL(p || q) = E_p[log p - log q],        TV(p, q) = E_p[(1 - q / p)_+],

both unbiased, without enumeration (spec: adjust A7). p is a law whose probabilities are known (an oracle language), or
the model's own joint: the same rule at one token a step, the best that the model can do.
"""

import dataclasses
import math
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np

from mdlm_jax.models.denoise import as_model
from mdlm_jax.sampling.canvas import Canvas
from mdlm_jax.sampling.decoder import Decoder
from mdlm_jax.sampling.loop import check_scorable, decode
from mdlm_jax.sampling.windows import lay_out


@dataclasses.dataclass(frozen=True)
class Distance:
    """From p to q, by rows of p. KL in nats a row; standard errors over rows.

    Attributes:
      kl, kl_stderr: infinite where some rows are out of reach.
      tv, tv_stderr: in [0, 1].
      rows: how many. ``unreachable``: those that q cannot give.
    """

    kl: float
    kl_stderr: float
    tv: float
    tv_stderr: float
    rows: int
    unreachable: int


def forced_log_prob(denoise, params, canvas: Canvas, tokens, decoder: Decoder, *, steps: int | None,
                    batch: int = 256, **options) -> np.ndarray:
    """log q(row), nats, float64 [N]: of the editable tokens given the others; -inf for rows that q cannot give.

    Args:
      denoise, params, canvas, steps: of `sampling.loop.decode`, which would write on the canvas of N rows; steps None
        for decoders that do not go by them.
      tokens: [N, L] integers, the finished rows, equal to the canvas where it is not editable.
      decoder: one whose positions follow from the state; its temperature and truncation are part of q.
      batch: rows at once; all batches have this size, so that one program serves.
      options: further ones of the call: block_length, cache, guidance, stop_id, bias, ... They are part of q as well.
    Raises:
      ValueError: a decoder that chooses positions at random or by what it drew; a mask among the tokens, or one that
        differs from the canvas where nothing is written; what `decode` refuses.
    Examples:
      >>> from mdlm_jax.core.prediction import Prediction
      >>> from mdlm_jax.sampling.canvas import blank
      >>> from mdlm_jax.sampling.margin import Margin
      >>> def denoise(params, tokens, time):
      ...     return Prediction.from_logits(jnp.broadcast_to(params, (*tokens.shape, 3)))
      >>> canvas, decoder = blank(mask_id=2, rows=2, length=3), Margin(mask_id=2, temperature=1.0)
      >>> log_q = forced_log_prob(denoise, jnp.zeros(3), canvas, [[0, 0, 0], [1, 0, 1]], decoder, steps=3)
      >>> np.exp(log_q).round(3)  # three fair coins
      array([0.125, 0.125])
    """
    check_scorable(decoder)
    tokens = np.asarray(tokens, np.int32)
    _check(canvas, tokens, decoder)
    found = []
    for rows, part, each in _batches(denoise, canvas, decoder, steps, batch, options):
        forced = tokens[rows]
        run = decode(denoise, params, part, decoder, steps=each, forced=jnp.asarray(forced), **options)
        reached = (np.asarray(run.tokens) == forced).all(1)
        found.append(np.where(reached, np.asarray(run.log_prob, np.float64), -np.inf))
    return np.concatenate(found)[: len(tokens)]


def distance(log_p: np.ndarray, log_q: np.ndarray) -> Distance:
    """KL(p || q) and total variation from the log-probabilities [N], nats, of N rows drawn from p.

    Raises:
      ValueError: fewer than two rows, other shapes, or a row that p cannot give.
    Examples:
      >>> found = distance(np.log([0.5, 0.5]), np.log([0.5, 0.25]))
      >>> round(found.kl, 3), found.tv
      (0.347, 0.25)
    """
    log_p, log_q = np.asarray(log_p, np.float64), np.asarray(log_q, np.float64)
    if log_p.shape != log_q.shape or log_p.ndim != 1 or len(log_p) < 2:
        raise ValueError(f"log_p {list(log_p.shape)}, log_q {list(log_q.shape)}: must be two of the same [N], N > 1")
    if not np.isfinite(log_p).all():
        raise ValueError(f"log_p: row {int((~np.isfinite(log_p)).argmax())} is {log_p[~np.isfinite(log_p)][0]}; rows "
                         "must have been drawn from p")
    excess = log_p - log_q
    lost = -np.expm1(np.minimum(-excess, 0.0))  # (1 - q/p)_+
    unreachable = int(np.isinf(excess).sum())
    kl, kl_stderr = (math.inf, math.inf) if unreachable else _mean(excess)
    return Distance(kl, kl_stderr, *_mean(lost), len(log_p), unreachable)


def sampled_tv(rows: np.ndarray, support: np.ndarray, p: np.ndarray) -> tuple[float, float]:
    """TV(p, q) from rows of q alone, for decoders that cannot be scored, and what it would be on average if q were p.

    Chance makes counts uneven, so the estimate is too large, by about the second figure where q is near p; that falls
    with the square root of the number of rows.

    Args:
      rows: [N, L] integers, drawn from q.
      support: [K, L], all rows that p can give, each once; p: [K], their probabilities, adding up to 1.
    Raises:
      ValueError: no rows, other lengths, or probabilities that do not add up to 1.
    """
    rows, support, p = np.asarray(rows), np.asarray(support), np.asarray(p, np.float64)
    if not len(rows) or rows.shape[1:] != support.shape[1:] or p.shape != support.shape[:1]:
        raise ValueError(f"rows {list(rows.shape)}, support {list(support.shape)}, p {list(p.shape)}: must be [N, L], "
                         "[K, L] and [K], N > 0")
    if abs(p.sum() - 1) > 1e-6:
        raise ValueError(f"p: adds up to {p.sum():.6f}; give all rows of the law")
    _, index = np.unique(np.concatenate([support, rows]), axis=0, return_inverse=True)
    index = index.reshape(-1)
    counts = np.bincount(index[len(support):], minlength=int(np.max(index)) + 1)[index[: len(support)]]
    return float(np.maximum(p - counts / len(rows), 0.0).sum()), float(_mean_shortfall(len(rows), p).sum())


def to_own_joint(denoise, params, canvas: Canvas, decoder: Decoder, *, steps: int | None,
                 reference: Decoder | None = None, batch: int = 256, seed: int = 0, **options) -> Distance:
    """How far ``decoder`` at ``steps`` is from the model's joint, the law of the same rule at one token a step.

    Args:
      canvas: what to fill; each of its rows becomes one draw from that joint.
      reference: the rule at one token a step; None: `Decoder.one_by_one`.
      others: as for `forced_log_prob`, and of both calls.
    Raises:
      ValueError: a reference that wrote several tokens of a row in one step; what `forced_log_prob` refuses.
    """
    given, reference = reference is not None, decoder.one_by_one() if reference is None else reference
    layout = _lay_out(denoise, canvas, reference, options)
    singly, tokens = layout.blocks * layout.block if reference.reads_steps else None, []
    for _, part, each in _batches(denoise, canvas, reference, singly, batch, options):
        run = decode(denoise, params, part, reference, steps=each, seed=seed, **options)
        if reference is decoder or given:
            _check_single(np.asarray(run.order), reference)
        tokens.append(np.asarray(run.tokens))
    written = np.concatenate(tokens)[: canvas.shape[0]]
    log_p, log_q = (
        forced_log_prob(denoise, params, canvas, written, each, steps=count, batch=batch, **options)
        for each, count in ((reference, singly), (decoder, steps))
    )
    return distance(log_p, log_q)


def _check(canvas: Canvas, tokens: np.ndarray, decoder: Decoder) -> None:
    editable, given = np.asarray(canvas.editable), np.asarray(canvas.tokens)
    if tokens.shape != given.shape:
        raise ValueError(f"tokens {list(tokens.shape)}: must have the canvas's shape {list(given.shape)}")
    masks, others = editable & (tokens == decoder.mask_id), ~editable & (tokens != given)
    if masks.any():
        raise ValueError(f"tokens: row {int(masks.any(1).argmax())} holds the mask, {decoder.mask_id}; give finished "
                         "rows, "
                         "which alone have a probability")
    if others.any():
        raise ValueError(f"tokens: row {int(others.any(1).argmax())} must be the canvas's where that is not editable")


def _check_single(order: np.ndarray, reference: Decoder) -> None:
    for row in order:
        if len(np.unique(row[row >= 0])) < (row >= 0).sum():
            raise ValueError(f"reference: {type(reference).__name__} wrote several tokens in one step; give settings "
                             "that write one")


def _lay_out(denoise, canvas: Canvas, decoder: Decoder, options: dict):
    return lay_out(as_model(denoise), canvas, decoder, block_length=options.get("block_length"),
                   cache=options.get("cache", "none"), guided=bool(options.get("guidance")))


def _batches(denoise, canvas: Canvas, decoder: Decoder, steps: int | None, batch: int,
             options: dict) -> Iterator[tuple[np.ndarray, Canvas, int | None]]:
    """Indices of ``batch`` rows, the last row again where there are no more, their canvas, and their steps.

    A batch whose rows all have fewer blocks than the longest takes as many steps a block as the whole would.
    """
    blocks, total = _lay_out(denoise, canvas, decoder, options).blocks, canvas.shape[0]
    batch = min(batch, total)
    for first in range(0, total, batch):
        rows = np.minimum(np.arange(first, first + batch), total - 1)
        part = jax.tree.map(lambda x, rows=rows: x[rows], canvas)
        here = _lay_out(denoise, part, decoder, options).blocks
        yield rows, part, steps if steps is None or steps % blocks else steps // blocks * here


def _mean_shortfall(number: int, p: np.ndarray) -> np.ndarray:
    """[K]: E (p - X / n)+ of X ~ Binomial(n, p), by de Moivre (1 - p) m P(X = m) / n with m = floor(n p) + 1."""
    found = np.zeros(len(p))
    for index in np.flatnonzero((p > 0) & (p < 1)):
        m, log_p, log_q = math.floor(number * p[index]) + 1, math.log(p[index]), math.log1p(-p[index])
        ways = math.lgamma(number + 1) - math.lgamma(m + 1) - math.lgamma(number - m + 1)
        found[index] = (1 - p[index]) * m * math.exp(ways + m * log_p + (number - m) * log_q) / number
    return found


def _mean(values: np.ndarray) -> tuple[float, float]:
    """The mean and its standard error."""
    return float(values.mean()), float(values.std(ddof=1) / math.sqrt(len(values)))
