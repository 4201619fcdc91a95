"""A joint law over very short rows of four ids and everything about it that can be enumerated.

The exact denoiser of a tabulated joint is tabulated too. With mixed noise it must be the law of a token given the
*others*: Bayes' rule adds the evidence of the token's own value, and would count it twice.
"""

import itertools

import jax.numpy as jnp
import numpy as np

from mdlm_jax.core.gidd import GiddProcess
from mdlm_jax.core.process import Process
from mdlm_jax.core.schedules import CosineMask, Linear

SIZE, MASK = 4, 1
MASKED = Process(SIZE, MASK, 0.0, Linear(eps_noise=0.0))
MIXED = Process(SIZE, MASK, 0.5, CosineMask(eps_noise=0.0))
GIDD = GiddProcess(SIZE, MASK, p_uniform=0.4)


class Toy:
    """``joint`` [V^L] over ``states`` [V^L, L]; never the mask. ``blur`` makes the denoiser imperfect."""

    def __init__(self, process, length, blur=0.0):
        self.process, self.length, self.blur = process, length, blur
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
        hit = np.arange(SIZE) != (None if self.process.uniform_hits_mask else MASK)
        rows = float(uniform[0, 0]) * hit / hit.sum() + float(keep[0, 0]) * np.eye(SIZE)
        rows[:, MASK] += float(mask[0, 0])
        return rows

    def denoiser(self, t):
        """[state, L, V]: law of each clean token given the others' noisy values, blurred towards uniform."""
        likelihood = self.kernel(None, t)[self.states[:, None, :], self.states[None, :, :]]  # [clean, noisy, L]
        table = np.zeros((len(self.states), self.length, SIZE))
        for place in range(self.length):
            others = np.delete(likelihood, place, axis=2).prod(2)
            weight = self.joint[:, None] * others
            for token in range(SIZE):
                table[:, place, token] = weight[self.states[:, place] == token].sum(0)
        total = table.sum(-1, keepdims=True)  # 0 where a state cannot occur, there any law will do
        usual = np.where(np.arange(SIZE) == MASK, 0.0, 1.0 / (SIZE - 1))
        exact = np.where(total > 1e-300, table / np.maximum(total, 1e-300), usual)
        return (1 - self.blur) * exact + self.blur * usual

    def noisy(self, t):
        """[clean state, noisy state]: q(x_t | x)."""
        return self.kernel(None, t)[self.states[:, None, :], self.states[None, :, :]].prod(2)

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
