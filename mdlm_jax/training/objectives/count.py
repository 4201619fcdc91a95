"""The masked process by number of masks."""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp

from mdlm_jax.core import counts
from mdlm_jax.core.loss_parts import LossParts
from mdlm_jax.core.prediction import Prediction
from mdlm_jax.core.reduction import Reduced
from mdlm_jax.training.objectives.base import LEVEL_BINS, TIME, Objective, scored


class Noised(NamedTuple):
    """Rows with masks, ``noisy`` [B, L]; ``batch`` and ``rows`` are theirs, ``time`` [B] or None."""

    batch: dict
    rows: jax.Array
    draw: counts.CountDraw
    noisy: jax.Array
    time: jax.Array | None

    @property
    def weight(self) -> jax.Array:
        """[B, L] or [B, 1], of each masked token."""
        return self.draw.weight if self.draw.weight.ndim == 2 else self.draw.weight[:, None]


@dataclasses.dataclass(frozen=True)
class CountObjective(Objective):
    """The masked process by number of masks: an exact bound without end terms (`core.counts`).

    Attributes:
      half_head: gather the masked positions of each antithetic pair and run the head on those slots only.
      complementary: the rows of a pair also order their positions oppositely.
      both: each row twice, under a mask and under its complement (`counts.draw_both`): every token is scored once
        between the two, and the tokens counted are twice those of the batch.
      confidence: lambda of the confidence-aware parallel loss (CAP, LLaDA2.0, arXiv 2512.15745), the term
        ``confidence``: lambda times the entropy at every masked position whose likeliest id is the right one. The
        report's loss takes the mean over those positions; this is their sum over all counted tokens, so that
        microbatches add up. ``sharpness``: the temperature of the law whose entropy it is.
    """

    half_head: bool = True
    complementary: bool = False
    both: bool = False
    confidence: float = 0.0
    sharpness: float = 1.0

    def head_positions(self, rows: int, length: int) -> int:
        rows = 2 * rows if self.both else rows
        return rows // 2 * self.pair_slots(length) if self.half_head else rows * length

    def pair_slots(self, length: int) -> int:
        """The most positions that a pair of rows can mask."""
        return length if self.both else counts.num_slots(length, self.law)

    def train_flops(self, rows: int, length: int) -> int:
        run = 2 * rows if self.both else rows
        return self.network_flops(run, length, self.head_positions(rows, length))

    def level_bins(self, key: jax.Array, rows: jax.Array, total_rows: int) -> jax.Array:
        bins = super().level_bins(key, rows, total_rows)
        return _alternating((bins, LEVEL_BINS - 1 - bins)) if self.both else bins

    def draws(self, keys: jax.Array, u: jax.Array, noise_mask: jax.Array) -> tuple[counts.CountDraw, ...]:
        """The masks of the rows: one for each, or with ``both`` two."""
        if self.both:
            return counts.draw_both(keys, u, noise_mask, self.law, weighting=self.weighting)
        return (counts.draw_counts(keys, u, noise_mask, self.law, weighting=self.weighting,
                                   complementary=self.complementary),)

    def loss_at(self, trainable, batch, key, rows, u):
        row = self.noised(batch, key, rows, u)
        prediction, routers = self.run(trainable, row.batch, row.noisy, row.time, key, row.rows)
        terms = self.masked_terms(prediction, row.batch["tokens"], row.draw.masked, row.weight)
        return LossParts.of(scored(row.batch), *routers, **terms)

    def noised(self, batch: dict, key: jax.Array, rows: jax.Array, u: jax.Array) -> Noised:
        """The rows with masks; with ``both`` each twice, side by side."""
        draws = self.draws(self.noise_keys(key, rows), u, batch["noise_mask"])
        draw = jax.tree.map(lambda *of_each: _alternating(of_each), *draws)
        batch, rows = jax.tree.map(lambda x: jnp.repeat(x, len(draws), axis=0), (batch, rows))
        tokens = batch["tokens"]
        noisy = jnp.where(draw.masked, jnp.asarray(self.process.mask_id, tokens.dtype), tokens)
        time = None
        if self.network.time_conditioning:
            time = counts.time_given_count(self.noise_keys(key, rows, TIME), draw, self.process.schedule)
        return Noised(batch, rows, draw, noisy, time)

    def masked_terms(self, prediction, tokens, masked, weight) -> dict[str, jax.Array]:
        """[B, L] each: the weighted cross-entropy of masked tokens, and with CAP their confidence."""
        cap = bool(self.confidence)
        if not self.half_head:
            reduced = self._reduced(prediction, tokens)
            target, entropy = reduced.target, self._entropy_where_right(reduced)
        else:
            slots = counts.pair_slots(masked, self.pair_slots(tokens.shape[1]))
            gathered = Prediction(counts.gather_pairs(prediction.hidden, slots), prediction.head)
            reduced = self._reduced(gathered, counts.gather_pairs(tokens, slots))
            back = lambda x: counts.scatter_pairs(x, slots, tokens.shape[0])  # noqa: E731
            target, entropy = back(reduced.target), back(self._entropy_where_right(reduced)) if cap else None
        terms = {"diffusion": jnp.where(masked, -weight * target, 0.0)}
        return terms | ({"confidence": jnp.where(masked, self.confidence * entropy, 0.0)} if cap else {})

    def _reduced(self, prediction: Prediction, tokens: jax.Array) -> Reduced:
        """The log-probability of the tokens, and with CAP the likeliest id's and the entropy."""
        cap, sharper = bool(self.confidence), self.sharpness != 1.0
        reduced = self.reduce(prediction, target=tokens, entropy=cap and not sharper, top=cap)
        if cap and sharper:
            reduced = reduced._replace(entropy=self.reduce(prediction.tempered(self.sharpness), entropy=True).entropy)
        return reduced

    def _entropy_where_right(self, reduced):
        return jnp.where(reduced.target >= reduced.top, reduced.entropy, 0.0) if self.confidence else None


def _alternating(of_each: tuple[jax.Array, ...]) -> jax.Array:
    """[B, ...] of each draw -> [B * draws, ...]: the draws of a row side by side."""
    return jnp.stack(of_each, axis=1).reshape(-1, *of_each[0].shape[1:])
