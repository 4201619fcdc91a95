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

from mdlm_jax.core import counts, draws
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
FIRST = 64  # draws after which an error that was asked for is looked at first; orders: GROUPS
BUDGET = 1 << 22  # logits alive at once


class Likelihood(NamedTuple):
    """log p(answer | prompt) of N pairs, [N] each.

    Attributes:
      nats: the estimate. Its mean over draws is at most the log-likelihood; with guidance it is no bound.
      stderr: its standard error, over draws; 0 where there is no noise.
      tokens: of the answer.
      exact: whether it is the log-likelihood itself; by the chain rule, that of writing from left to right.
      forwards: passes of the network that it took; guidance doubles their cost.
    """

    nats: np.ndarray
    stderr: np.ndarray
    tokens: np.ndarray
    exact: np.ndarray
    forwards: np.ndarray


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
    """How a row is measured: ``first`` samples, doubled up to ``most`` while the error is too large."""

    estimator: Estimator
    passes: int
    first: int = 1
    most: int = 1
    exact: bool = False

    @classmethod
    def of(cls, ruler: Ruler, row: Row, method: str, draws: int, error: float | None) -> "_Plan":
        tokens = 1 if ruler.causal else ruler.largest_block(row)
        if ruler.causal or method == "chain_rule" or tokens == 1:
            estimator = Causal() if ruler.causal else ChainRule() if method == "chain_rule" else Subsets()
            return cls(estimator, estimator.passes(tokens), exact=True)
        if method == "any_order":
            return cls(AnyOrder(), tokens, draws if error is None else min(draws, GROUPS), draws)
        first = draws if error is None else min(draws, FIRST)
        if (1 << tokens) - 1 <= first:
            return cls(Subsets(), (1 << tokens) - 1)
        return cls(Counts(first // GROUPS), 1, first, draws)

    def stderr(self, samples: np.ndarray) -> float:
        if self.most == 1:
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
      error: standard error in nats at which no more are drawn; it is looked at after 64 masks or 8 orders, and when
        their number has doubled.
      batch_size: masked rows at a time.
      mesh: that of the parameters.
      progress: called with the passes that are done and that there are to do; the latter grows with ``error``.
    """
    plans = [_Plan.of(ruler, row, method, draws, error) for row in rows]
    samples: list[np.ndarray] = [np.zeros(0)] * len(rows)
    goals, active, done = [plan.first for plan in plans], list(range(len(rows))), 0

    def tick(passes: int) -> None:
        nonlocal done
        done += passes
        if progress:
            progress(done, sum(goal * plan.passes for goal, plan in zip(goals, plans, strict=True)))

    while active:
        for estimator in dict.fromkeys(plans[i].estimator for i in active):
            chosen = [i for i in active if plans[i].estimator == estimator]
            items = np.array([(i, j, step) for i in chosen for j in range(len(samples[i]), goals[i])
                              for step in range(plans[i].passes)])
            found = _measured(ruler, rows, estimator, items, seed, batch_size, mesh, tick)
            ends = np.cumsum([(goals[i] - len(samples[i])) * plans[i].passes for i in chosen])
            for i, own in zip(chosen, np.split(found, ends[:-1]), strict=True):
                samples[i] = np.concatenate([samples[i], own.reshape(-1, plans[i].passes).sum(1)])
        active = [i for i in active if error is not None and goals[i] < plans[i].most
                  and plans[i].stderr(samples[i]) > error]
        for i in active:
            goals[i] = min(2 * goals[i], plans[i].most)
    return Likelihood(
        np.array([values.mean() for values in samples]),
        np.array([plan.stderr(values) for plan, values in zip(plans, samples, strict=True)]),
        np.array([int(row.editable.sum()) for row in rows]), np.array([plan.exact for plan in plans]),
        np.array([plan.passes * len(values) for plan, values in zip(plans, samples, strict=True)]),
    )


def _measured(ruler: Ruler, rows, estimator: Estimator, items: np.ndarray, seed: int, batch_size: int, mesh,
              tick: Callable[[int], None]) -> np.ndarray:
    """[M] nats of each (row, sample, pass) of ``items`` [M, 3]."""
    values = np.zeros(len(items))
    guidance = jnp.float32(ruler.guidance) if ruler.guidance else None
    with contextlib.nullcontext() if mesh is None else jax.sharding.use_abstract_mesh(mesh):
        for chosen, canvas in ruler.canvases([rows[i] for i in items[:, 0]], batch_size, mesh):
            which = np.pad(items[chosen], ((0, canvas.shape[0] - len(chosen)), (0, 0)), mode="edge")
            found = _pass(ruler.denoise, ruler.process, estimator, ruler.params, canvas, which[:, 1], which[:, 2],
                          jax.random.key(seed), guidance)
            values[chosen] = np.asarray(found, np.float64)[: len(chosen)]
            tick(len(chosen))
    return values


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def _pass(denoise, process: Process, estimator: Estimator, params, canvas: Canvas, sample, step, key,
          guidance) -> jax.Array:
    """[B] nats of pass ``step`` [B] of each row's ``sample`` [B]."""
    keys = jax.vmap(lambda row, j: jax.random.fold_in(jax.random.fold_in(key, row), j))(canvas.row_ids, sample)
    masking, timing = jax.vmap(jax.random.split)(keys).T
    length, whole = canvas.shape[1], denoise.contract in ("bidirectional", "causal")
    blocks = 1 if whole else length // denoise.network.block_length
    masks = estimator.masks(masking, sample, step, canvas.editable, blocks)
    noisy = jnp.where(masks.hidden, jnp.asarray(process.mask_id or 0, canvas.tokens.dtype), canvas.tokens)
    drawn = counts.CountDraw(masks.hidden, masks.hidden.sum(-1), canvas.editable.sum(-1), masks.weight)
    time = counts.time_given_count(timing, drawn, process.schedule)
    return weighted_nats(denoise, process, params, canvas, noisy, masks.weight > 0, masks.weight, time, guidance)


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
