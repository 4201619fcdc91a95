"""XDLM (arXiv 2602.01362) against arrays of the reference code: process, posteriors, losses, gradient."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mdlm_jax.core import losses, posterior
from mdlm_jax.core.process import Process
from mdlm_jax.core.schedules import Linear
from tests.core.support import Reference, assert_close, one_hot, reduced

CASES, ROWS, LENGTH, SIZE, MASK = 5, 3, 7, 12, 11
MIXING = [0.0, 0.1, 0.5, 1.0]


@pytest.fixture(params=["float64", "float32"])
def reference(request):
    with jax.enable_x64(request.param == "float64"):
        yield Reference("diffusion_xdlm", request.param)


@pytest.fixture(params=range(4), ids=lambda i: f"mixing{MIXING[i]}")
def case(request, reference):
    return Case(reference, request.param)


class Case:
    """One mixing ratio; the reference's cases of (t, s) laid out as the rows of one batch."""

    def __init__(self, reference, index):
        self.reference, self.index = reference, index
        self.process = Process(SIZE, MASK, float(reference["k"][index]), Linear(float(reference.arrays["eps"])))
        self.t, self.s = reference["t"].reshape(-1), reference["s"].reshape(-1)
        self.x0, self.xt = self._tile(reference["x0"]), self._tile(reference["xt"][index])
        self.logits = self._tile(reference["logits"])
        self.clean = one_hot(self.x0, SIZE, reference.dtype)

    def _tile(self, array):
        return jnp.asarray(np.tile(array, (CASES,) + (1,) * (array.ndim - 1)))

    def compare(self, key, actual, **how):
        actual = np.asarray(actual)
        actual = actual.reshape(CASES, ROWS, *actual.shape[1:])
        self.reference.compare(key, actual, select=self.index, **how)

    def nelbo(self, logits, process=None):
        process = process or self.process
        offset = losses.softplus_offset(process, self.t, self.x0.shape)
        return losses.nelbo_rate(
            process, reduced(process, logits, self.x0, self.xt, offset), self.x0, self.xt, self.t
        )


def test_schedule(reference):
    assert (reference.arrays["vocab_size"], reference.arrays["mask_id"]) == (SIZE, MASK)
    schedule, t, s = Linear(float(reference.arrays["eps"])), reference["t"], reference["s"]
    reference.compare("alpha_t", schedule.alpha(t))
    reference.compare("alpha_s", schedule.alpha(s))
    reference.compare("dalpha_dt", -schedule.rate(t[0, 0]))
    assert_close(schedule.alpha(t), reference.arrays["fwd_alpha_t_f32"], 1e-7)


def test_marginal_and_transition(case):
    process, t, s = case.process, case.t, case.s
    pure = process.masses(t)
    vector = posterior.noise_vector(process, pure)[:, 0] / pure.noise
    for row in np.asarray(vector):
        case.reference.compare("stationary_pi", row, select=case.index)
    case.compare("q_xt_given_x0", posterior.marginal(process, case.clean, t))
    step = process.transition(s, t)
    matrix = step.keep[..., None] * jnp.eye(SIZE) + posterior.noise_vector(process, step)
    case.compare("Q_ts", matrix)


def test_thresholds_of_the_forward_draw(case):
    """Our draws are two-stage, so not the reference's bits; but its uniforms cut at our masses give its tokens."""
    arrays = case.reference.arrays
    masses = jax.tree.map(lambda m: np.asarray(m).reshape(CASES, ROWS, 1), case.process.masses(case.t))
    uniform, ids = arrays["fwd_rand"], arrays["fwd_ids"]
    noisy = np.where(uniform < masses.keep + masses.uniform, ids, MASK)
    noisy = np.where(uniform < masses.keep, arrays["x0"], noisy)
    np.testing.assert_array_equal(noisy, arrays["fwd_xt"][case.index])
    at_end = case.process.masses(jnp.ones(1, case.reference.dtype))
    share = float((at_end.mask / at_end.noise)[0, 0])
    pure = np.where(arrays["prior_rand"] < share, MASK, arrays["prior_ids"])
    np.testing.assert_array_equal(pure, arrays["prior_x"][case.index])


def test_posteriors(case):
    process = case.process
    probs = posterior.clean_probs(process, case.logits)
    case.compare("posterior_x0", posterior.posterior(process, case.xt, case.clean, case.s, case.t))
    case.compare("posterior_theta", posterior.posterior(process, case.xt, probs, case.s, case.t))
    case.compare("posterior_denoise", posterior.denoised(process, case.xt, probs, case.t))


def test_continuous_time_loss(case):
    loss = case.nelbo(case.logits)
    case.compare("loss_ct", loss)
    rate = case.process.schedule.rate(case.t)[:, None]
    for key in ("loss_ct_unit", "loss_ct_unit_simp", "loss_ct_unit_llada"):
        case.compare(key, loss / rate)
    mean = np.asarray(loss).reshape(CASES, ROWS, LENGTH).mean((1, 2))
    case.reference.compare("loss_ct_mean", mean, select=case.index)


def test_gradient_of_the_continuous_time_loss(case):
    gradient = jax.jit(jax.grad(lambda logits: case.nelbo(logits).sum()))(case.logits)
    case.compare("grad_logits_loss_ct", gradient, vectors=True)


def test_kl_of_a_finite_step(case):
    offset = losses.softplus_offset(case.process, case.s, case.x0.shape)
    values = reduced(case.process, case.logits, case.x0, case.xt, offset)
    case.compare("kl_discrete", losses.kl_step(case.process, values, case.x0, case.xt, case.s, case.t))


# A real vocabulary ----------------------------------------------------------------------------------------------------


class GivenAlpha(Linear):
    """t is alpha itself, as the reference has it: 1 - 1e-5 would not be exact in float32."""

    def alpha(self, t):
        return t

    def complement(self, t):
        return 1.0 - t


@pytest.fixture(params=["float64", "float32"])
def large(request):
    with jax.enable_x64(request.param == "float64"):
        yield Reference("diffusion_xdlm_bigv", request.param)


@pytest.mark.parametrize("index", range(4), ids=lambda i: f"mixing{[0.001, 0.1, 0.5, 1.0][i]}")
def test_vocabulary_of_50258(large, index):
    """Weight-1 loss at six alphas from 0.999 to 1e-5, where the reference's float32 run is 0.03 off."""
    size, mask = int(large["vocab_size"]), int(large["mask_id"])
    process = Process(size, mask, float(large["k"][index]), GivenAlpha(eps_noise=0.0))
    alpha = jnp.asarray(large["alpha_t"])
    x0, xt = (np.repeat(large[key], len(alpha), 0) for key in ("x0", "xt"))
    logits = jnp.asarray(large["logits_f16"])
    offset = losses.softplus_offset(process, alpha, x0.shape)
    values = _big_reduced(process, logits, x0, xt, offset)
    loss = losses.nelbo_rate(process, values, x0, xt, alpha)
    large.compare("loss_ct_unit", loss, select=index, own_error=400.0)


@functools.partial(jax.jit, static_argnums=0)
def _big_reduced(process, logits, x0, xt, offset):
    return reduced(process, jnp.broadcast_to(logits, (*x0.shape, logits.shape[-1])), x0, xt, offset)
