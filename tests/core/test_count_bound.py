"""The count bound by enumeration: 4 positions, 3 ids and a mask, a denoiser tabulated over all 256 noisy rows.

One number, computed five ways: the chain rule averaged over all orders, the sum over counts and subsets, the time
integral of the continuous NELBO for three schedules, and the exact means of the estimators as the code weighs them.
By Jensen it is at least minus the log of the model's likelihood (the orders' average), with equality in the mean over
the data only for the exact denoiser, where it is the entropy.
"""

import functools
import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mdlm_jax.core import counts, losses, schedules
from mdlm_jax.core.levels import Cosine, Uniform
from mdlm_jax.core.prediction import Prediction
from mdlm_jax.core.process import Process
from mdlm_jax.core.reduction import reduce

LENGTH, MASK = 4, 3
ROWS = np.array(list(itertools.product(range(3), repeat=LENGTH)), np.int32)  # [81, 4] every clean row
SUBSETS = np.array(list(itertools.product([False, True], repeat=LENGTH)))  # [16, 4]
NOISY = np.where(SUBSETS, MASK, ROWS[:, None])  # [81, 16, 4]
POWERS = (MASK + 1) ** np.arange(LENGTH)
DATA = np.exp(2.5 * np.random.default_rng(0).normal(size=81))
DATA /= DATA.sum()


@functools.cache
def imperfect():
    """Log-probabilities [256, 4, 3] of a denoiser that looks at the whole noisy row and knows nothing."""
    logits = 1.5 * np.random.default_rng(1).normal(size=(256, LENGTH, 3))
    return logits - np.log(np.exp(logits).sum(-1, keepdims=True))


@functools.cache
def exact():
    """Log-probabilities [256, 4, 3] of the true conditionals of DATA, at the masked positions."""
    table = np.zeros((256, LENGTH, 3))
    for noisy in map(np.array, itertools.product(range(MASK + 1), repeat=LENGTH)):
        fits = DATA * np.all((noisy == MASK) | (noisy == ROWS), axis=1)
        for place, token in itertools.product(np.flatnonzero(noisy == MASK), range(3)):
            table[noisy @ POWERS, place, token] = math.log(fits[ROWS[:, place] == token].sum() / fits.sum())
    return table


def cross_entropies(table):
    """[81, 16]: sum over the masked positions of -log p(clean token | noisy row)."""
    given = table[NOISY @ POWERS]  # [81, 16, 4, 3]
    each = -np.take_along_axis(given, ROWS[:, None, :, None], -1)[..., 0]
    return (each * SUBSETS).sum(-1)


def mean_over_subsets(cross_entropy, number, among=np.ones(LENGTH, bool)):  # noqa: B008 (constant)
    """[81]: the mean over the subsets of ``among`` with ``number`` positions."""
    chosen = (SUBSETS.sum(1) == number) & ~(SUBSETS & ~among).any(1)
    assert chosen.sum() == math.comb(among.sum(), number)
    return cross_entropy[:, chosen].mean(1)


def bound(table, among=np.ones(LENGTH, bool)):  # noqa: B008 (constant)
    """[81]: sum over counts n of (1/n) E over subsets of n."""
    cross_entropy = cross_entropies(table)
    return sum(mean_over_subsets(cross_entropy, n, among) / n for n in range(1, among.sum() + 1))


def order_log_likelihoods(table):
    """[24, 81]: log-probability of each row when its tokens are revealed one by one, in each order."""
    found = []
    for order in itertools.permutations(range(LENGTH)):
        noisy, total = np.full_like(ROWS, MASK), np.zeros(81)
        for place in order:
            total = total + table[noisy @ POWERS, place, ROWS[:, place]]
            noisy[:, place] = ROWS[:, place]
        found.append(total)
    return np.array(found)


@pytest.mark.parametrize("denoiser", [imperfect, exact])
def test_the_count_bound_is_the_chain_rule_averaged_over_orders(denoiser):
    orders = order_log_likelihoods(denoiser())
    np.testing.assert_allclose(bound(denoiser()), -orders.mean(0), rtol=1e-12)
    likelihood = np.exp(orders).mean(0)
    assert likelihood.sum() == pytest.approx(1.0, abs=1e-12)
    assert (bound(denoiser()) >= -np.log(likelihood) - 1e-12).all()


def test_the_exact_denoiser_reaches_the_entropy_and_no_other_does():
    entropy = -(DATA * np.log(DATA)).sum()
    assert DATA @ bound(exact()) == pytest.approx(entropy, rel=1e-12)
    np.testing.assert_allclose(bound(exact()), -np.log(DATA), rtol=1e-12)  # row by row: all orders agree
    assert DATA @ bound(imperfect()) > entropy + 0.5


@pytest.mark.parametrize("schedule", [schedules.Linear(0.0), schedules.Cosine(0.0), schedules.Polynomial(0.0, power=2)],
                         ids=lambda schedule: type(schedule).__name__)
def test_the_time_integral_is_the_same_for_every_schedule(schedule):
    """`losses.nelbo_rate` on every noisy row, its expectation by enumeration, its integral by quadrature."""
    process = Process(MASK + 1, MASK, 0.0, schedule)
    logits = np.pad(imperfect(), [(0, 0), (0, 0), (0, 1)])  # the mask's own column, to be suppressed
    tokens = jnp.asarray(np.repeat(ROWS, 16, 0))
    noisy = jnp.asarray(NOISY.reshape(-1, LENGTH))
    reduced = reduce(Prediction.from_logits(jnp.asarray(logits[NOISY @ POWERS].reshape(-1, LENGTH, 4), jnp.float32)),
                     suppress=MASK, target=tokens)

    @jax.jit
    def rate(t):
        times = jnp.full((len(tokens),), t)
        return losses.nelbo_rate(process, reduced, tokens, noisy, times).sum(-1), process.masses(times[:1]).mask[0, 0]

    nodes, weights = np.polynomial.legendre.leggauss(24)
    total = 0.0
    for node, weight in zip((nodes + 1) / 2, weights / 2, strict=True):
        each, share = jax.tree.map(np.asarray, rate(jnp.float32(node)))
        probability = np.prod(np.where(SUBSETS, share, 1.0 - np.float64(share)), axis=1)
        total = total + weight * (each.reshape(81, 16) @ probability)
    np.testing.assert_allclose(total, bound(imperfect()), rtol=2e-5)


def pieces(law, lengths):
    """The intervals of u on which no count changes: (midpoint, length)."""
    inverse = (lambda level: 2 / np.pi * np.arcsin(level)) if isinstance(law, Cosine) else (lambda level: level)
    edges = {0.0, 1.0}
    for length in lengths:
        own = inverse(np.arange(length + 1) / length)
        edges |= set(own) | set(1 - own)
    edges = np.array(sorted(edges))
    return [(0.5 * (a + b), b - a) for a, b in zip(edges[:-1], edges[1:], strict=True) if b - a > 1e-9]


@pytest.mark.parametrize("law", [Uniform(), Cosine()], ids=str)
def test_the_antithetic_estimator_has_the_bound_as_its_mean(law):
    """A pair with u and 1 - u, the second row one eligible position short: both rows' means are exact."""
    masks = np.array([[True, True, True, True], [True, True, True, False]])
    cross_entropy, means, seen = cross_entropies(imperfect()), [0.0, 0.0], set()
    run = jax.jit(lambda u: counts.draw_counts(jax.random.split(jax.random.key(0)), u, jnp.asarray(masks), law))
    for u, length in pieces(law, (4, 3)):
        draw = run(jnp.asarray([u, 1 - u], jnp.float32))
        number, weight = np.asarray(draw.count), np.asarray(draw.weight, np.float64)
        seen.add(tuple(number.tolist()))
        for row in range(2):
            means[row] = means[row] + length * weight[row] * mean_over_subsets(cross_entropy, number[row], masks[row])
    assert len(seen) >= 6 and {n for n, _ in seen} == {1, 2, 3, 4} and {n for _, n in seen} == {1, 2, 3}
    np.testing.assert_allclose(means[0], bound(imperfect(), masks[0]), rtol=2e-6)
    np.testing.assert_allclose(means[1], bound(imperfect(), masks[1]), rtol=2e-6)


def test_dividing_by_the_masked_tokens_of_the_batch_is_biased():
    """Why a token weighs L/n of its own row: one over all masked tokens of the batch estimates something else."""
    cross_entropy = cross_entropies(exact())
    mean = np.array([DATA @ mean_over_subsets(cross_entropy, n) for n in range(1, LENGTH + 1)])  # nats of n masks
    per_token = DATA @ bound(exact()) / LENGTH
    pairs = list(itertools.product(range(1, LENGTH + 1), repeat=2))
    by_batch = np.mean([(mean[n - 1] + mean[m - 1]) / (n + m) for n, m in pairs])
    by_row = np.mean([(mean[n - 1] * LENGTH / n + mean[m - 1] * LENGTH / m) / (2 * LENGTH) for n, m in pairs])
    assert by_row == pytest.approx(per_token, rel=1e-12)
    assert by_batch > 1.05 * per_token
