"""The held-out bound: nats per token and bits per byte, with its error bar.

For the masked process it is the count bound (`core.counts`), exact at both ends; otherwise the continuous-time NELBO
with reconstruction and prior added. Each row is measured at several noise levels, stratified within the row. Rows are
coded one by one, document ends included, so nats / (bytes ln 2) bounds the bits per byte of the held-out text. Where
attention stops at document ends (data.packing=documents) the network is told where they are, and the bound is one given
that knowledge.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mdlm_jax.core import levels
from mdlm_jax.core.keys import row_keys
from mdlm_jax.models.sharding import place_rows


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
    sharding: jax.sharding.NamedSharding | None = None,
) -> Bound:
    """Estimates the bound.

    Args:
      loss_at: ``(params, batch, key, rows, u) -> LossParts``, an objective's ``loss_at`` whose weights make it a bound;
        hashable, since the measurement is compiled for it. Rows 2i, 2i+1 have antithetic levels if ``draws`` is even.
      params: the weights.
      batches: iterable of (batch, valid_rows): batches of equal shape, of which the first ``valid_rows`` rows count
        (`padded_batches`).
      token_bytes: ids -> bytes of text each stands for.
      draws: noise levels a row, stratified in it.
      end_terms: ``(params, batch, key, rows) -> LossParts``, what loss_at leaves out; None where that is nothing.
      sharding: of the rows over the devices; None: each computes everything.
    """
    per_row, counts, text_bytes, first, key = [], [], 0, 0, jax.random.key(seed)
    for batch, valid in batches:
        placed = batch if sharding is None else place_rows(batch, sharding, len(batch["tokens"]))
        terms, counted = jax.device_get(_measure(loss_at, end_terms, draws, sharding, params, placed, key, first))
        first += valid
        per_row.append({name: values[:valid].astype(np.float64) for name, values in terms.items()})
        counts.append(counted[:valid].sum(-1, dtype=np.float64))
        text_bytes += (token_bytes(np.asarray(batch["tokens"])[:valid]) * counted[:valid].astype(np.float64)).sum()
    terms = {name: np.concatenate([row[name] for row in per_row]) for name in per_row[0]}
    return _summary(terms, np.concatenate(counts), round(text_bytes))


@functools.partial(jax.jit, static_argnums=(0, 1, 2, 3))
def _measure(loss_at, end_terms, draws, sharding, params, batch, key, first):
    """Nats of each row, {term: [B]} averaged over the draws, and in what share of them each token counts, [B, L].

    Noise belongs to the row's index among all held-out rows (``first`` is that of the batch's first row), so that the
    size of the batches and the number of devices do not matter.
    """
    if sharding is None:
        return _per_row(loss_at, end_terms, draws, params, batch, key, first)
    with jax.sharding.use_abstract_mesh(sharding.mesh.abstract_mesh):
        results = _per_row(loss_at, end_terms, draws, params, batch, key, first)
        return jax.lax.with_sharding_constraint(results, jax.sharding.PartitionSpec())  # every process reads all rows


def _per_row(loss_at, end_terms, draws, params, batch, key, first):
    rows = batch["tokens"].shape[0]
    row_ids = first + jnp.arange(rows)
    repeated = jax.tree.map(lambda x: jnp.repeat(x, draws, axis=0), batch)
    index = (draws * row_ids[:, None] + jnp.arange(draws)).reshape(-1)
    level_key, noise_key, end_key = jax.random.split(key, 3)
    coupling = "antithetic" if draws % 2 == 0 else "stratified"
    u = jax.vmap(lambda k: levels.unit_levels(k, draws, coupling))(row_keys(level_key, row_ids)).reshape(-1)
    parts = [loss_at(params, repeated, noise_key, index, u)]
    if end_terms is not None:
        parts.append(end_terms(params, repeated, end_key, index))
    terms = {n: t.sum(-1).reshape(rows, draws).mean(-1) for p in parts for n, t in p.terms.items()}
    return terms, parts[0].loss_mask.reshape(rows, draws, -1).mean(1)


_BLOCKS = 32  # for the standard error


def held_out_rows(pipeline, rows: int) -> dict[str, np.ndarray]:
    """``rows`` rows of a pipeline, evenly over it; all of them if there are no more."""
    pieces = [pipeline.sequential(int(row), 1) for row in held_out_index(pipeline.num_rows, rows)]
    return {name: np.concatenate([piece[name] for piece in pieces]) for name in pieces[0]}


def held_out_index(num_rows: int, rows: int) -> np.ndarray:
    """Which of a split's ``num_rows`` rows `held_out_rows` takes, int64.

    One by one, never in runs: neighbours tell the same story, and their number would promise more than they know.
    """
    rows = min(rows, num_rows)
    return (2 * np.arange(rows) + 1) * num_rows // (2 * rows)


def padded_batches(batch: Mapping[str, np.ndarray], batch_rows: int):
    """``batch`` in pieces of exactly ``batch_rows`` rows, the last filled up: yields (piece, rows that count)."""
    total = len(batch["tokens"])
    for start in range(0, total, batch_rows):
        count = min(batch_rows, total - start)
        fill = [(0, batch_rows - count)]
        piece = {name: x[start : start + count] for name, x in batch.items()}
        yield {name: np.pad(x, fill + [(0, 0)] * (x.ndim - 1)) for name, x in piece.items()}, count


def _summary(terms: dict[str, np.ndarray], counts: np.ndarray, text_bytes: int) -> Bound:
    """Ratio estimates over rows, with the delta-method standard error.

    Neighbouring rows come from the same document and are far from independent, so the error is that of the sums of
    `_BLOCKS` contiguous blocks. It covers both the noise draws and which text was held out.
    """
    total, tokens = np.sum(list(terms.values()), axis=0), float(counts.sum())
    mean = total.sum() / tokens
    blocks = np.array([block.sum() for block in np.array_split(total - mean * counts, min(_BLOCKS, len(counts)))])
    spread = math.sqrt(float((blocks**2).sum()) * len(blocks) / max(1, len(blocks) - 1)) / tokens
    shares = {name: float(values.sum() / tokens) for name, values in terms.items()}
    return Bound(float(mean), spread, shares, round(tokens), len(counts), text_bytes)
