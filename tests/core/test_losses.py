"""Per-token losses against brute force over the vocabulary, and against themselves in the limits."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mdlm_jax.core import losses
from mdlm_jax.core.gidd import GiddProcess
from mdlm_jax.core.process import Process
from mdlm_jax.core.schedules import Cosine, CosineMask, Geometric, Linear, Polynomial
from mdlm_jax.core.weights import Power
from tests.core.support import assert_close, reduced

PROCESSES = [
    Process(5, 2, 0.0, Linear(1e-3)),
    Process(5, 2, 0.0, Polynomial(1e-4, 1e-4)),
    Process(5, 2, 1e-6, Linear(1e-3)),
    Process(5, 2, 0.1, Cosine(1e-3, power=2.0)),
    Process(5, 2, 0.5, Geometric(1e-3, 5.0), uniform_hits_mask=False),
    Process(5, 2, 1.0, CosineMask(1e-3)),
    Process(4, None, 1.0, Linear(1e-3)),
    GiddProcess(5, 2, p_uniform=0.3),
]
each = pytest.mark.parametrize("process", PROCESSES, ids=repr)


def batch(process, rows=2, seed=0):
    """All pairs of a clean token and a value it may have: logits, tokens, noisy [rows, pairs], logits of any size."""
    size = process.vocab_size
    pairs = [
        (x, z)
        for x in range(size)
        for z in range(size)
        if x != process.mask_id
        and (x == z or z == process.mask_id or not process.masked_only)
        and not (z == process.mask_id and process.mixing == 1.0 and not process.uniform_hits_mask)
    ]
    tokens, noisy = np.broadcast_to(np.asarray(pairs, np.int32).T[:, None], (2, rows, len(pairs)))
    logits = 3 * np.random.default_rng(seed).normal(size=(rows, len(pairs), size))
    return jnp.asarray(logits), jnp.asarray(tokens), jnp.asarray(noisy)


@functools.partial(jax.jit, static_argnums=(0, 1))
def run(loss, process, logits, tokens, noisy, offset_time, *times):
    """A loss from ready-made logits; the times may be float32 in a float64 run, to be exactly the same."""
    offset_time, *times = (jnp.asarray(t, logits.dtype) for t in (offset_time, *times))
    offset = losses.softplus_offset(process, offset_time, tokens.shape)
    return loss(process, reduced(process, logits, tokens, noisy, offset), tokens, noisy, *times)


def laws(process, masses, probs):
    """[rows, pairs, V] float64: keep probs + noise, in numpy."""
    keep, uniform, mask = (np.asarray(m, np.float64)[..., None] for m in masses)
    on = np.ones(process.vocab_size)
    at_mask = np.zeros(process.vocab_size)
    if process.mask_id is not None:
        at_mask[process.mask_id] = 1.0
        on = on if process.uniform_hits_mask else 1.0 - at_mask
    return keep * probs + uniform * on / on.sum() + mask * at_mask


def softmax(process, logits):
    weights = np.exp(np.asarray(logits) - np.asarray(logits).max(-1, keepdims=True))
    if process.mask_id is not None:
        weights[..., process.mask_id] = 0.0
    return weights / weights.sum(-1, keepdims=True)


def brute_kl(process, logits, tokens, noisy, s, t):
    """sum_e q log(q / p) of the two posteriors by Bayes' rule over the whole vocabulary."""
    size = process.vocab_size
    step, identity = process.transition(s, t), np.eye(size)
    seen = np.take_along_axis(laws(process, step, np.zeros(size)), np.asarray(noisy)[..., None], -1)
    likelihood = np.asarray(step.keep)[..., None] * identity[noisy] + seen
    posteriors = []
    for probs in (identity[tokens], softmax(process, logits)):
        joint = laws(process, process.masses(s), probs) * likelihood
        posteriors.append(joint / joint.sum(-1, keepdims=True))
    q, p = posteriors
    return np.where(q > 0, q * np.log(np.where(q > 0, q, 1.0) / np.where(q > 0, p, 1.0)), 0.0).sum(-1)


@each
def test_kl_of_a_step_is_brute_force(process):
    with jax.enable_x64(True):
        data = batch(process)
        for s, t in (([0.3, 0.05], [0.31, 0.95]), ([0.998, 0.5], [0.999, 0.9999])):
            s, t = jnp.asarray(s), jnp.asarray(t)
            assert_close(run(losses.kl_step, process, *data, s, s, t), brute_kl(process, *data, s, t), 1e-10)


@each
def test_a_step_to_time_zero_is_the_reconstruction(process):
    """Where alpha(0) = 1 nothing is left as noise and the KL is -log p(x | x_t); elsewhere brute force still holds."""
    with jax.enable_x64(True):
        data = batch(process)
        s, t = jnp.zeros(2), jnp.asarray([1e-3, 0.7])
        ours = run(losses.kl_step, process, *data, s, s, t)
        assert_close(ours, brute_kl(process, *data, s, t), 1e-10)
        if process.schedule.complement(0.0) == 0.0:
            assert_close(ours, run(losses.reconstruction, process, *data, t, t), 1e-12)


@each
def test_rate_is_the_limit_of_steps(process):
    with jax.enable_x64(True):
        data = batch(process)
        t = jnp.asarray([0.2, 0.9])
        rate = run(losses.nelbo_rate, process, *data, t, t)
        slopes = [run(losses.kl_step, process, *data, t - dt, t - dt, t) / dt for dt in (1e-4, 5e-5)]
        np.testing.assert_allclose(2 * slopes[1] - slopes[0], rate, rtol=2e-4, atol=1e-6)
        assert (np.asarray(rate) >= -1e-12).all()


@each
def test_the_weight_of_a_constant_weighting(process):
    """It cancels the bound's weight: for the masked process what is left is the cross-entropy of masked tokens."""
    with jax.enable_x64(True):
        t = jnp.asarray([0.2, 0.9])
        masses, inflow = process.masses(t), process.inflow(t)
        weight = losses.level_weight(process, t, Power(0.0))
        np.testing.assert_allclose(weight * (inflow.uniform + inflow.mask), masses.noise, rtol=1e-12)
        if process.masked_only:
            logits, tokens, noisy = batch(process)
            plain = -np.log(np.take_along_axis(softmax(process, logits), np.asarray(tokens)[..., None], -1)[..., 0])
            loss = weight * run(losses.nelbo_rate, process, logits, tokens, noisy, t, t)
            assert_close(loss, np.where(np.asarray(noisy) == process.mask_id, plain, 0.0), 1e-12)


@pytest.mark.parametrize("eps", [0.0, 1e-3, 0.2])
@pytest.mark.parametrize("mixing, hits", [(0.0, True), (0.1, True), (0.5, False), (1.0, True), (1.0, False)])
def test_prior_is_brute_force(mixing, hits, eps):
    """KL(q(x_1 | x) || noise), float32. Infinite for pure masks if a clean token can survive."""
    process = Process(5, 2, mixing, Linear(eps), hits)
    tokens = jnp.asarray([[0, 1, 3, 4]])
    masses = process.masses(jnp.ones(1))
    noise = laws(process, (0 * masses.keep, masses.uniform, masses.mask), np.zeros(5))[0, 0]
    noise /= noise.sum()
    law = laws(process, masses, np.eye(5)[tokens])
    with np.errstate(divide="ignore", invalid="ignore"):
        expected = np.where(law > 0, law * np.log(law / noise), 0.0).sum(-1)
    assert np.isinf(expected).all() == (mixing == 0.0 and eps > 0)
    np.testing.assert_allclose(losses.prior(process, tokens), expected, rtol=2e-5, atol=1e-6)


def test_offset():
    """c = log(a N / u), none for the masked process."""
    t = jnp.asarray([0.25, 0.5])
    assert losses.softplus_offset(PROCESSES[0], t, (2, 3)) is None
    offset = losses.softplus_offset(Process(5, 2, 0.1, Linear(0.0)), t, (2, 3))
    expected = np.log(np.asarray([0.75, 0.5]) * 5 / (0.1 * np.asarray([0.25, 0.5])))
    np.testing.assert_allclose(offset, np.broadcast_to(expected[:, None], (2, 3)), rtol=1e-6)
