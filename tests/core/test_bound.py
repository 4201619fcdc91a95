"""The terms together are a bound: T-step and continuous-time NELBO against the exact likelihood of the chain."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mdlm_jax.core import losses
from tests.core.support import reduced
from tests.core.toy import GIDD, MASKED, MIXED, Toy


class Pairs:
    """Every clean row with every noisy row as one batch; expectations over x_t given x are sums."""

    def __init__(self, toy):
        self.toy = toy
        self.clean = np.flatnonzero(toy.joint)
        count = len(toy.states)
        self.x0 = np.repeat(toy.states[self.clean], count, 0).astype(np.int32)
        self.xt = np.tile(toy.states, (len(self.clean), 1)).astype(np.int32)

    def expect(self, loss, t, offset_time, *times):
        """[clean row]: E over x_t of the row's summed loss."""
        logits = np.tile(np.log(np.maximum(self.toy.denoiser(t), 1e-300)), (len(self.clean), 1, 1))
        values = _loss(loss, self.toy.process, logits, self.x0, self.xt, offset_time, *times)
        weights = self.toy.noisy(t)[self.clean]
        values = np.asarray(values).sum(-1).reshape(weights.shape)
        return np.where(weights > 0, weights * values, 0.0).sum(1)  # what cannot occur may be anything

    def prior(self):
        rows = self.toy.states[self.clean].astype(np.int32)
        return np.asarray(losses.prior(self.toy.process, rows)).sum(-1)

    def steps(self, count):
        """T-step NELBO of every clean row."""
        total = self.prior()
        for i in range(count):
            s, t = 1 - (i + 1) / count, 1 - i / count
            total = total + self.expect(losses.kl_step, t, s, s, t)
        return total

    def continuous(self, time_min, nodes=40, roots=False):
        """Gauss-Legendre over [time_min, 1], with both end terms; ``roots``: of what has square roots at both ends."""
        points, weights = np.polynomial.legendre.leggauss(nodes)
        if roots:
            angle = (points + 1) * np.pi / 2
            points, weights = -np.cos(angle), weights * np.sin(angle) * np.pi / 2
        times = time_min + (1 - time_min) * (points + 1) / 2
        rates = [self.expect(losses.nelbo_rate, t, t, t) for t in times]
        diffusion = (1 - time_min) / 2 * np.einsum("n,nx->x", weights, rates)
        return diffusion + self.expect(losses.reconstruction, time_min, time_min, time_min) + self.prior()


@functools.partial(jax.jit, static_argnums=(0, 1))
def _loss(loss, process, logits, x0, xt, offset_time, *times):
    rows = len(x0)
    offset = losses.softplus_offset(process, jnp.full(rows, offset_time), x0.shape)
    values = reduced(process, logits, x0, xt, offset)
    return loss(process, values, x0, xt, *(jnp.full(rows, time) for time in times))


both = pytest.mark.parametrize("process", [MASKED, MIXED], ids=["masked", "mixed"])
three = pytest.mark.parametrize("process", [MASKED, MIXED, GIDD], ids=["masked", "mixed", "gidd"])


@three
@pytest.mark.parametrize("steps", [1, 3, 10])
def test_steps_bound_the_chain_and_the_data(process, steps):
    """Row by row above -log p of the chain with the same denoiser; on average above the entropy of the data."""
    toy = Toy(process, 2, blur=0.2)
    with jax.enable_x64(True):
        pairs = Pairs(toy)
        bound, law = pairs.steps(steps), toy.law(steps)
    joint = toy.joint[pairs.clean]
    assert (bound >= -np.log(law[pairs.clean]) - 1e-9).all()
    assert joint @ bound > -joint @ np.log(joint) + 1e-3


@both
def test_equality_for_the_exact_denoiser(process):
    """The gap to the entropy is of order 1 / T."""
    toy = Toy(process, 2)
    with jax.enable_x64(True):
        pairs = Pairs(toy)
        joint = toy.joint[pairs.clean]
        gaps = [joint @ pairs.steps(steps) + joint @ np.log(joint) for steps in (4, 16, 64)]
    assert (np.asarray(gaps) > 0).all() and gaps[0] > 2.5 * gaps[1] > 7 * gaps[2] and gaps[2] < 0.02, gaps


@three
def test_one_step_of_a_single_token_is_its_likelihood(process):
    """With one token there is nothing to factorise: any number of steps is exact for the exact denoiser."""
    toy = Toy(process, 1)
    with jax.enable_x64(True):
        pairs = Pairs(toy)
        joint = toy.joint[pairs.clean]
        for steps in (1, 5):
            np.testing.assert_allclose(joint @ pairs.steps(steps), -joint @ np.log(joint), atol=1e-9)


@both
def test_continuous_time_bound(process):
    """Integral + reconstruction + prior: the entropy for the exact denoiser, and the limit of the T-step bound."""
    with jax.enable_x64(True):
        exact, blurred = Pairs(Toy(process, 2)), Pairs(Toy(process, 2, blur=0.2))
        joint = exact.toy.joint[exact.clean]
        entropy = -joint @ np.log(joint)
        np.testing.assert_allclose(joint @ exact.continuous(1e-4), entropy, atol=2e-3)
        without = joint @ (exact.continuous(0.1) - exact.expect(losses.reconstruction, 0.1, 0.1, 0.1))
        assert without < entropy - 0.01  # the diffusion term alone is no bound
        extrapolated = 2 * blurred.steps(128) - blurred.steps(64)
        np.testing.assert_allclose(blurred.continuous(1e-4), extrapolated, rtol=3e-3)


def test_continuous_time_bound_of_gidd():
    """The same with a prior that is 0; its integrand has square roots at both ends of time."""
    with jax.enable_x64(True):
        exact, blurred = (Pairs(Toy(GIDD, 2, blur=blur)) for blur in (0.0, 0.2))
        joint = exact.toy.joint[exact.clean]
        entropy = -joint @ np.log(joint)
        assert (exact.prior() == 0).all()
        np.testing.assert_allclose(joint @ exact.continuous(1e-4, roots=True), entropy, atol=2e-3)
        assert joint @ blurred.continuous(1e-4, roots=True) > entropy + 0.02


def test_steps_of_gidd_close_as_its_noise_comes_and_goes():
    """By half a power of T, as square roots do, where the stationary processes have a whole one."""
    with jax.enable_x64(True):
        pairs = Pairs(Toy(GIDD, 2))
        joint = pairs.toy.joint[pairs.clean]
        gaps = [joint @ pairs.steps(steps) + joint @ np.log(joint) for steps in (4, 16, 64)]
    assert gaps[0] > 1.6 * gaps[1] > 3 * gaps[2] > 0
