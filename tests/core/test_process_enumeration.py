"""The process on a tiny vocabulary against explicit V x V matrices, exactly and by frequency."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mdlm_jax.core import posterior
from mdlm_jax.core.gidd import GiddProcess
from mdlm_jax.core.process import Process
from mdlm_jax.core.schedules import Cosine, Geometric, Linear, Polynomial
from tests.core.support import assert_close, assert_law, row_keys

SCHEDULES = [Linear(1e-3), Cosine(1e-3, power=2.0), Polynomial(1e-4, 1e-4), Geometric(1e-3, 5.0)]
PROCESSES = [
    Process(5, 2, mixing, schedule, hits)
    for schedule in SCHEDULES
    for mixing in (0.0, 0.1, 0.5, 1.0)
    for hits in (True, False)
] + [Process(4, None, 1.0, schedule) for schedule in SCHEDULES]
PROCESSES += [GiddProcess(5, 2, p_uniform=0.3), GiddProcess(5, 2, p_uniform=0.3, gamma=2.0)]
DRAWN = [
    Process(5, 2, 0.0, SCHEDULES[1]),
    Process(5, 2, 0.5, SCHEDULES[1]),
    Process(4, None, 1.0, SCHEDULES[1]),
    GiddProcess(5, 2, p_uniform=0.3),  # uniform draws spare the mask
]

every_process = pytest.mark.parametrize("process", PROCESSES, ids=repr)
drawn = pytest.mark.parametrize("process", DRAWN, ids=repr)


def noise_law(process, uniform, mask):
    """Numpy twin of noise: its mass on each id."""
    law = np.full(process.vocab_size, float(uniform) / process.vocab_size)
    if process.mask_id is not None:
        if not process.uniform_hits_mask:
            law = np.full(process.vocab_size, float(uniform) / (process.vocab_size - 1))
            law[process.mask_id] = 0.0
        law[process.mask_id] += float(mask)
    return law


def matrix(process, masses):
    """[from, to] transition matrix of three [1, 1] masses."""
    keep, uniform, mask = (float(np.asarray(m)[0, 0]) for m in masses)
    return keep * np.eye(process.vocab_size) + noise_law(process, uniform, mask)


def between(process, s, t):
    return matrix(process, process.transition(jnp.asarray([s]), jnp.asarray([t])))


def upto(process, t):
    return matrix(process, process.masses(jnp.asarray([t])))


def clean_law(process, seed=0):
    """A law of the clean token that leaves out the mask."""
    law = np.random.default_rng(seed).dirichlet(np.ones(process.vocab_size))
    if process.mask_id is not None:
        law[process.mask_id] = 0.0
    return law / law.sum()


def bayes(process, law, s, t):
    """[z, e]: P(x_s = e | x_t = z) from matrices alone; s None: of the clean token."""
    before = np.diag(law) if s is None else np.diag(law @ upto(process, s))
    joint = before @ (upto(process, t) if s is None else between(process, s, t))
    return (joint / np.maximum(joint.sum(0), 1e-300)).T


def reachable(process, law, t):
    """The ids that can be seen at time t at all."""
    return np.flatnonzero(law @ upto(process, t) > 0)


@every_process
def test_transitions_compose(process):
    with jax.enable_x64(True):
        for r, s, t in ((0.01, 0.3, 0.31), (0.2, 0.5, 0.999), (1e-4, 2e-4, 0.9999)):
            for product in (between(process, r, t), upto(process, t)):
                np.testing.assert_allclose(product.sum(1), 1.0, atol=1e-13)
            assert_close(between(process, r, s) @ between(process, s, t), between(process, r, t), 1e-12)
            assert_close(upto(process, s) @ between(process, s, t), upto(process, t), 1e-12)


@every_process
def test_marginal_and_posterior(process):
    law, size = clean_law(process), process.vocab_size
    with jax.enable_x64(True):
        for s, t in ((0.3, 0.31), (0.05, 0.95), (0.998, 0.999)):
            probs = jnp.broadcast_to(law, (1, size, size))
            times = jnp.asarray([s]), jnp.asarray([t])
            assert_close(posterior.marginal(process, jnp.eye(size)[None], times[1])[0], upto(process, t), 1e-13)
            exact, seen = bayes(process, law, s, t), reachable(process, law, t)
            ids = jnp.arange(size)[None]
            assert_close(posterior.posterior(process, ids, probs, *times)[0][seen], exact[seen], 1e-12)
            clean = posterior.denoised(process, ids, probs, times[1])[0]
            assert_close(clean[seen], bayes(process, law, None, t)[seen], 1e-12)


@every_process
def test_law_of_the_two_stages(process):
    """Jump with `jump_probability`, then f_s: the posterior exactly. Last step: `noise_probability`, then p."""
    law, size = clean_law(process, 1), process.vocab_size
    with jax.enable_x64(True):
        ids, log_law = jnp.arange(size)[None], jnp.log(jnp.asarray(law))[None]
        for s, t in ((0.3, 0.31), (0.05, 0.95), (0.998, 0.999)):
            seen = reachable(process, law, t)
            jump = np.asarray(process.jump_probability(ids, jnp.asarray([s]), jnp.asarray([t]), log_law))[0][:, None]
            two_stage = (1 - jump) * np.eye(size) + jump * (law @ upto(process, s))
            assert_close(two_stage[seen], bayes(process, law, s, t)[seen], 1e-12)
            noise = np.asarray(process.noise_probability(ids, jnp.asarray([t]), log_law))[0][:, None]
            two_stage = (1 - noise) * np.eye(size) + noise * law
            assert_close(two_stage[seen], bayes(process, law, None, t)[seen], 1e-12)


# Draws: chi-square with p > 1e-6, 20 000 rows -------------------------------------------------------------------------

ROWS = 20_000


@drawn
def test_corrupt(process):
    """Each token value as a position with its own time; half the rows later than the others."""
    size = process.vocab_size
    tokens = jnp.broadcast_to(jnp.arange(size, dtype=jnp.int32), (ROWS, size))
    late = np.arange(ROWS) % 2 == 1
    times = np.linspace(0.1, 0.7, size, dtype=np.float32)
    noisy = np.asarray(process.corrupt(row_keys(ROWS, 0), tokens, times + np.float32(0.25) * late[:, None]))
    for token, time in enumerate(times):
        assert_law(noisy[~late, token], upto(process, time)[token])
        assert_law(noisy[late, token], upto(process, time + np.float32(0.25))[token])


@drawn
def test_prior(process):
    noise = process.prior(row_keys(ROWS, 2), 2)
    at_end = process.masses(jnp.ones(1))
    assert noise.dtype == jnp.int32
    assert_law(noise, noise_law(process, at_end.uniform[0, 0], at_end.mask[0, 0]) / float(at_end.noise[0, 0]))


@drawn
def test_reverse_and_final_step(process):
    """Each token value as a position with its own time; the samples come from the clean law."""
    law, size = clean_law(process, 3), process.vocab_size
    tokens = jnp.broadcast_to(jnp.arange(size, dtype=jnp.int32), (ROWS, size))
    sample = jnp.asarray(np.random.default_rng(4).choice(size, (ROWS, size), p=law), jnp.int32)
    log_prob = jnp.broadcast_to(jnp.log(jnp.asarray(law, jnp.float32)), (ROWS, size))
    t = np.linspace(0.4, 0.9, size, dtype=np.float32)
    s, later = np.broadcast_to(t / 2, (ROWS, size)), np.broadcast_to(t, (ROWS, size))
    given = {"sample": sample, "current_log_prob": log_prob}
    stepped = process.reverse_step(row_keys(ROWS, 5), tokens, s, later, **given)
    ended = process.final_step(row_keys(ROWS, 6), tokens, later, **given)
    for z in reachable(process, law, 0.7):
        assert_law(stepped[:, z], bayes(process, law, t[z] / 2, t[z])[z])
        assert_law(ended[:, z], bayes(process, law, None, t[z])[z])
