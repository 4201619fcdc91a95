"""log p(answer | prompt), in nats: the chain rule where a network has one, else a bound by random masks.

A causal network, and one of any order read from left to right, give the sum of log p(x_i | what is before it): exact.
A masked network gives, with A tokens in the answer and k ~ U{1..A} of them masked at random,

    log p(answer | prompt) >= E[ (A / k) sum_{masked} log p(x_i | prompt, what of the answer is not masked) ],

LLaDA's estimate (arXiv 2502.09992, appendix B; arXiv 2409.02908, prop. 3.1), an equality for A = 1. A block-causal
network gives the same in every block of the answer, given the clean blocks before it (`core.block_counts`), all blocks
in one pass. The counts are stratified: of n draws the j-th has its level in [j/n, (j+1)/n).
"""

import contextlib
import dataclasses
import functools
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from mdlm_jax.core import block_counts, counts, draws, levels
from mdlm_jax.core.guidance import unconditional_tokens
from mdlm_jax.core.prediction import Prediction
from mdlm_jax.core.process import Process
from mdlm_jax.core.reduction import chunk_length
from mdlm_jax.models.denoise import Call, CausalDenoiser
from mdlm_jax.models.sharding import LENGTH_AXIS, data_shards
from mdlm_jax.sampling.canvas import Canvas
from mdlm_jax.sampling.rows import Row, batches

GROUPS = 8  # independent parts of the draws, whose spread gives the standard error
_BUDGET = 1 << 22  # logits alive at once


class Likelihood(NamedTuple):
    """log p(answer | prompt) of N pairs, [N] each.

    Attributes:
      nats: the estimate. Its mean over draws is at most the log-likelihood; with guidance it is no bound.
      stderr: its standard error, over draws; 0 where it is exact.
      tokens: of the answer.
      exact: whether it is the log-likelihood itself.
    """

    nats: np.ndarray
    stderr: np.ndarray
    tokens: np.ndarray
    exact: np.ndarray


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

    def exact(self, row: Row) -> bool:
        """Whether at most one token is masked in a block."""
        if self.causal:
            return True
        blocks = np.flatnonzero(row.editable) // (self.block or len(row))
        return bool(np.bincount(blocks).max() <= 1)


def log_likelihood(ruler: Ruler, rows: Sequence[Row], *, draws: int = 128, seed: int = 0, batch_size: int = 32,
                   mesh=None) -> Likelihood:
    """Measures the ``editable`` part of each row, given the rest.

    Args:
      rows: [prompt, answer], ``editable`` on the answer; a row's draws belong to its row id and the seed.
      draws: masks a row, a multiple of 8; rows whose value is exact take one.
      batch_size: masked rows at a time.
      mesh: that of the parameters.
    """
    exact = np.array([ruler.exact(row) for row in rows])
    number = [j for one in exact for j in range(1 if one else draws)]
    owner = [i for i, one in enumerate(exact) for _ in range(1 if one else draws)]
    shards, context = (1, 1) if mesh is None else (data_shards(mesh), mesh.shape[LENGTH_AXIS])
    network = ruler.denoise.network
    values = np.zeros(len(owner))
    guidance = jnp.float32(ruler.guidance) if ruler.guidance else None
    with contextlib.nullcontext() if mesh is None else jax.sharding.use_abstract_mesh(mesh):
        for chosen, canvas in batches(
            [rows[i] for i in owner], ruler.process.mask_id or 0, batch_size=batch_size, most=network.learned_positions,
            shards=shards, context=math.lcm(context, ruler.block or 1),
            segments=not isinstance(ruler.denoise, CausalDenoiser),
        ):
            which = np.array([number[i] for i in chosen])
            which = np.pad(which, (0, canvas.shape[0] - len(chosen)), mode="edge")
            found = _measured(ruler.denoise, ruler.process, max(draws // GROUPS, 1), ruler.params, canvas, which,
                              jax.random.key(seed), guidance)
            values[chosen] = np.asarray(found, np.float64)[: len(chosen)]
    return _summary(values, np.array(owner), exact, rows)


def _summary(values, owner, exact, rows) -> Likelihood:
    own = [values[owner == i] for i in range(len(rows))]
    groups = [part.reshape(-1 if one else GROUPS, 1 if one else len(part) // GROUPS).mean(1)
              for part, one in zip(own, exact, strict=True)]
    stderr = [0.0 if one else part.std(ddof=1) / math.sqrt(GROUPS) for part, one in zip(groups, exact, strict=True)]
    tokens = np.array([int(row.editable.sum()) for row in rows])
    return Likelihood(np.array([part.mean() for part in own]), np.array(stderr), tokens, exact)


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def _measured(denoise, process: Process, strata: int, params, canvas: Canvas, which, key, guidance) -> jax.Array:
    """[B] nats of each row's draw ``which`` [B]."""
    if denoise.contract == "causal":
        masked, weight = canvas.editable, jnp.ones((), jnp.float32)
        return weighted_nats(denoise, process, params, canvas, canvas.tokens, masked, weight)
    draw, time = _draw(denoise, process, strata, canvas, which, key)
    noisy = jnp.where(draw.masked, jnp.asarray(process.mask_id, canvas.tokens.dtype), canvas.tokens)
    return weighted_nats(denoise, process, params, canvas, noisy, draw.masked, draw.weight, time, guidance)


def _draw(denoise, process: Process, strata: int, canvas: Canvas, which, key) -> tuple[counts.CountDraw, jax.Array]:
    """The masks of each row's draw ``which`` [B], and the time of their number, [B]."""
    keys = jax.vmap(lambda row, j: jax.random.fold_in(jax.random.fold_in(key, row), j))(canvas.row_ids, which)
    level, mask, time = jax.vmap(lambda k: jax.random.split(k, 3))(keys).T
    u = jax.vmap(lambda k, j: levels.unit_levels(k, strata, "stratified", j[None])[0])(level, which % strata)
    length = canvas.shape[1]
    block = length if denoise.contract == "bidirectional" else denoise.network.block_length
    unit = block_counts.block_levels(u, length // block, paired=False)
    (draw,) = block_counts.draw_block_counts(mask, unit, canvas.editable)
    first = draw._replace(count=draw.count[:, 0], eligible=draw.eligible[:, 0])
    return draw, counts.time_given_count(time, first, process.schedule)


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
    found = _predict(denoise, params, canvas, noisy, time)
    if guidance is not None:
        blind = unconditional_tokens(noisy, ~canvas.editable, process.mask_id)
        found = found.guided(_predict(denoise, params, canvas, blind, time).hidden, guidance)
    scored = draws.draw(
        found, jnp.zeros(noisy.shape[:1], jnp.uint32), suppress=process.mask_id if suppress else None, wants=(),
        current=canvas.tokens, where=masked, chunk=chunk_length(len(noisy), found.logits_held, _BUDGET),
    )
    return jnp.where(masked, weight * scored.current_log_prob, 0.0).sum(1)


def _predict(denoise, params, canvas: Canvas, noisy, time) -> Prediction:
    """Scores of ``noisy``; of a network whose blocks see clean ones before them, beside the clean row."""
    if denoise.contract in ("bidirectional", "causal"):
        return denoise.run(params, Call(noisy, time, canvas.segment))[0]
    double = dataclasses.replace(denoise, network=dataclasses.replace(denoise.network, attention="two_stream"))
    segment = None if canvas.segment is None else jnp.tile(canvas.segment, (1, 2))
    found = double.run(params, Call(jnp.concatenate([noisy, canvas.tokens], axis=1), time, segment))[0]
    return dataclasses.replace(found, hidden=found.hidden[:, : noisy.shape[1]])
