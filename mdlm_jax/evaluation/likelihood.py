"""The held-out bound: nats per token and bits per byte, with its error bar.

For the masked process it is the count bound (`core.counts`), exact at both ends; otherwise the continuous-time NELBO
with reconstruction and prior added. Each row is measured at several noise levels, stratified within the row. Rows are
coded one by one, document ends included, so nats / (bytes ln 2) bounds the bits per byte of the held-out text.
"""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mdlm_jax.core import levels


@dataclasses.dataclass(frozen=True)
class Bound:
    """A NELBO over held-out rows. ``terms`` and ``nats_per_token`` in nats; stderr over rows."""

    nats_per_token: float
    nats_stderr: float
    terms: dict[str, float]
    tokens: int
    rows: int
    text_bytes: int

    @property
    def bits_per_byte(self) -> float:
        """NaN where the tokens stand for no text (oracle languages)."""
        return self._per_byte(self.nats_per_token)

    @property
    def bits_stderr(self) -> float:
        return self._per_byte(self.nats_stderr)

    def _per_byte(self, nats: float) -> float:
        return nats * self.tokens / (self.text_bytes * math.log(2)) if self.text_bytes else math.nan


def held_out_bound(
    loss_at: Callable,
    params: Any,
    batches,
    token_bytes: Callable[[np.ndarray], np.ndarray],
    *,
    draws: int,
    seed: int = 0,
    end_terms: Callable | None = None,
) -> Bound:
    """Estimates the bound.

    Args:
      loss_at: ``(params, batch, key, rows, u) -> LossParts``, an objective's ``loss_at`` whose weights make it a bound.
      params: the weights.
      batches: iterable of (batch, valid_rows): batches of equal shape, of which the first ``valid_rows`` rows count
        (`padded_batches`).
      token_bytes: ids -> bytes of text each stands for.
      draws: noise levels a row, stratified in it.
      end_terms: ``(params, batch, key, rows) -> LossParts``, what loss_at leaves out; None where that is nothing.
    """

    def measure(params, batch, key):
        rows = batch["tokens"].shape[0]
        repeated = jax.tree.map(lambda x: jnp.repeat(x, draws, axis=0), batch)
        index = jnp.arange(rows * draws)
        coupling = "antithetic" if draws % 2 == 0 else "stratified"
        keys = jax.vmap(jax.random.fold_in, in_axes=(None, 0))(jax.random.fold_in(key, 1), jnp.arange(rows))
        u = jax.vmap(lambda k: levels.unit_levels(k, draws, coupling))(keys).reshape(-1)
        parts = [loss_at(params, repeated, key, index, u)]
        if end_terms is not None:
            parts.append(end_terms(params, repeated, jax.random.fold_in(key, 2), index))
        terms = {n: t.sum(-1).reshape(rows, draws).mean(-1) for p in parts for n, t in p.terms.items()}
        return terms, parts[0].loss_mask.reshape(rows, draws, -1)[:, 0]

    measure = jax.jit(measure)
    per_row, counts, text_bytes = [], [], 0
    for number, (batch, valid) in enumerate(batches):
        terms, counted = jax.device_get(measure(params, batch, jax.random.fold_in(jax.random.key(seed), number)))
        per_row.append({name: values[:valid].astype(np.float64) for name, values in terms.items()})
        counts.append(counted[:valid].sum(-1))
        text_bytes += int((token_bytes(np.asarray(batch["tokens"])[:valid]) * counted[:valid]).sum())
    terms = {name: np.concatenate([row[name] for row in per_row]) for name in per_row[0]}
    return _summary(terms, np.concatenate(counts), text_bytes)


def padded_batches(pipeline, rows: int, batch_rows: int):
    """The first ``rows`` rows of a pipeline in batches of exactly ``batch_rows``: yields (batch, rows that count)."""
    rows = min(rows, pipeline.num_rows)
    for start in range(0, rows, batch_rows):
        count = min(batch_rows, rows - start)
        batch = pipeline.sequential(start, count)
        fill = [(0, batch_rows - count)]
        yield {name: np.pad(x, fill + [(0, 0)] * (x.ndim - 1)) for name, x in batch.items()}, count


def _summary(terms: dict[str, np.ndarray], counts: np.ndarray, text_bytes: int) -> Bound:
    """Ratio estimates over rows, with the delta-method standard error."""
    total, tokens = sum(terms.values()), int(counts.sum())
    mean = total.sum() / tokens
    residual = total - mean * counts
    spread = math.sqrt(float((residual**2).sum()) * len(counts) / max(1, len(counts) - 1)) / tokens
    shares = {name: float(values.sum() / tokens) for name, values in terms.items()}
    return Bound(float(mean), spread, shares, tokens, len(counts), text_bytes)
