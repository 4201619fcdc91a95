"""Hidden Markov chains against sums over all paths in plain numpy."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mdlm_jax.core import hmm
from tests.core.support import assert_law

S, L = 3, 4
SEGMENTS = {"whole": [1, 1, 1, 1], "padded": [1, 1, 0, 0], "left": [0, 1, 1, 1], "two": [1, 1, 2, 2],
            "hole": [1, 0, 1, 1], "single": [0, 0, 2, 0]}


def chain(seed=0):
    rng = np.random.default_rng(seed)
    start, step, end = (1.5 * rng.standard_normal(shape) for shape in ((S,), (S, S), (S,)))
    start, step = (x - np.logaddexp.reduce(x, -1, keepdims=True) for x in (start, step))
    return hmm.Chain(*(jnp.asarray(x, jnp.float32) for x in (start, step, end)))


def evidence(seed):
    return 2.0 * np.random.default_rng(seed).standard_normal((L, S))


def weight(chain, segment, said, path):
    """log w of one path, in plain Python."""
    total, before = 0.0, None
    real = [i for i in range(L) if segment[i]]
    for number, i in enumerate(real):
        fresh = before is None or segment[i] != segment[before]
        total += float(chain.start[path[i]] if fresh else chain.step[path[before], path[i]]) + said[i, path[i]]
        if number + 1 == len(real) or segment[real[number + 1]] != segment[i]:
            total += float(chain.end[path[i]])
        before = i
    return total


def total(chain, segment, said):
    """log sum over paths; padding has one state."""
    paths = itertools.product(*(range(S) if real else [0] for real in segment))
    return np.logaddexp.reduce([weight(chain, segment, said, path) for path in paths])


def at(segment):
    return hmm.places(jnp.asarray([segment], jnp.int32))


@pytest.mark.parametrize("segment", SEGMENTS.values(), ids=SEGMENTS)
def test_the_sum_over_paths_and_what_part_of_it_is(segment):
    """Totals of the filter, and the conditionals of clamped evidence: each, by sums, and all together."""
    model, said, clamped, where = chain(), evidence(1), evidence(2), at(segment)
    clamped = np.where(np.array([[True], [False], [True], [True]]), clamped, said)  # nothing is clamped at 1
    soft, hard = (hmm.ended(model, where, jnp.asarray(x[None], jnp.float32)) for x in (said, clamped))
    predicted, log_total = hmm.filtered(model, where, hard)
    assert float(log_total.sum()) == pytest.approx(total(model, segment, clamped), abs=2e-5)
    found = np.asarray(hmm.conditional(predicted, soft, hard, hmm.behind(model, where, soft)))[0]
    sums = [total(model, segment, np.concatenate([clamped[:i], said[i:]])) for i in range(L + 1)]
    real = np.array(segment) > 0
    np.testing.assert_allclose(found[real], np.diff(sums)[real], atol=2e-5)
    assert found[1] == 0 and np.diff(sums)[~real].tolist() == [0.0] * int((~real).sum())


@pytest.mark.parametrize("segment", [SEGMENTS["whole"], SEGMENTS["hole"], SEGMENTS["two"]])
def test_paths_follow_their_weights(segment):
    model, said, rows = chain(3), evidence(4), 20_000
    where = hmm.places(jnp.tile(jnp.asarray([segment], jnp.int32), (rows, 1)))
    given = hmm.ended(model, where, jnp.broadcast_to(jnp.asarray(said, jnp.float32), (rows, L, S)))
    known = hmm.filtered(model, where, given)[0] + given
    keys = jax.random.split(jax.random.key(1), (rows, L))
    drawn = np.asarray(hmm.path(model, where, known, keys))
    paths = np.array(list(itertools.product(range(S), repeat=L)))
    law = np.exp([weight(model, segment, said, path) for path in paths])
    law = np.where((paths[:, np.array(segment) == 0] == 0).all(1), law, 0.0)
    assert_law(np.ravel_multi_index(tuple(drawn.T), (S,) * L), law / law.sum())
    greedy = np.asarray(hmm.path(model, where, known, keys, jnp.array(True)))
    assert (greedy == greedy[0]).all()


def test_rows_do_not_touch_each_other_and_long_ones_stay_finite():
    model, long = chain(), 5000
    rng = np.random.default_rng(0)
    said = jnp.asarray(-300.0 * rng.random((2, long, S)), jnp.float32)  # e^-1500000 in all
    segment = jnp.asarray(np.stack([np.ones(long), np.arange(long) < 7]), jnp.int32)
    where = hmm.places(segment)
    given = hmm.ended(model, where, said)
    predicted, log_total = hmm.filtered(model, where, given)
    after = hmm.behind(model, where, given)
    assert all(np.isfinite(x).all() for x in (predicted, log_total, after))
    alone = hmm.places(segment[1:, :7])
    few = hmm.filtered(model, alone, hmm.ended(model, alone, said[1:, :7]))[1]
    np.testing.assert_allclose(log_total[1, :7], few[0], rtol=1e-5)
    assert not np.asarray(log_total[1, 7:]).any()
    np.testing.assert_allclose(jax.nn.logsumexp(predicted, -1)[0], 0.0, atol=1e-4)


def test_no_state_need_be_possible_for_long():
    """Evidence that leaves one state at each position, far from what the chain goes to: the sum is that of one path."""
    step = jnp.asarray([[0.0, -200.0, -200.0], [-200.0, 0.0, -200.0], [-200.0, -200.0, 0.0]])
    model = hmm.Chain(jnp.log(jnp.full(S, 1 / 3)), step, jnp.zeros(S))
    where = at([1, 1, 1, 1])
    said = jnp.full((1, L, S), -60.0).at[0, jnp.arange(L), jnp.array([0, 0, 0, 0])].set(0.0)
    assert float(hmm.filtered(model, where, said)[1].sum()) == pytest.approx(np.log(1 / 3), abs=1e-4)
    grads = jax.grad(lambda m: hmm.filtered(m, where, said)[1].sum())(model)
    assert all(np.isfinite(x).all() for x in grads)
