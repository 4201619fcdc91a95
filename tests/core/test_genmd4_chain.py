"""GenMD4's generating chain and its bound, by enumeration over rows of two tokens."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mdlm_jax.core import genmd4
from mdlm_jax.core.prediction import Prediction
from mdlm_jax.core.reduction import reduce
from mdlm_jax.core.schedules import Linear
from tests.core import genmd4_toy as toy
from tests.core.support import assert_law, row_keys
from tests.core.toy import MASKED as PLAIN

SCHEDULE = genmd4.VectorSchedule(eps=0.0)


# One step -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("eps", [0.0, 1e-4, 0.3])
def test_the_chance_to_show_is_the_posterior_s_for_every_eps(eps):
    powers, t = jnp.asarray(toy.POWERS, jnp.float32), jnp.asarray([0.9, 0.5, 1.0])
    s = jnp.asarray([0.2, 0.49, 0.0])
    ids = jnp.tile(jnp.arange(4), (3, 1))
    schedule = genmd4.VectorSchedule(eps)
    with jax.enable_x64(True):
        powers = powers.astype(jnp.float64)
        at_s, at_t = (schedule.masked_share(powers, ids, x.astype(jnp.float64)) for x in (s, t))
    found = genmd4.unmask_probability(jnp.asarray(toy.POWERS, jnp.float32), ids, s, t)
    np.testing.assert_allclose(np.asarray(found), 1 - np.asarray(at_s / at_t), rtol=1e-6)


def test_the_chance_to_show_is_exact_in_float32():
    """Steps from one millionth of t to all of it, powers from 1e-3 to 30: to 2e-6 of itself."""
    powers = np.array([1e-3, 0.1, 1.0, 3.0, 30.0], np.float32)
    t = np.repeat(np.array([1.0, 0.7, 1e-3], np.float32), 5)
    s = (t * np.tile(1 - np.array([2.0**-20, 2.0**-10, 0.1, 0.999, 1.0]), 3)).astype(np.float32)
    ids = jnp.tile(jnp.arange(5), (15, 1))
    found = np.asarray(jax.jit(genmd4.unmask_probability)(powers, ids, s, t))
    with np.errstate(divide="ignore"):
        ratio = np.log(s.astype(np.longdouble) / t)[:, None]
    truth = np.where(s[:, None] == 0, 1.0, -np.expm1(powers.astype(np.longdouble) * ratio)).astype(np.float64)
    np.testing.assert_allclose(found, truth, rtol=2e-6)
    np.testing.assert_array_equal(found[s == 0], 1.0)
    np.testing.assert_array_equal(np.asarray(genmd4.unmask_probability(powers, ids[:1], t[:1], t[:1])), 0.0)
    tiny = jnp.asarray([0.0, 1e-30])  # softplus of a very negative parameter
    np.testing.assert_array_equal(
        np.asarray(genmd4.unmask_probability(tiny, jnp.asarray([[0, 1]]), jnp.zeros(1), jnp.ones(1))), 1.0
    )


@functools.partial(jax.jit, static_argnums=(0,))
def library_steps(steps, table, key):
    """[rows] states after the library's chain; ``table`` [steps, state, L, V] log mu, one a step."""
    rows, powers = 40_000, jnp.asarray(toy.POWERS, jnp.float32)
    tokens = jnp.full((rows, toy.LENGTH), toy.MASK, jnp.int32)
    for i, (s, t) in enumerate(toy.grid(steps)):
        draw_key, move_key = jax.random.split(jax.random.fold_in(key, i))
        logits = table[i][tokens @ jnp.asarray(toy.CODE)]
        drawn = jax.random.categorical(draw_key, logits).astype(jnp.int32)
        times = (jnp.full((rows,), jnp.float32(x)) for x in (s, t))
        keys = jax.random.split(move_key, rows)
        tokens = genmd4.reverse_step(keys, powers, tokens, *times, sample=drawn, mask_id=toy.MASK)
    return tokens @ jnp.asarray(toy.CODE)


@pytest.mark.parametrize("steps", [1, 2, 4])
def test_draws_follow_the_enumerated_chain(steps, monkeypatch):
    table = np.log(np.stack([toy.imperfect(t) for _, t in toy.grid(steps)]) + 1e-30).astype(np.float32)
    law = toy.chain_law(toy.imperfect, steps)
    assert np.isclose(law.sum(), 1.0) and (law[(toy.STATES == toy.MASK).any(1)] < 1e-15).all()
    found = library_steps(steps, jnp.asarray(table), jax.random.key(steps))
    assert_law(found, np.where(law < 1e-15, 0.0, law))
    monkeypatch.setattr(toy, "POWERS", np.ones(toy.SIZE))
    plain = toy.chain_law(toy.imperfect, steps)
    if steps > 1:  # and not the chain of the plain masked process
        with pytest.raises(AssertionError):
            assert_law(found, np.where(plain < 1e-15, 0.0, plain))


def test_with_power_one_it_is_the_step_of_the_linear_masked_process():
    """Same chances as `Process.reverse_step` with alpha = 1 - t."""
    s, t = jnp.asarray([0.3, 0.0]), jnp.asarray([0.7, 0.4])
    tokens = jnp.full((2, 3), 1)
    assert PLAIN.mask_id == 1 and PLAIN.schedule == Linear(eps_noise=0.0)
    jump = PLAIN.jump_probability(tokens, s, t, None) * PLAIN.schedule.alpha(s)[:, None]  # to the sample, not to noise
    own = genmd4.unmask_probability(jnp.ones(4), tokens, s, t)
    np.testing.assert_allclose(np.asarray(own), np.asarray(jump), rtol=1e-6)


def test_only_masked_editable_positions_move():
    tokens = jnp.asarray([[toy.MASK, 0, toy.MASK, 2]] * 5, jnp.int32)
    sample = jnp.full(tokens.shape, 1, jnp.int32)
    allowed = jnp.asarray([[True, True, False, True]] * 5)
    run = functools.partial(genmd4.reverse_step, row_keys(5, 0), jnp.ones(4), tokens, sample=sample, mask_id=toy.MASK)
    last = run(jnp.zeros(5), jnp.full((5,), 0.5), noise_mask=allowed)
    np.testing.assert_array_equal(last, [[1, 0, toy.MASK, 2]] * 5)
    np.testing.assert_array_equal(run(jnp.full((5,), 0.5), jnp.full((5,), 0.5)), tokens)


# The bound ------------------------------------------------------------------------------------------------------------


@jax.jit
def rates(log_mu, t):
    """[clean, state]: the library's L(t) of every clean row under every noisy one, summed over the row."""
    tokens = jnp.asarray(np.repeat(toy.STATES[toy.CLEAN], 16, 0))
    noisy = jnp.asarray(np.tile(toy.STATES, (len(toy.CLEAN), 1)))
    powers = jnp.asarray(toy.POWERS, log_mu.dtype)
    prediction = Prediction.from_logits(log_mu[noisy @ jnp.asarray(toy.CODE)])
    found = reduce(prediction, suppress=toy.MASK, target=tokens, values=powers)
    rate = SCHEDULE.nelbo_rate(powers, found, tokens, noisy == toy.MASK, jnp.full((len(tokens),), t))
    return rate.sum(-1).reshape(len(toy.CLEAN), 16)


def continuous_bound(denoiser, time_min=1e-3, nodes=40):
    """[clean]: the library's integrand by Gauss-Legendre in log t over the toy's q(x_t | x), and reconstruction."""
    points, weights = np.polynomial.legendre.leggauss(nodes)
    logs = np.log(time_min) * (1 - points) / 2
    total = toy.price(denoiser, time_min)
    for log_t, weight in zip(logs, -np.log(time_min) / 2 * weights, strict=True):
        t = np.exp(log_t)
        with jax.enable_x64(True):
            rate = np.asarray(rates(jnp.asarray(np.log(denoiser(t) + 1e-300)), t))
        total = total + weight * t * (toy.noisy_law(t)[toy.CLEAN] * rate).sum(1)
    return total


@pytest.mark.parametrize("steps", [1, 3, 10])
def test_the_bound_of_steps_is_above_the_chain_row_by_row(steps):
    bound = toy.steps_bound(toy.imperfect, toy.grid(steps))
    assert (bound >= -np.log(toy.chain_law(toy.imperfect, steps)[toy.CLEAN]) - 1e-12).all()


def test_the_integral_is_the_limit_of_steps():
    """Steps equal in log t down to time_min, extrapolated, and the last one to 0."""
    def stepped(count):
        times = np.exp(np.linspace(np.log(1e-3), 0.0, count + 1))
        pairs = [(0.0, 1e-3), *zip(times[:-1], times[1:], strict=True)]
        return toy.steps_bound(toy.imperfect, pairs)

    np.testing.assert_allclose(continuous_bound(toy.imperfect), 2 * stepped(160) - stepped(80), rtol=1e-3)


def test_the_bound_is_above_the_law_of_long_chains():
    """-log p of 256 steps, row by row; the gap is of the order of 1 / 256."""
    bound, law = continuous_bound(toy.imperfect), toy.chain_law(toy.imperfect, 256)[toy.CLEAN]
    assert (bound > -np.log(law) - 0.02).all() and bound.mean() > -np.log(law).mean() + 0.05


def test_the_exact_denoiser_reaches_the_entropy():
    """Integral + reconstruction, with a prior of zero. The exact denoiser knows what a mask says of the id below it."""
    entropy = -toy.JOINT @ np.log(toy.JOINT)
    assert toy.JOINT @ continuous_bound(toy.exact) == pytest.approx(entropy, abs=3e-3)
    assert toy.JOINT @ continuous_bound(toy.imperfect) > entropy + 0.3
