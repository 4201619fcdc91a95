"""UDLM (arXiv 2412.10193) and Duo's form of it (2506.10892) against arrays of the reference code: mixing 1, no mask."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mdlm_jax.core import losses, posterior
from mdlm_jax.core.process import Process
from mdlm_jax.core.schedules import Linear
from tests.core.support import Reference, one_hot, reduced

CASES, ROWS, SIZE = 5, 3, 12
WITH_EPS, WITHOUT_EPS = Process(SIZE, None, 1.0, Linear(1e-3)), Process(SIZE, None, 1.0, Linear(eps_noise=0.0))


@pytest.fixture(params=["float64", "float32"])
def reference(request):
    with jax.enable_x64(request.param == "float64"):
        yield Reference("diffusion_udlm", request.param)


@pytest.fixture
def batch(reference):
    """x0, xt, logits, s, t with every (case, row) as one row."""
    tiled = [np.tile(reference[key], (CASES,) + (1,) * (reference[key].ndim - 1)) for key in ("x0", "xt", "logits")]
    return *tiled[:2], jnp.asarray(tiled[2]), reference["s"].reshape(-1), reference["t"].reshape(-1)


def cases(array):
    array = np.asarray(array)
    return array.reshape(CASES, ROWS, *array.shape[1:])


def nelbo(process, x0, xt, logits, t):
    offset = losses.softplus_offset(process, t, x0.shape)
    return losses.nelbo_rate(process, reduced(process, logits, x0, xt, offset), x0, xt, t)


def test_schedule(reference):
    assert (int(reference.arrays["vocab_size"]), float(reference.arrays["eps"])) == (SIZE, 1e-3)
    reference.compare("alpha_t", WITH_EPS.schedule.alpha(reference["t"]))
    reference.compare("alpha_s", WITH_EPS.schedule.alpha(reference["s"]))


def test_posteriors(reference, batch):
    x0, xt, logits, s, t = batch
    probs, clean = posterior.clean_probs(WITH_EPS, logits), one_hot(x0, SIZE, reference.dtype)
    reference.compare("posterior_x0", cases(posterior.posterior(WITH_EPS, xt, clean, s, t)))
    theta = cases(posterior.posterior(WITH_EPS, xt, probs, s, t))
    reference.compare("posterior_theta", theta)
    reference.compare("posterior_duo", theta)


def test_continuous_time_loss(reference, batch):
    x0, xt, logits, _, t = batch
    loss = cases(nelbo(WITH_EPS, x0, xt, logits, t))
    reference.compare("loss_ct_rb", loss)
    reference.compare("loss_ct_xdlmrepo", loss)


@pytest.mark.parametrize("key", ["loss_ct_ref", "loss_ct_rb_alpha_1mt"])
def test_loss_of_the_original_repository(reference, batch, key):
    """Its loss has alpha = 1 - t although x_t was drawn with eps. NaN in it where t = 1 (alpha = 0), and for all rows
    of that batch in the other form."""
    x0, xt, logits, _, t = batch
    loss = cases(nelbo(WITHOUT_EPS, x0, xt, logits, t))
    finite = np.isfinite(reference.arrays[key])
    at_end = reference["t"] == 1.0
    lost = at_end if key == "loss_ct_ref" else np.broadcast_to(at_end.any(-1, keepdims=True), at_end.shape)
    np.testing.assert_array_equal(~finite.all(-1), lost)
    reference.compare(key, loss, where=finite)


def test_gradient(reference, batch):
    x0, xt, logits, _, t = batch
    gradient = jax.jit(jax.grad(lambda u: nelbo(WITH_EPS, x0, xt, u, t).sum()))(logits)
    reference.compare("grad_logits_loss_ct_rb", cases(gradient), vectors=True)


def test_discrete_time_loss(reference, batch):
    """T KL on the grid, alpha = 1 - t, t clamped to 1 - 1e-4; the reference adds 1e-12 inside a logarithm, which T V of
    them make 1.2e-9."""
    x0, xt, logits, _, t = batch
    steps = int(reference.arrays["T_discrete"])
    late = (np.floor(reference.arrays["t"].reshape(-1) * steps) + 1) / steps
    late = np.minimum(late, 1 - 1e-4)
    early = jnp.asarray(np.maximum(late - 1 / steps, 0.0), reference.dtype)
    late = jnp.asarray(late, reference.dtype)
    offset = losses.softplus_offset(WITHOUT_EPS, early, x0.shape)
    values = reduced(WITHOUT_EPS, logits, x0, xt, offset)
    loss = cases(steps * losses.kl_step(WITHOUT_EPS, values, x0, xt, early, late))
    reference.tolerance = max(reference.tolerance, 1.3e-9)
    reference.compare("loss_d3pm", loss)
