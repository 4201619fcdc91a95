"""eps = 0, where nothing of the data is left at t = 1: every path of the core is finite in float32, and right there."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mdlm_jax.core import counts, levels, losses
from mdlm_jax.core.process import Process
from mdlm_jax.core.schedules import Cosine, CosineMask, Linear, Polynomial
from mdlm_jax.core.weights import Power
from tests.core.support import assert_law, reduced, row_keys
from tests.marks import slow_unless

SIZE, MASK, TIME_MIN = 50, 7, 1e-3
SCHEDULES = [Linear(0.0), Cosine(0.0), Cosine(0.0, power=2.0), CosineMask(0.0), Polynomial(0.0, power=0.5),
             Polynomial(0.0, power=20.0)]  # the last has t^20 = 0 in float32 at TIME_MIN
TIMES = np.asarray([TIME_MIN, 0.5, 1 - 2.0**-24, 1.0], np.float32)
every_schedule = pytest.mark.parametrize(
    "schedule", slow_unless(SCHEDULES, Linear(0.0), CosineMask(0.0), Polynomial(0.0, power=20.0)),
    ids=lambda s: f"{type(s).__name__}{vars(s)}"[:60])
every_mixing = pytest.mark.parametrize("mixing", [0.0, 0.1, 1.0])


def finite(*trees):
    for leaf in jax.tree.leaves(trees):
        assert np.isfinite(np.asarray(leaf)).all()


@every_schedule
def test_schedules_end_in_nothing_but_data_and_nothing_but_noise(schedule):
    t = jnp.asarray([0.0, 1.0], jnp.float32)
    np.testing.assert_allclose(np.asarray(schedule.alpha(t)), [1.0, 0.0], rtol=1e-7, atol=0)
    np.testing.assert_allclose(np.asarray(schedule.complement(t)), [0.0, 1.0], rtol=0, atol=1e-7)
    finite(schedule.rate(jnp.asarray(TIMES)), schedule.drop(t, t), schedule.drop(t[:1], t[1:]))
    ends = jnp.asarray([0.0, 1.0], jnp.float32)
    np.testing.assert_allclose(np.asarray(schedule.inverse_complement(ends)), [0.0, 1.0], atol=1e-6)
    np.testing.assert_allclose(np.asarray(schedule.inverse(ends)), [1.0, 0.0], atol=1e-6)


@every_mixing
@every_schedule
def test_corruption_at_the_ends(schedule, mixing):
    process = Process(SIZE, MASK, mixing, schedule)
    tokens = jnp.tile(jnp.asarray([1, 2, 3], jnp.int32), (2000, 1))
    corrupt = jax.jit(lambda t: process.corrupt(row_keys(2000, 0), tokens, jnp.full((2000,), t)))
    np.testing.assert_array_equal(corrupt(0.0), tokens)
    noise = np.full(SIZE, mixing / SIZE) + (1 - mixing) * (np.arange(SIZE) == MASK)
    assert_law(corrupt(1.0), noise)
    assert_law(process.prior(row_keys(2000, 1), 3), noise)
    finite(process.masses(jnp.asarray(TIMES)), process.inflow(jnp.asarray(TIMES)))


@every_mixing
@every_schedule
def test_the_reverse_chain_from_pure_noise(schedule, mixing):
    """A step from t = 1 forgets what it saw: the sample with chance alpha(s), else noise, whatever the token was."""
    process, rows = Process(SIZE, MASK, mixing, schedule), 4000
    seen = MASK if mixing < 1 else 9
    tokens, sample = jnp.full((rows, 2), seen, jnp.int32), jnp.full((rows, 2), 3, jnp.int32)
    log_prob = jnp.full(tokens.shape, -2.0)
    for s in (0.0, 0.6, 1 - 2.0**-10, 1.0):
        times = jnp.full((rows,), s), jnp.ones((rows,))
        jump = np.asarray(process.jump_probability(tokens[:1], *(t[:1] for t in times), log_prob[:1]))
        np.testing.assert_allclose(jump, 0.0 if s == 1.0 else 1.0, atol=1e-6)
        finite(process.transition(*times))
        moved = process.reverse_step(row_keys(rows, 3), tokens, *times, sample=sample, current_log_prob=log_prob)
        keep = float(schedule.alpha(jnp.float32(s)))
        law = keep * (np.arange(SIZE) == 3) + (1 - keep) * (
            mixing / SIZE + (1 - mixing) * (np.arange(SIZE) == MASK) if s < 1.0 else np.arange(SIZE) == seen
        )
        assert_law(moved, law)
    last = process.final_step(row_keys(rows, 4), tokens, jnp.ones((rows,)), sample=sample, current_log_prob=log_prob)
    np.testing.assert_array_equal(last, sample)


@functools.partial(jax.jit, static_argnums=(0, 1))
def value_and_slope(loss, process, logits, tokens, noisy, *times):
    def total(logits):
        offset = losses.softplus_offset(process, times[0], tokens.shape)
        per_token = loss(process, reduced(process, logits, tokens, noisy, offset), tokens, noisy, *times)
        return per_token.sum(), per_token

    return jax.value_and_grad(total, has_aux=True)(logits)


def shown(process, rows):
    """Logits, tokens and noisy tokens: clean, another id (if there can be one), the mask (if there is one), clean."""
    tokens = np.tile(np.asarray([1, 2, 3, 4], np.int32), (rows, 1))
    noisy = tokens.copy()
    noisy[:, 1] = MASK if process.masked_only else 9
    noisy[:, 2] = MASK if process.mixing < 1 else 9
    logits = 2 * np.random.default_rng(0).normal(size=(*tokens.shape, SIZE)).astype(np.float32)
    return jnp.asarray(logits), tokens, noisy


@every_mixing
@every_schedule
def test_losses_and_their_gradients_are_finite(schedule, mixing):
    process, t = Process(SIZE, MASK, mixing, schedule), jnp.asarray(TIMES)
    data = shown(process, len(TIMES))
    for loss, times in (
        (losses.nelbo_rate, (t,)),
        (losses.reconstruction, (t,)),
        (losses.kl_step, (0 * t, t)),
        (losses.kl_step, (0.5 * t, t)),
        (losses.kl_step, (jnp.minimum(t, 1 - 2.0**-10) * 0.999, t)),
    ):
        finite(value_and_slope(loss, process, *data, *times))
    finite(losses.level_weight(process, t, Power(1.0)))
    np.testing.assert_allclose(np.asarray(losses.prior(process, data[1])), 0.0, atol=1e-6)


@pytest.mark.parametrize("mixing", [0.1, 1.0])
@every_schedule
def test_the_rate_at_the_very_end_is_its_limit(schedule, mixing):
    """With uniform noise nothing is left to pay at t = 1, and L falls to it in proportion to alpha."""
    process, t = Process(SIZE, MASK, mixing, schedule), np.asarray([1 - 2.0**-22, 1 - 2.0**-24, 1.0])
    with jax.enable_x64(True):
        data = [jnp.asarray(np.repeat(x, 3, 0)) for x in shown(process, 1)]
        data[0] = data[0].astype(jnp.float64)
        (_, rate), _ = value_and_slope(losses.nelbo_rate, process, *data, jnp.asarray(t))
        scale = np.asarray(schedule.alpha(t) * schedule.rate(t))[:2]
    rate = np.asarray(rate)
    np.testing.assert_allclose(rate[0] / rate[1], scale[0] / scale[1], rtol=3e-2)
    assert (rate[1] > 0).all() and (np.abs(rate[2]) < 1e-12).all()


@every_schedule
def test_the_masked_rate_at_the_very_end(schedule):
    """rate(1) times the cross-entropy."""
    process = Process(SIZE, MASK, 0.0, schedule)
    logits, tokens, noisy = shown(process, 1)
    (_, rate), _ = value_and_slope(losses.nelbo_rate, process, logits, tokens, noisy, jnp.ones(1))
    (_, cost), _ = value_and_slope(losses.reconstruction, process, logits, tokens, noisy, jnp.ones(1))
    np.testing.assert_allclose(np.asarray(rate), float(schedule.rate(jnp.float32(1))) * np.asarray(cost), rtol=1e-6)
    assert (np.asarray(cost)[0, 1:3] > 0).all()


@every_schedule
def test_times_of_counts(schedule):
    number = jnp.asarray([1, 1, 8, 4096, 4096])
    size = jnp.asarray([1, 4096, 8, 4096, 8192])
    made = counts.CountDraw(None, jnp.tile(number, 500), jnp.tile(size, 500), None)
    t = np.asarray(counts.time_given_count(jax.random.split(jax.random.key(0), 2500), made, schedule))
    assert ((t >= 0) & (t <= 1)).all()


@pytest.mark.parametrize("law", [levels.Uniform(), levels.Cosine(), levels.Fixed(1.0)], ids=str)
def test_drawn_times_stop_short_of_one(law):
    """The largest u of float32 would round to t = 1, where the rate of some schedules is zero."""
    t, weight = levels.times(law, jnp.asarray([2.0**-24, 0.5, 1 - 2.0**-24], jnp.float32), TIME_MIN)
    assert (np.asarray(t) < 1).all() and (np.asarray(t) >= np.float32(TIME_MIN)).all()
    finite(weight)
    for schedule in SCHEDULES:
        assert (np.asarray(schedule.rate(t))[-1] > 0) and (np.asarray(schedule.alpha(t)) > 0).all()
