"""Losses in float32: accurate at both ends of time for a real vocabulary, finite for every input."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mdlm_jax.core import losses
from mdlm_jax.core.process import Process
from mdlm_jax.core.schedules import Linear
from tests.core.support import reduced

SIZE, MASK, PLACES = 1000, 0, 9
ENDS = np.asarray([1e-6, 1e-4, 1e-3, 0.1, 0.5, 0.9, 1 - 2.0**-10, 1 - 2.0**-20, 1.0], np.float32)


@functools.partial(jax.jit, static_argnums=(0, 1))
def run(loss, process, logits, tokens, noisy, offset_time, *times):
    offset_time, *times = (t.astype(logits.dtype) for t in (offset_time, *times))
    offset = losses.softplus_offset(process, offset_time, tokens.shape)
    return loss(process, reduced(process, logits, tokens, noisy, offset), tokens, noisy, *times)


def batch(process, confidence, seed=0):
    """Rows at the times `ENDS`; places cycle through clean, masked and another token."""
    tokens = np.tile(np.arange(1, PLACES + 1, dtype=np.int32), (len(ENDS), 1))
    noisy = tokens.copy()
    noisy[:, 1::3] = MASK
    noisy[:, 2::3] = MASK if process.masked_only else 500
    logits = 2 * np.random.default_rng(seed).normal(size=(*tokens.shape, SIZE)).astype(np.float32)
    np.put_along_axis(logits, tokens[..., None], np.take_along_axis(logits, tokens[..., None], -1) + confidence, -1)
    return logits, tokens, noisy


def both(loss, process, data, *times):
    """The loss in float32 and in float64 of the same float32 inputs."""
    logits, *ids = data
    narrow = run(loss, process, jnp.asarray(logits), *ids, *map(jnp.asarray, times))
    assert narrow.dtype == jnp.float32
    with jax.enable_x64(True):
        wide = run(loss, process, jnp.asarray(logits.astype(np.float64)), *ids, *map(jnp.asarray, times))
    return np.asarray(narrow, np.float64), np.asarray(wide)


def test_differences_that_would_cancel():
    """The helpers to 2e-6 of their own value, however small, where the plain difference keeps no digit."""
    y = np.concatenate([-np.geomspace(1e-3, 40.0, 200), np.geomspace(1e-3, 80.0, 200)]).astype(np.float32)
    wide = y.astype(np.longdouble)
    odds = np.exp(wide)
    sure = np.where(wide < -20, odds**2 / 2 - 2 * odds**3 / 3, np.log1p(odds) - odds / (1 + odds))
    np.testing.assert_allclose(losses._excess_of_log_odds(y), sure.astype(np.float64), rtol=2e-6)
    d = np.geomspace(1e-3, 60.0, 200).astype(np.float32)
    wide = d.astype(np.longdouble)
    exact = np.where(d < 1e-2, wide**2 / 2 * (1 + wide / 3 * (1 + wide / 4)), np.expm1(wide) - wide)
    np.testing.assert_allclose(losses._excess(d), exact.astype(np.float64), rtol=2e-6)
    log_prob = -np.geomspace(1e-7, 50.0, 300).astype(np.float32)
    for c in (-10.0, 0.0, 15.0, 35.0):
        c = np.full_like(log_prob, c)
        exact = np.log1p(np.exp(np.longdouble(c))) - np.log1p(np.exp(np.longdouble(c) + log_prob))
        np.testing.assert_allclose(losses._softplus_drop(log_prob, c), exact.astype(np.float64), rtol=5e-6)


@pytest.mark.parametrize("confidence", [0.0, 8.0, 20.0])
@pytest.mark.parametrize("mixing", [0.0, 1e-6, 0.1, 1.0])
def test_rate_near_the_ends(mixing, confidence):
    """Within 1e-5 of the loss plus 5e-6 of the largest weight, 1 / noise: logits of 20 are that exact."""
    process = Process(SIZE, MASK, mixing, Linear(1e-3))
    ours, truth = both(losses.nelbo_rate, process, batch(process, confidence), ENDS, ENDS)
    with jax.enable_x64(True):
        weight = 1.0 / np.asarray(process.masses(jnp.asarray(ENDS.astype(np.float64))).noise)
    assert np.isfinite(ours).all()
    assert (np.abs(ours - truth) <= 1e-5 * np.abs(truth) + 5e-6 * weight).all()


@pytest.mark.parametrize("confidence", [0.0, 8.0, 20.0])
@pytest.mark.parametrize("mixing", [0.0, 1e-6, 0.1, 1.0])
def test_steps_short_and_long(mixing, confidence):
    """s = 0.99 t, t / 2, t / 1000 and 0: within 5e-6 of max(1, KL)."""
    process = Process(SIZE, MASK, mixing, Linear(1e-3))
    data = batch(process, confidence)
    for share in (1 - 2.0**-7, 0.5, 1e-3, 0.0):
        before = (ENDS * np.float32(share)).astype(np.float32)
        ours, truth = both(losses.kl_step, process, data, before, before, ENDS)
        assert np.isfinite(ours).all()
        np.testing.assert_array_less(np.abs(ours - truth), 5e-6 * np.maximum(1.0, truth))


@pytest.mark.parametrize("mixing", [0.0, 1e-6, 1.0])
@pytest.mark.parametrize("loss", [losses.nelbo_rate, losses.kl_step, losses.reconstruction])
def test_finite_for_extreme_logits(loss, mixing):
    """Logits of +-1e4, so that most probabilities underflow, at every time: value and gradient are finite."""
    process = Process(SIZE, MASK, mixing, Linear(1e-3))
    logits, tokens, noisy = batch(process, 0.0)
    extreme = np.random.default_rng(1).choice([-1e4, 0.0, 1e4], size=logits.shape).astype(np.float32)
    extreme[:, 3:6] = -1e4
    np.put_along_axis(extreme[:, 3:6], tokens[:, 3:6, None], 1e4, -1)  # sure and right
    extreme[:, 6:] = -1e4
    extreme[:, 6:, 500] = 1e4  # sure and wrong: p(x) = 0
    times = {losses.kl_step: (ENDS / 2, ENDS / 2, ENDS)}.get(loss, (ENDS, ENDS))

    def total(logits):
        per_token = run(loss, process, logits, tokens, noisy, *map(jnp.asarray, times))
        return per_token.sum(), per_token

    slope, per_token = map(np.asarray, jax.jit(jax.grad(total, has_aux=True))(jnp.asarray(extreme)))
    assert np.isfinite(per_token).all() and np.isfinite(slope).all()
    assert (per_token[:, 3:6] <= 1e-2 / ENDS[:, None]).all() and (per_token[:, 7] > 0.5).all()
