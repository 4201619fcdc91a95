"""The masked process by number of masks: the time-agnostic bound, and half-size heads for antithetic pairs.

For the masked process the NELBO does not depend on the schedule, only on how many tokens are masked
(arXiv 2409.02908, prop. 3.1):

    NELBO = sum_{n=1..L} E[ (1/n) sum_{masked} CE ] = E_{n ~ P} [ 1 / (n P(n)) sum_{masked} CE ],

exact, with no term left over at either end of time. A row draws n, masks exactly n of the L_i positions its
``noise_mask`` allows, and each masked token weighs 1 / (n P(n)): L_i / n for uniform n, never one over the masked
tokens of the whole batch, which is biased.

Antithetic pairs (rows 2i, 2i+1 with u and 1-u) mask at most ceil(L share) + 1 positions between them, L+1 for the
uniform law: a number known at compile time. Gathering them inside the pair, [B/2, 2L, D] -> [B/2, L+1, D], halves the
head's FLOPs and memory and moves nothing between devices, since a pair lives on one.
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp

from mdlm_jax.core import levels, weights
from mdlm_jax.core.schedules import Schedule


class CountDraw(NamedTuple):
    """Which positions are masked and what each is worth."""

    masked: jax.Array  # [B, L] bool
    # [B] int32, number of masked positions
    count: jax.Array  # type: ignore[assignment]  # hides tuple.count, which nobody calls
    eligible: jax.Array  # [B] int32, L_i, number of positions noise may touch
    weight: jax.Array  # [B] float32, of each masked token of the row


def draw_counts(
    keys: jax.Array,
    u: jax.Array,
    noise_mask: jax.Array,
    law: levels.Law = levels.Uniform(),  # noqa: B008 (frozen)
    *,
    weighting: weights.Weighting = weights.Elbo(),  # noqa: B008 (frozen)
    complementary: bool = False,
) -> CountDraw:
    """Masks exactly n = ceil(L_i quantile(u)) of each row's eligible positions, uniformly chosen.

    Args:
      keys: [B] keys, one a row; with ``complementary`` the first of each pair serves both.
      u: [B] in (0, 1), from `levels.unit_levels`.
      noise_mask: [B, L] bool. A row without any eligible position gets n = 0 and weight 0.
      law: of the masked share.
      weighting: what a masked token weighs: the bound's 1 / (n P(n)), or a function of the masked share n / L_i.
      complementary: rows 2i and 2i+1 order their positions oppositely, so that (with antithetic u and equal lengths)
        one masks what the other shows, up to one position; each row alone still masks a uniformly chosen set.
    Raises:
      ValueError: a law without full support and the bound's weighting.
    """
    weights.check(weighting, law)
    return _draw(random_scores(keys, noise_mask.shape[1], complementary), u, noise_mask, law, weighting)


def draw_both(
    keys: jax.Array,
    u: jax.Array,
    noise_mask: jax.Array,
    law: levels.Law = levels.Uniform(),  # noqa: B008 (frozen)
    *,
    weighting: weights.Weighting = weights.Elbo(),  # noqa: B008 (frozen)
) -> tuple[CountDraw, CountDraw]:
    """A mask and its complement among each row's eligible positions (LLaDA2's complementary masking, 2512.15745).

    The first masks n = floor((L_i + 1) quantile(u)) positions, 0 to L_i, the second the other L_i - n: between them
    every position once. Each alone estimates the bound without bias, with the weight 1 / (n P(n)) of its own number's
    law (no mask: nothing). Weightings that are no bound see each one's masked share.

    Args, raises: as `draw_counts`.
    """
    weights.check(weighting, law)
    scores = random_scores(keys, noise_mask.shape[1])
    first, second = draw_from_scores(scores, u, noise_mask, law, weighting, both=True)
    return first, second


def draw_from_scores(scores, u, noise_mask, law, weighting, both: bool) -> tuple[CountDraw, ...]:
    """The draw, or with ``both`` the mask and its complement, where [B, L] ``scores`` order the positions of a row."""
    first = _draw(scores, u, noise_mask, law, weighting, from_zero=both)
    if not both:
        return (first,)
    rest = first.eligible - first.count
    weight = _weight(rest, first.eligible, law, weighting, first.count)
    return first, CountDraw(noise_mask & ~first.masked, rest, first.eligible, weight)


def _draw(scores, u, noise_mask, law, weighting, from_zero=False) -> CountDraw:
    eligible = noise_mask.sum(-1, dtype=jnp.int32)
    size = eligible.astype(jnp.float32)
    share = law.quantile(u) * (1.0 - 2.0**-21)  # rounding must not lift a whole number of masks to the next one
    number = jnp.floor((size + 1.0) * share) if from_zero else jnp.ceil(size * share)
    count = jnp.minimum(number.astype(jnp.int32), eligible)
    masked = noise_mask & (_ranks(scores, noise_mask) < count[:, None])
    weight = _weight(count, eligible, law, weighting, count if from_zero else None)
    return CountDraw(masked, count, eligible, weight)


def _weight(count, eligible, law, weighting, drawn=None) -> jax.Array:
    """What a masked token weighs where ``count`` are masked; ``drawn``: of 0..L_i, the number that was drawn."""
    number, size = jnp.maximum(count, 1).astype(jnp.float32), jnp.maximum(eligible, 1).astype(jnp.float32)
    if not weighting.is_bound:
        weight = weighting(number / size)
    elif drawn is None:
        weight = 1.0 / (number * law.bin_probability(number, size))
    else:
        probability = law.bin_probability(drawn.astype(jnp.float32) + 1.0, eligible.astype(jnp.float32) + 1.0)
        weight = 1.0 / (number * probability)
    return jnp.where(count > 0, weight, 0.0)


def random_ranks(keys: jax.Array, noise_mask: jax.Array) -> jax.Array:
    """[B, L] int32: each eligible position's place, from 0, in a random order of its row; the others come last."""
    return _ranks(random_scores(keys, noise_mask.shape[1]), noise_mask)


def random_scores(keys: jax.Array, length: int, complementary: bool = False) -> jax.Array:
    """[B, L] uint32 whose order is a random order of each row."""
    rows = keys.shape[0]
    if complementary:
        keys = jnp.repeat(keys[::2], 2)
    scores = jax.vmap(lambda key: jax.random.bits(key, (length,), jnp.uint32))(keys) >> 1
    if complementary:
        odd = (jnp.arange(rows) % 2 == 1)[:, None]
        scores = jnp.where(odd, jnp.uint32(2**31 - 1) - scores, scores)
    return scores


def _ranks(scores: jax.Array, noise_mask: jax.Array) -> jax.Array:
    """[B, L]: each eligible position's place in the order of its row; the others come last."""
    scores = jnp.where(noise_mask, scores, jnp.uint32(2**32 - 1))
    return jnp.argsort(jnp.argsort(scores, axis=-1), axis=-1)


def time_given_count(keys: jax.Array, draw: CountDraw, schedule: Schedule) -> jax.Array:
    """Times for a time-conditioned denoiser, [B]: 1 - alpha(t) ~ Beta(n, L_i - n + 1), the law of the level given n."""
    number = jnp.maximum(draw.count, 1).astype(jnp.float32)
    size = jnp.maximum(draw.eligible, 1).astype(jnp.float32)
    level = jax.vmap(jax.random.beta)(keys, number, size - number + 1.0)
    return schedule.inverse_complement(level)


# Half-size heads ------------------------------------------------------------------------------------------------------


class PairSlots(NamedTuple):
    """Where the masked positions of each pair went, and back."""

    source: jax.Array  # [B/2, M] int32: position in the pair's 2L that slot m reads
    used: jax.Array  # [B/2, M] bool: whether slot m holds a masked position
    slot: jax.Array  # [B/2, 2L] int32: the slot of a masked position, M elsewhere


def num_slots(length: int, law: levels.Law) -> int:
    """M, the most positions an antithetic pair can mask: ceil(L share) + 1 (L + 1 for the uniform law), at most 2L."""
    return min(2 * length, math.ceil(length * law.pair_share - 1e-9) + 1)


def pair_slots(masked: jax.Array, slots: int) -> PairSlots:
    """Assigns the masked positions of each pair of rows, in order, to ``slots`` slots."""
    rows, length = masked.shape
    pairs = masked.reshape(rows // 2, 2 * length)
    source = jnp.argsort(~pairs, axis=-1, stable=True)[:, :slots].astype(jnp.int32)
    used = jnp.arange(slots) < pairs.sum(-1)[:, None]
    slot = jnp.where(pairs, jnp.cumsum(pairs, axis=-1) - 1, slots).astype(jnp.int32)
    return PairSlots(source, used, slot)


@jax.custom_vjp
def gather_pairs(x: jax.Array, slots: PairSlots) -> jax.Array:
    """[B, L, ...] -> [B/2, M, ...]. Its gradient is a gather as well, not a scatter."""
    return _take(_as_pairs(x), slots.source)


def _gather_forward(x, slots):
    return gather_pairs(x, slots), (slots, x.shape)


def _gather_backward(saved, grad):
    slots, shape = saved
    grad = grad * slots.used.reshape(slots.used.shape + (1,) * (grad.ndim - 2)).astype(grad.dtype)
    return scatter_pairs(grad, slots, shape[0]), None


gather_pairs.defvjp(_gather_forward, _gather_backward)


def scatter_pairs(values: jax.Array, slots: PairSlots, rows: int) -> jax.Array:
    """[B/2, M, ...] -> [B, L, ...] with zeros where nothing was masked."""
    padded = jnp.pad(values, [(0, 0), (0, 1)] + [(0, 0)] * (values.ndim - 2))
    return _take(padded, slots.slot).reshape(rows, slots.slot.shape[1] // 2, *values.shape[2:])


def _as_pairs(x: jax.Array) -> jax.Array:
    return x.reshape(x.shape[0] // 2, 2 * x.shape[1], *x.shape[2:])


def _take(x: jax.Array, index: jax.Array) -> jax.Array:
    return jnp.take_along_axis(x, index.reshape(index.shape + (1,) * (x.ndim - 2)), axis=1)
