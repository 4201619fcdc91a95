"""The whole reverse chain on a vocabulary of 4 and rows of 2 or 3: its exact law, its draws and its limit."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mdlm_jax.core import draws
from mdlm_jax.core.prediction import Prediction
from tests.core.support import assert_law, row_keys
from tests.core.toy import GIDD, MASK, MASKED, MIXED, SIZE, Toy
from tests.marks import slow_unless


def sample(toy, steps, rows, seed):
    """[rows] indices of states drawn by the library."""
    process, keys = toy.process, row_keys(rows, seed)
    tables = jnp.log(jnp.asarray(np.stack([toy.denoiser(1 - i / steps) for i in range(steps)]), jnp.float32))
    weights = jnp.asarray(SIZE ** np.arange(toy.length)[::-1], jnp.int32)

    def step(i, tokens):
        prediction = Prediction.from_logits(tables[i][tokens @ weights])
        own, other = (jax.vmap(lambda k, n=n: jax.random.fold_in(k, 2 * i + n))(keys) for n in (0, 1))
        drawn = draws.draw(prediction, own, suppress=MASK, current=tokens)
        t = jnp.full(rows, 1 - i / steps, jnp.float32)
        s = jnp.full(rows, 1 - (i + 1) / steps, jnp.float32)
        move = {"sample": drawn.sample, "current_log_prob": drawn.current_log_prob}
        return jax.lax.cond(
            i + 1 == steps,
            lambda: process.final_step(other, tokens, t, **move),
            lambda: process.reverse_step(other, tokens, s, t, **move),
        )

    tokens = process.prior(jax.vmap(lambda k: jax.random.fold_in(k, 2 * steps))(keys), toy.length)
    return jax.jit(lambda first: jax.lax.fori_loop(0, steps, step, first))(tokens) @ weights


def distance(law, truth):
    """Total variation."""
    return 0.5 * np.abs(law - truth).sum()


@pytest.mark.parametrize("process", slow_unless([MASKED, MIXED, GIDD], "mixed", ids=["masked", "mixed", "gidd"]))
def test_draws_follow_the_enumerated_chain(process):
    """Four steps, 40 000 rows of two tokens: chi-square against the chain, and not against the data."""
    toy = Toy(process, 2)
    with jax.enable_x64(True):
        law = toy.law(4)
    assert np.isclose(law.sum(), 1.0) and distance(law, toy.joint) > 0.02
    ids = sample(toy, 4, 40_000, seed=0)
    assert_law(ids, np.where(law < 1e-12, 0.0, law))
    with pytest.raises(AssertionError):
        assert_law(ids, toy.joint)


@pytest.mark.parametrize("process", [MASKED, MIXED], ids=["masked", "mixed"])
@pytest.mark.parametrize("length", [2, 3])
def test_the_chain_converges_to_the_data(process, length):
    """Its error is of order 1 / steps: 8 times the steps, at least 6 times closer."""
    toy = Toy(process, length)
    with jax.enable_x64(True):
        errors = [distance(toy.law(steps), toy.joint) for steps in (1, 8, 64)]
    assert errors[0] > 3 * errors[1] and errors[1] > 6 * errors[2] and errors[2] < 0.02, errors


def test_gidd_s_chain_converges_more_slowly():
    """Its uniform noise comes and goes as sqrt(t (1 - t)), which equal steps follow to order 1 / sqrt(steps)."""
    toy = Toy(GIDD, 2)
    with jax.enable_x64(True):
        errors = [distance(toy.law(steps), toy.joint) for steps in (1, 8, 64)]
    assert errors[0] > 1.5 * errors[1] and errors[1] > 2.5 * errors[2] and errors[2] < 0.02, errors
