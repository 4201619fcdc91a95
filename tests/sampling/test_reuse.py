"""Cached ancestral sampling: the same tokens, and as many forwards as its formula says."""

import functools

import jax.numpy as jnp
import numpy as np
import pytest

from mdlm_jax.core.prediction import Prediction
from mdlm_jax.core.process import Process
from mdlm_jax.models.denoise import Foreign
from mdlm_jax.sampling.ancestral import Ancestral
from mdlm_jax.sampling.canvas import blank
from mdlm_jax.sampling.loop import decode
from tests.marks import slow_unless

VOCAB, MASK, LENGTH, ROWS = 11, 10, 12, 8
PROCESS = Process(VOCAB, MASK)
PARAMS = jnp.asarray(1.5 * np.random.default_rng(0).standard_normal((VOCAB, VOCAB), np.float32))


def around(params, tokens, time):
    del time
    seen = params[tokens]
    return Prediction.from_logits(seen + jnp.roll(seen, 1, axis=1))


run = functools.partial(decode, Foreign(around, timed=False), PARAMS)


@pytest.mark.parametrize("steps", [1, 10, 200])
def test_the_same_tokens(steps):
    canvas = blank(MASK, ROWS, LENGTH, np.array([3, 1, 4]))
    found, plain = (run(canvas, Ancestral(PROCESS, reuse=reuse), steps=steps) for reuse in (True, False))
    np.testing.assert_array_equal(found.tokens, plain.tokens)
    np.testing.assert_array_equal(found.order, plain.order)
    orders = np.asarray(found.order)[:, 3:]
    moves = [np.unique(order) for order in orders]
    np.testing.assert_array_equal(found.forwards, [len(of_row) for of_row in moves])  # one a step that changed the row
    needed = np.unique(np.concatenate([of_row[:-1] for of_row in moves]))  # changes that a row went on from
    assert found.calls == 1 + len(needed) <= plain.calls


@pytest.mark.parametrize("steps", slow_unless([16, 64], 16))
def test_forwards_follow_the_formula(steps):
    """N (1 - (1 - 1/N)^(B L)) on average, within 4.5 standard errors: the steps in which a batch changes, or a row.

    A row's forwards are as many; a batch needs a few less, since a row that is done goes on from nothing.
    """
    found = [run(blank(MASK, ROWS, LENGTH, first_row=ROWS * i), Ancestral(PROCESS, reuse=True), steps=steps)
             for i in range(40)]
    changes = np.array([len(np.unique(run.order)) for run in found])
    for counts, tokens in ((changes, ROWS * LENGTH), (np.concatenate([run.forwards for run in found]), LENGTH)):
        expected = steps * (1 - (1 - 1 / steps) ** tokens)
        error = max(counts.std(ddof=1), 0.05) / np.sqrt(len(counts))
        assert abs(counts.mean() - expected) < 4.5 * error, (counts.mean(), expected, error)
    calls = np.array([run.calls for run in found])
    assert (calls <= changes).all() and (calls > changes - ROWS).all()


def test_networks_that_read_the_time_are_refused():
    with pytest.raises(ValueError, match="leaves forwards out where no token changed, and the network reads"):
        decode(around, PARAMS, blank(MASK, 1, 4), Ancestral(PROCESS, reuse=True), steps=2)
    with pytest.raises(ValueError, match="reuse: needs a masked process, and mixing=0.5"):
        Ancestral(Process(VOCAB, MASK, 0.5), reuse=True)
