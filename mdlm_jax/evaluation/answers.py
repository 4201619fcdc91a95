"""log p(answer | prompt), in nats, by the estimators of `evaluation.estimators`.

A causal network, and one of any order read from left to right, give the sum of log p(x_i | what is before it): exact.
A masked network gives, with A tokens in the answer and k ~ U{1..A} of them masked at random,

    log p(answer | prompt) >= E[ (A / k) sum_{masked} log p(x_i | prompt, what of the answer is not masked) ],

an equality for A = 1; or, by the chain rule, the log-probability that it writes the answer from left to right. A
block-causal network gives the same in every block of the answer, given the clean blocks before it
(`core.block_counts`), all blocks in one pass.
"""

import contextlib
import dataclasses
import functools
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from mdlm_jax.core import draws
from mdlm_jax.core.guidance import unconditional_tokens
from mdlm_jax.core.prediction import Prediction
from mdlm_jax.core.process import Process
from mdlm_jax.core.reduction import chunk_length
from mdlm_jax.evaluation.estimators import AnyOrder, Causal, ChainRule, Counts, Estimator, Subsets
from mdlm_jax.models.denoise import Call, CausalDenoiser
from mdlm_jax.models.sharding import LENGTH_AXIS, data_shards
from mdlm_jax.sampling.canvas import Canvas
from mdlm_jax.sampling.rows import Row, batches

METHODS = ("bound", "any_order", "chain_rule")
GROUPS = 8  # independent parts of the draws, whose spread gives the standard error
PILOT = 32  # draws that tell how many an error takes; of orders: GROUPS
BUDGET = 1 << 22  # logits alive at once
PORTION = 1 << 18  # passes whose places are written down at once


class Likelihood(NamedTuple):
    """log p(answer | prompt) of N pairs, [N] each.

    Attributes:
      nats: the estimate. Its mean over draws is at most the log-likelihood; with guidance it is no bound.
      stderr: its standard error, from the spread of 8 groups of its draws; 0 where there is no noise.
      tokens: of the answer.
      exact: whether it is the log-likelihood itself; by the chain rule, that of writing from left to right.
      forwards: passes of the network that it took; guidance doubles their cost.
    """

    nats: np.ndarray
    stderr: np.ndarray
    tokens: np.ndarray
    exact: np.ndarray
    forwards: np.ndarray

    def __repr__(self) -> str:
        """Short, however many pairs there are."""
        shown = {name: np.array2string(np.asarray(values), precision=4, threshold=8, edgeitems=3, separator=", ")
                 for name, values in self._asdict().items()}
        return f"Likelihood({', '.join(f'{name}={values}' for name, values in shown.items())})"


@dataclasses.dataclass(frozen=True)
class Ruler:
    """What is measured with.

    Attributes:
      denoise: of `models.denoise`; what a program is compiled for, with ``block``: tokens of a masked block, 0: all.
      params: its parameters. ``process``: its noise, masks alone.
      guidance: strength of unsupervised guidance, 0: none.
    """

    denoise: Any
    params: Any
    process: Process
    guidance: float = 0.0

    @property
    def causal(self) -> bool:
        return self.denoise.contract == "causal"

    @property
    def block(self) -> int:
        return 0 if self.denoise.contract == "bidirectional" else self.denoise.network.block_length

    def canvases(self, rows: Sequence[Row], batch_size: int, mesh) -> Iterator[tuple[list[int], Canvas]]:
        """`sampling.rows.batches` that the network and the mesh can take."""
        shards, context = (1, 1) if mesh is None else (data_shards(mesh), mesh.shape[LENGTH_AXIS])
        return batches(rows, self.process.mask_id or 0, batch_size=batch_size, shards=shards,
                       most=self.denoise.network.learned_positions, context=math.lcm(context, self.block or 1),
                       segments=not isinstance(self.denoise, CausalDenoiser))

    def largest_block(self, row: Row) -> int:
        """Tokens of the answer in the block that has most of them."""
        return int(np.bincount(np.flatnonzero(row.editable) // (self.block or len(row))).max())


@dataclasses.dataclass(frozen=True)
class _Plan:
    """How a row is measured: ``draws`` samples of ``passes`` passes each, the first with the number ``begin``."""

    estimator: Estimator
    passes: int
    draws: int = 1
    begin: int = 0
    exact: bool = False

    @classmethod
    def of(cls, ruler: Ruler, row: Row, method: str, draws: int) -> "_Plan":
        tokens = 1 if ruler.causal else ruler.largest_block(row)
        if ruler.causal or method == "chain_rule" or tokens == 1:
            estimator = Causal() if ruler.causal else ChainRule() if method == "chain_rule" else Subsets()
            return cls(estimator, estimator.passes(tokens), exact=True)
        if method == "any_order":
            return cls(AnyOrder(), tokens, draws)
        if (1 << tokens) - 1 <= min(draws, 2 * PILOT):
            return cls(Subsets(), (1 << tokens) - 1)
        return cls(Counts(draws // GROUPS), 1, draws)

    def pilot(self) -> "_Plan":
        """The first few draws."""
        return self._with(min(self.draws, PILOT if isinstance(self.estimator, Counts) else GROUPS), 0)

    def after(self, pilot: "_Plan", stderr: float, error: float) -> "_Plan":
        """So many draws of its own that the error is reached if the pilot's spread is the true one.

        Groups of counts have a power of two of strata, one program an octave, and there are 8 to 16 of them.
        """
        needed = math.ceil(pilot.draws * max((stderr / error) ** 2, 1.0))
        if needed >= self.draws or not isinstance(self.estimator, Counts):
            return self._with(min(needed, self.draws), pilot.draws)
        strata = 1 << (needed // GROUPS).bit_length() - 1
        return self._with(min(-(-needed // strata) * strata, self.draws), pilot.draws, strata)

    def _with(self, draws: int, begin: int, strata: int = 0) -> "_Plan":
        estimator = self.estimator
        if isinstance(estimator, Counts):
            strata = strata if strata and draws % strata == 0 else draws // GROUPS
            estimator = Counts(strata)
        return dataclasses.replace(self, estimator=estimator, draws=draws, begin=begin)

    def stderr(self, samples: np.ndarray) -> float:
        if self.draws == 1:
            return 0.0
        groups = samples.reshape(-1, getattr(self.estimator, "strata", 1)).mean(1)
        return float(groups.std(ddof=1) / math.sqrt(len(groups)))


def log_likelihood(ruler: Ruler, rows: Sequence[Row], *, method: str = "bound", draws: int = 128,
                   error: float | None = None, seed: int = 0, batch_size: int = 32, mesh=None,
                   progress: Callable[[int, int], None] | None = None) -> Likelihood:
    """Measures the ``editable`` part of each row, given the rest.

    Args:
      rows: [prompt, answer], ``editable`` on the answer; a row's draws belong to its row id and the seed.
      method: of METHODS; bound: by counts, or by all masks where these are no more than the draws; any_order: the same
        bound along random orders; chain_rule: from left to right. Networks that read so are exact by any.
      draws: masks a row, a multiple of 8; of any_order: orders, at least 2. With ``error`` at most so many.
      error: standard error in nats that is wanted. A pilot of 32 masks or 8 orders tells how many draws that takes, and
        is then left out: an estimate that stopped where its own draws happened to agree would lean towards those.
      batch_size: masked rows at a time.
      mesh: that of the parameters.
      progress: called with the passes that are done and that there are to do; the latter grows with ``error``.
    """
    measure = _Measuring(ruler, rows, seed, batch_size, mesh, progress)
    plans = [_Plan.of(ruler, row, method, draws) for row in rows]
    spent = [0] * len(rows)
    if error is not None:
        noisy = [i for i, plan in enumerate(plans) if plan.draws > 1]
        pilots = [plans[i].pilot() for i in noisy]
        for i, pilot, found in zip(noisy, pilots, measure(noisy, pilots), strict=True):
            plans[i], spent[i] = plans[i].after(pilot, pilot.stderr(found), error), pilot.passes * pilot.draws
    samples = measure(list(range(len(rows))), plans)
    return Likelihood(
        np.array([values.mean() for values in samples]),
        np.array([plan.stderr(values) for plan, values in zip(plans, samples, strict=True)]),
        np.array([int(row.editable.sum()) for row in rows]), np.array([plan.exact for plan in plans]),
        np.array([before + plan.passes * plan.draws for before, plan in zip(spent, plans, strict=True)]),
    )


class _Measuring:
    """Calls `_pass` for plans of rows, and tells ``progress``."""

    def __init__(self, ruler: Ruler, rows: Sequence[Row], seed: int, batch_size: int, mesh, progress):
        self._ruler, self._rows, self._seed, self._batch_size, self._mesh = ruler, rows, seed, batch_size, mesh
        self._progress, self._done, self._whole = progress, 0, 0

    def __call__(self, which: Sequence[int], plans: Sequence[_Plan]) -> list[np.ndarray]:
        """Of the rows ``which``, a plan each: their samples, [draws] nats."""
        found = [np.zeros(plan.draws) for plan in plans]
        self._whole += sum(plan.draws * plan.passes for plan in plans)
        for estimator in dict.fromkeys(plan.estimator for plan in plans):
            for chosen in _portions([k for k, plan in enumerate(plans) if plan.estimator == estimator], plans):
                items = np.concatenate([_items(which[k], plans[k]) for k in chosen])
                values = self._passes(estimator, items)
                ends = np.cumsum([plans[k].draws * plans[k].passes for k in chosen])
                for k, own in zip(chosen, np.split(values, ends[:-1]), strict=True):
                    found[k] = own.reshape(plans[k].draws, plans[k].passes).sum(1)
        return found

    def _passes(self, estimator: Estimator, items: np.ndarray) -> np.ndarray:
        """[M] nats of each (row, sample, pass) of ``items`` [M, 3]."""
        values, ruler, mesh = np.zeros(len(items)), self._ruler, self._mesh
        guidance = jnp.float32(ruler.guidance) if ruler.guidance else None
        with contextlib.nullcontext() if mesh is None else jax.sharding.use_abstract_mesh(mesh):
            for chosen, canvas in ruler.canvases([self._rows[i] for i in items[:, 0]], self._batch_size, mesh):
                which = np.pad(items[chosen], ((0, canvas.shape[0] - len(chosen)), (0, 0)), mode="edge")
                nats = _pass(ruler.denoise, ruler.process, estimator, ruler.params, canvas, which[:, 1], which[:, 2],
                             jax.random.key(self._seed), guidance)
                values[chosen] = np.asarray(nats, np.float64)[: len(chosen)]
                self._done += len(chosen)
                if self._progress:
                    self._progress(self._done, self._whole)
        return values


def _items(row: int, plan: _Plan) -> np.ndarray:
    """int32 [draws * passes, 3]: the row, and its samples with their passes."""
    sample, step = np.divmod(np.arange(plan.draws * plan.passes, dtype=np.int32), plan.passes)
    return np.stack([np.full_like(sample, row), plan.begin + sample, step], axis=1)


def _portions(chosen: Sequence[int], plans: Sequence[_Plan]) -> Iterator[list[int]]:
    """Rows of about PORTION passes together, one row at least."""
    portion, passes = [], 0
    for k in chosen:
        portion.append(k)
        passes += plans[k].draws * plans[k].passes
        if passes >= PORTION:
            yield portion
            portion, passes = [], 0
    if portion:
        yield portion


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def _pass(denoise, process: Process, estimator: Estimator, params, canvas: Canvas, sample, step, key,
          guidance) -> jax.Array:
    """[B] nats of pass ``step`` [B] of each row's ``sample`` [B]."""
    keys = jax.vmap(lambda row, j: jax.random.fold_in(jax.random.fold_in(key, row), j))(canvas.row_ids, sample)
    length, whole = canvas.shape[1], denoise.contract in ("bidirectional", "causal")
    blocks = 1 if whole else length // denoise.network.block_length
    masks = estimator.masks(keys, sample, step, canvas.editable, blocks)
    noisy = jnp.where(masks.hidden, jnp.asarray(process.mask_id or 0, canvas.tokens.dtype), canvas.tokens)
    time = time_of(process, masks.hidden, canvas.editable)
    return weighted_nats(denoise, process, params, canvas, noisy, masks.weight > 0, masks.weight, time, guidance)


def time_of(process: Process, hidden: jax.Array, editable: jax.Array) -> jax.Array:
    """[B]: what a network that reads the time is told, the mean k / (A + 1) of its law given k of A tokens hidden: no
    noise of its own, and a bound as good as any time."""
    return process.schedule.inverse_complement(hidden.sum(1) / (editable.sum(1) + 1.0))


def weighted_nats(denoise, process: Process, params, canvas: Canvas, noisy, masked, weight, time=None, guidance=None,
                  suppress: bool = True) -> jax.Array:
    """[B] float32: sum over ``masked`` [B, L] of ``weight`` log p(canvas.tokens | noisy).

    Args:
      noisy: [B, L] int32, what the network sees.
      weight: [B, L], or anything that broadcasts to it.
      time: [B], for networks that read it.
      guidance: [] strength, or None for none.
      suppress: whether the mask has no probability, as in decoding. LLaDA's code leaves it some.
    """
    time = jnp.ones(noisy.shape[:1]) if time is None else time
    found = predict(denoise, params, canvas, noisy, time, process.mask_id, guidance)
    scored = draws.draw(
        found, jnp.zeros(noisy.shape[:1], jnp.uint32), suppress=process.mask_id if suppress else None, wants=(),
        current=canvas.tokens, where=masked, chunk=chunk_length(len(noisy), found.logits_held, BUDGET),
    )
    return jnp.where(masked, weight * scored.current_log_prob, 0.0).sum(1)


def predict(denoise, params, canvas: Canvas, noisy, time, mask_id: int | None, guidance=None) -> Prediction:
    """Scores of ``noisy`` [B, L], guided away from those without the prompt where ``guidance`` [] is not None."""
    found = _scores(denoise, params, canvas, noisy, time)
    if guidance is None:
        return found
    assert mask_id is not None  # who guides has masks
    blind = unconditional_tokens(noisy, ~canvas.editable, mask_id)
    return found.guided(_scores(denoise, params, canvas, blind, time).hidden, guidance)


def _scores(denoise, params, canvas: Canvas, noisy, time) -> Prediction:
    """Scores of ``noisy``; of a network whose blocks see clean ones before them, beside the clean row."""
    if denoise.contract in ("bidirectional", "causal"):
        return denoise.run(params, Call(noisy, time, canvas.segment))[0]
    double = dataclasses.replace(denoise, network=dataclasses.replace(denoise.network, attention="two_stream"))
    segment = None if canvas.segment is None else jnp.tile(canvas.segment, (1, 2))
    found = double.run(params, Call(jnp.concatenate([noisy, canvas.tokens], axis=1), time, segment))[0]
    return dataclasses.replace(found, hidden=found.hidden[:, : noisy.shape[1]])
