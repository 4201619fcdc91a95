"""The whole reverse chain on a vocabulary of 4 and rows of 2 or 3: its exact law, its draws and its limit.

The exact denoiser of a tabulated joint is tabulated too. With mixed noise it must be the law of a token given the
*others*: Bayes' rule adds the evidence of the token's own value, and would count it twice.
"""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mdlm_jax.core import draws
from mdlm_jax.core.prediction import Prediction
from mdlm_jax.core.process import Process
from mdlm_jax.core.schedules import CosineMask, Linear
from tests.core.support import assert_law, row_keys

SIZE, MASK = 4, 1
MASKED = Process(SIZE, MASK, 0.0, Linear(eps_noise=0.0))
MIXED = Process(SIZE, MASK, 0.5, CosineMask(eps_noise=0.0))


class Toy:
    """A joint over rows of ``length`` clean tokens, and everything about a chain that can be enumerated."""

    def __init__(self, process, length):
        self.process, self.length = process, length
        self.states = np.asarray(list(itertools.product(range(SIZE), repeat=length)))
        joint = np.random.default_rng(length).gamma(0.3, size=len(self.states))
        joint[(self.states == MASK).any(1)] = 0.0
        self.joint = joint / joint.sum()

    def kernel(self, s, t):
        """[from, to] of one position between two times; s None: from clean."""
        if s is None:
            keep, uniform, mask = self.process.masses(jnp.asarray([t]))
        else:
            keep, uniform, mask = self.process.transition(jnp.asarray([s]), jnp.asarray([t]))
        rows = np.full((SIZE, SIZE), float(uniform[0, 0]) / SIZE) + float(keep[0, 0]) * np.eye(SIZE)
        rows[:, MASK] += float(mask[0, 0])
        return rows

    def denoiser(self, t):
        """[state, L, V]: law of each clean token given the others' noisy values."""
        likelihood = self.kernel(None, t)[self.states[:, None, :], self.states[None, :, :]]  # [clean, noisy, L]
        table = np.zeros((len(self.states), self.length, SIZE))
        for place in range(self.length):
            others = np.delete(likelihood, place, axis=2).prod(2)
            weight = self.joint[:, None] * others
            for token in range(SIZE):
                table[:, place, token] = weight[self.states[:, place] == token].sum(0)
        total = table.sum(-1, keepdims=True)  # 0 where a state cannot occur, there any law will do
        usual = np.where(np.arange(SIZE) == MASK, 0.0, 1.0 / (SIZE - 1))
        return np.where(total > 1e-300, table / np.maximum(total, 1e-300), usual)

    def step(self, s, t):
        """[state, state]: one reverse step, positions independent; s None: to clean tokens."""
        probs = self.denoiser(t)
        before = probs if s is None else probs @ self.kernel(None, s)
        onward = self.kernel(None, t) if s is None else self.kernel(s, t)  # [e, z]
        posterior = before * onward.T[self.states]  # [state, L, e]
        total = posterior.sum(-1, keepdims=True)
        posterior = np.where(total > 0, posterior / np.where(total > 0, total, 1.0), 1.0 / SIZE)  # 0: cannot occur
        chosen = [posterior[:, place][:, self.states[:, place]] for place in range(self.length)]
        return np.prod(chosen, axis=0)

    def law(self, steps):
        """Of the rows after ``steps`` equal steps from pure noise, the last one denoising."""
        noise = self.kernel(None, 1.0)[0]  # alpha(1) = 0: the same from every token
        law = noise[self.states].prod(1)
        for i in range(steps):
            law = law @ self.step(None if i + 1 == steps else 1 - (i + 1) / steps, 1 - i / steps)
        return law

    def sample(self, steps, rows, seed):
        """[rows] indices of states drawn by the library."""
        process, keys = self.process, row_keys(rows, seed)
        tables = jnp.log(jnp.asarray(np.stack([self.denoiser(1 - i / steps) for i in range(steps)]), jnp.float32))
        weights = jnp.asarray(SIZE ** np.arange(self.length)[::-1], jnp.int32)

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

        tokens = process.prior(jax.vmap(lambda k: jax.random.fold_in(k, 2 * steps))(keys), self.length)
        return jax.jit(lambda first: jax.lax.fori_loop(0, steps, step, first))(tokens) @ weights


def distance(law, truth):
    """Total variation."""
    return 0.5 * np.abs(law - truth).sum()


@pytest.mark.parametrize("process", [MASKED, MIXED], ids=["masked", "mixed"])
def test_draws_follow_the_enumerated_chain(process):
    """Four steps, 40 000 rows of two tokens: chi-square against the chain, and not against the data."""
    toy = Toy(process, 2)
    with jax.enable_x64(True):
        law = toy.law(4)
    assert np.isclose(law.sum(), 1.0) and distance(law, toy.joint) > 0.02
    ids = toy.sample(4, 40_000, seed=0)
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
