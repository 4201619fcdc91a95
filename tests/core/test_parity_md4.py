"""MD4 (arXiv 2406.04329) against arrays of the reference code, run in float32: its losses, gradients and steps.

The denoiser is the reference's toy: logits = E[z] + P + tanh(mean E[z]) (+ t W), V columns, the mask being row V of E.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mdlm_jax.core import levels, losses, posterior, truncation
from mdlm_jax.core.process import Process
from mdlm_jax.core.schedules import CosineMask, Linear, Polynomial
from tests.core.support import assert_close, golden, reduced
from tests.marks import slow_unless

SIZE = MASK = 6
SHIFT = {"eps_noise": 1e-4, "eps_data": 1e-4}
SCHEDULES = {"linear": Linear(**SHIFT), "cosine": CosineMask(**SHIFT), "poly2": Polynomial(**SHIFT)}
BITS = np.log(2.0)


@pytest.fixture(params=[np.float64, np.float32], ids=["float64", "float32"])
def arrays(request):
    """Ids as int32, the rest in the run's precision."""
    with jax.enable_x64(request.param == np.float64):
        yield {
            name: jnp.asarray(x, np.int32 if x.dtype.kind == "i" else request.param)
            for name, x in golden("mdm_md4").items()
        }


def process_of(schedule):
    return Process(SIZE + 1, MASK, 0.0, schedule, head_size=SIZE)


def network(arrays, embedding, tokens, t=None):
    hidden = embedding[tokens]
    logits = hidden + arrays["net_P"][: tokens.shape[1]] + jnp.tanh(hidden.mean(1, keepdims=True))
    return logits if t is None else logits + t[:, None, None] * arrays["net_W"]


@pytest.mark.parametrize("time_input", slow_unless(["t", "none"], "t"))
@pytest.mark.parametrize("kind", ["cont", "T1000"])
@pytest.mark.parametrize("name", SCHEDULES)
def test_loss_and_its_gradient(arrays, name, kind, time_input):
    """Bits a token. The reconstruction guesses uniformly; the prior is 0 by fiat (see below)."""
    process, x = process_of(SCHEDULES[name]), arrays["x"]
    tag = f"md4_{name}_{kind}_{time_input}"
    t, noisy = arrays[f"md4_{name}_{kind}_t_t"], arrays[f"{tag}_zt"]
    np.testing.assert_array_equal(noisy == MASK, noisy != x)

    def bits(embedding):
        values = reduced(process, network(arrays, embedding, noisy, t if time_input == "t" else None), x, noisy)
        if kind == "cont":
            loss = losses.nelbo_rate(process, values, x, noisy, t)
        else:
            loss = 1000 * losses.kl_step(process, values, x, noisy, t - np.float32(1e-3), t)
        return loss.mean() / BITS

    loss, gradient = jax.jit(jax.value_and_grad(bits))(arrays["net_E"])
    tolerance = 1e-5 if kind == "cont" else 1e-3  # the reference's 1000 (alpha_s - alpha_t) cancels in float32
    assert_close(loss, arrays[f"{tag}_loss_diff"], tolerance)
    assert_close(gradient, arrays[f"{tag}_grad_E"], tolerance)
    at_zero = jnp.zeros(len(x), x.dtype).astype(t.dtype)
    no_idea = reduced(process, jnp.zeros((*x.shape, SIZE), t.dtype), x, jnp.full_like(x, MASK))
    guess = losses.reconstruction(process, no_idea, x, jnp.full_like(x, MASK), at_zero)
    rest = (process.masses(at_zero).mask * guess).mean() / BITS
    np.testing.assert_allclose(rest, arrays[f"{tag}_loss_recon"], rtol=5e-4)  # its 1 - alpha(0) = 1e-4 is rounded
    assert_close(loss + rest, arrays[f"{tag}_loss"], tolerance)


@pytest.mark.parametrize("name", SCHEDULES)
def test_prior_term(arrays, name):
    """MD4 reports 0, which holds for alpha(1) = 0; with its own alpha(1) = 1e-4 no bound starts from pure masks."""
    x = arrays["x"]
    exact = type(SCHEDULES[name])(eps_noise=0.0)
    for kind in ("cont", "T1000"):
        for time_input in ("t", "none"):
            reported = arrays[f"md4_{name}_{kind}_{time_input}_loss_prior"]
            assert_close(losses.prior(process_of(exact), x), np.broadcast_to(reported, x.shape), 1e-7)
    assert np.isposinf(losses.prior(process_of(SCHEDULES[name]), x)).all()


def test_loss_at_given_times(arrays):
    """Nats a row, network with time input."""
    process, x, t = process_of(SCHEDULES["linear"]), arrays["x"], arrays["md4_given_t"]
    noisy = arrays["md4_given_t_zt"]
    values = reduced(process, network(arrays, arrays["net_E"], noisy, t), x, noisy)
    loss = losses.nelbo_rate(process, values, x, noisy, t)
    assert_close(loss.sum(-1), arrays["md4_given_t_loss_per_example"], 1e-5)


@pytest.mark.parametrize("grid", ["uniform", "cosine"])
@pytest.mark.parametrize("draw", ["ancestral", "topp"])
def test_steps(arrays, grid, draw):
    """The reference draws from [u p, 1 - u]: the posterior at a masked position; topp cuts p to its 0.6 nucleus."""
    process, tokens = process_of(SCHEDULES["linear"]), arrays["step_z"]
    law, steps = {"uniform": levels.Uniform(), "cosine": levels.Cosine()}[grid], int(arrays["step_T"])
    masked = np.asarray(tokens == MASK)
    dtype = arrays["net_E"].dtype
    for number, i in enumerate(np.asarray(arrays["step_i"])):
        edges = law.quantile(jnp.asarray([(steps - i) / steps, (steps - i - 1) / steps], dtype))
        t, s = (jnp.full(len(tokens), edge) for edge in edges)
        logits = network(arrays, arrays["net_E"], tokens, t)
        if draw == "topp":
            logits = truncation.top_p(logits, 0.6)
        exact = posterior.posterior(process, tokens, posterior.clean_probs(process, logits), s, t)
        expected = np.asarray(arrays[f"step_{draw}_{grid}_probs"][number])
        assert_close(exact, expected, 1e-5, where=masked[..., None])
    assert masked.any()


def test_nucleus(arrays):
    """`topp_masked` are the logits with the classes outside the 0.6 nucleus pushed down."""
    logits, cut = np.asarray(arrays["topp_logits"]), np.asarray(arrays["topp_masked"])
    ours = np.asarray(truncation.top_p(arrays["topp_logits"], 0.6))
    np.testing.assert_array_equal(ours > -np.inf, cut == logits)
    assert 0 < (cut == logits).sum() < cut.size
