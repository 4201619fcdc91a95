"""MDLM (arXiv 2406.07524) and SMDM (2410.18514) against arrays of the reference code: the masked process."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mdlm_jax.core import levels, losses, posterior
from mdlm_jax.core.process import Process
from mdlm_jax.core.schedules import Linear
from tests.core.support import Reference, assert_close, golden, one_hot, reduced

CASES, ROWS, SIZE, MASK = 5, 3, 12, 11


@pytest.fixture(params=["float64", "float32"])
def reference(request):
    with jax.enable_x64(request.param == "float64"):
        yield Reference("diffusion_mdlm", request.param)


def tile(array):
    """Every (case, row) of the reference as a row of one batch."""
    return np.tile(array, (CASES,) + (1,) * (array.ndim - 1))


def cases(array):
    array = np.asarray(array)
    return array.reshape(CASES, ROWS, *array.shape[1:])


def masked_process(schedule=None):
    return Process(SIZE, MASK, 0.0, schedule or Linear(1e-3))


def test_noise_level(reference):
    assert (reference.arrays["vocab_size"], reference.arrays["mask_id"]) == (SIZE, MASK)
    assert float(reference.arrays["eps"]) == 1e-3
    schedule, t = Linear(1e-3), reference["t"]
    reference.compare("alpha_t", schedule.alpha(t))
    reference.compare("sigma", -jnp.log(schedule.alpha(t)))
    reference.compare("dsigma", schedule.rate(t) / schedule.alpha(t))


def test_subs_parametrisation(reference):
    """SUBS = never the mask, and a visible token is itself: Bayes' rule at mixing 0."""
    process = masked_process()
    probs = posterior.clean_probs(process, jnp.asarray(reference["logits"]))
    clean = posterior.denoised(process, reference["xt"], probs, jnp.full(ROWS, 0.5, reference.dtype))
    for key in ("subs_logprobs", "subs_logprobs_f32"):
        assert_close(clean, np.exp(reference.arrays[key]), reference.tolerance if "f32" not in key else 1e-6)


def test_losses(reference):
    process, t = masked_process(), reference["t"].reshape(-1)
    x0, xt, logits = (tile(reference[key]) for key in ("x0", "xt", "logits"))
    values = reduced(process, jnp.asarray(logits), x0, xt)
    loss = cases(losses.nelbo_rate(process, values, x0, xt, t))
    reference.compare("loss_ct", loss)
    reference.compare("loss_ct_xdlmrepo", loss)
    steps = int(reference.arrays["T_discrete"])
    late = (np.floor(reference["t"].reshape(-1) * steps) + 1) / steps
    # The reference clamps t to 1 - 1e-4, and is 0/0 at t = 1/T, where ours is finite.
    late = np.minimum(late, 1 - 1e-4).astype(reference.dtype)
    early = np.maximum(late - np.asarray(1 / steps, late.dtype), 0)
    discrete = cases(steps * losses.kl_step(process, values, x0, xt, early, late))
    assert np.isfinite(discrete).all()
    finite = np.isfinite(reference.arrays["loss_d3pm_subs"])
    assert (~finite).sum() == 7
    reference.compare("loss_d3pm_subs", discrete, where=finite)


def test_posteriors(reference):
    x0, xt, logits = (tile(reference[key]) for key in ("x0", "xt", "logits"))
    t, s = reference["t"].reshape(-1), reference["s"].reshape(-1)
    masked = cases(xt == MASK)[..., None]
    for key, process in (
        ("posterior_masked", masked_process()),
        ("raw_q_ddpm", masked_process()),
        ("raw_q_ddpm_cache", masked_process(Linear(eps_noise=0.0))),
    ):
        probs = posterior.clean_probs(process, jnp.asarray(logits))
        exact = posterior.posterior(process, xt, probs, s, t)
        possible = (xt != MASK) & (np.asarray(process.masses(t).keep) > 0)  # without eps nothing is visible at t = 1
        assert_close(np.asarray(exact)[possible], one_hot(xt[possible], SIZE, reference.dtype), 1e-6)
        weight = process.masses(t).mask[..., None] if key.startswith("raw") else 1.0  # raw: times 1 - alpha
        reference.compare(key, cases(exact * weight), where=masked)


# The second set: transitions of four samplers, stratified times, discrete time ----------------------------------------


@pytest.fixture(params=["float64", "float32"])
def second(request):
    with jax.enable_x64(request.param == "float64"):
        reference = Reference("mdm_mdlm", request.param)
        reference.tolerance = 1e-5  # the reference ran in float32
        yield reference


def test_transitions(second):
    """ddpm, its cached form and SEDD's analytic step are the posterior; the "denoiser" step removes all noise."""
    arrays, size, mask = second.arrays, 9, int(second.arrays["mask_index"])
    process = Process(size, mask, 0.0, Linear(1e-3))
    probs, xt = posterior.clean_probs(process, jnp.asarray(second["logits"])), second["xt"]
    assert_close(arrays["t_grid"], np.linspace(1, 1e-5, 5), 1e-6)
    np.testing.assert_allclose(arrays["dt"], (1 - 1e-5) / 4, rtol=1e-6)
    hidden = (xt == mask)[..., None]
    for i, time in enumerate(second["t_grid"][:-1]):
        t = jnp.full(3, time, second.dtype)
        s = t - jnp.asarray(arrays["dt"], second.dtype)
        steps = dict.fromkeys(("ddpm", "ddpm_caching", "analytic"), posterior.posterior(process, xt, probs, s, t))
        steps["denoiser"] = posterior.denoised(process, xt, probs, t)
        for name, exact in steps.items():
            second.compare(f"q_xs_{name}_update", exact, select=i)
            raw = arrays[f"raw_{name}_update"][i]
            assert_close(exact, raw / raw.sum(-1, keepdims=True), 2e-5, where=hidden)
            np.testing.assert_array_equal(np.argmax(exact, -1), arrays[f"argmax_next_{name}_update"][i])
    clean = posterior.denoised(process, xt, probs, jnp.full(3, 0.5, second.dtype))
    assert_close(clean, np.exp(arrays["log_p_x0"]), 1e-5)


def test_stratified_times_and_the_bound(second):
    arrays, x0 = second.arrays, second["x0"]
    process = Process(9, int(arrays["mask_index"]), 0.0, Linear(1e-3))
    level = (np.arange(3) + second["sample_t_u"]) / 3
    t, weight = levels.times(levels.Uniform(), jnp.asarray(level), 1e-3)
    second.compare("nelbo_t", t)
    np.testing.assert_allclose(weight, 1 - 1e-3, rtol=1e-6)
    second.compare("nelbo_move_chance", process.masses(t).mask)
    values = reduced(process, jnp.asarray(second["logits"]), x0, second["nelbo_xt"])
    loss = losses.nelbo_rate(process, values, x0, second["nelbo_xt"], t)
    second.compare("nelbo_per_token", loss)
    second.compare("nelbo_mean", loss.mean())


def test_ten_step_bound(second):
    """NaN in the reference where t = 1/T (0/0); ours there is the reconstruction, T KL with s = 0."""
    arrays, x0, xt = second.arrays, second["x0"], second["nelboT10_xt"]
    process = Process(9, int(arrays["mask_index"]), 0.0, Linear(1e-3))
    late = ((np.floor(second["nelbo_t"] * 10) + 1) / 10).astype(second.dtype)
    second.compare("nelboT10_move_chance", process.masses(jnp.asarray(late)).mask)
    values = reduced(process, jnp.asarray(second["logits"]), x0, xt)
    clamped = jnp.asarray(np.minimum(late, 1 - 1e-4), second.dtype)
    early = jnp.maximum(clamped - 0.1, 0.0).astype(second.dtype)
    loss = np.asarray(10 * losses.kl_step(process, values, x0, xt, early, clamped))
    assert np.isfinite(loss).all()
    finite = np.isfinite(arrays["nelboT10_per_token"])
    assert_close(loss, arrays["nelboT10_per_token"], 1e-3, where=finite)


# SMDM: the mask is a row after the head's last column -----------------------------------------------------------------


def smdm_logits(arrays, tokens):
    hidden = arrays["net_emb"][tokens] + arrays["net_pos"][: tokens.shape[1]]
    return jnp.tanh(hidden + hidden.mean(1, keepdims=True) @ arrays["net_U"]) @ arrays["net_W"]


def test_smdm_training_loss():
    """p = (1 - eps) t + eps, so eps_data = eps; SMDM weighs by 1/p where the bound has (1 - eps)/p."""
    arrays = golden("mdm_smdm")
    mask, x, t = int(arrays["mask_id"]), arrays["train_x"].astype(np.int32), jnp.asarray(arrays["train_t"])
    process = Process(mask + 1, mask, 0.0, Linear(eps_noise=0.0, eps_data=1e-3), head_size=mask)
    share = np.broadcast_to(process.masses(t).mask, x.shape)
    assert_close(share, arrays["train_p_mask"], 1e-6)
    np.testing.assert_array_equal(arrays["train_u"] < share, arrays["train_mask"])
    noisy = np.where(arrays["train_mask"], mask, x).astype(np.int32)
    np.testing.assert_array_equal(noisy, arrays["train_noisy"])
    logits = smdm_logits(arrays, noisy)
    assert_close(logits, arrays["train_logits"], 1e-5)
    loss = losses.nelbo_rate(process, reduced(process, logits, x, noisy), x, noisy, t) / (1 - 1e-3)
    assert_close(loss.mean(), arrays["train_loss"], 1e-5)


def test_smdm_fine_tuning_loss():
    arrays = golden("mdm_smdm")
    mask, x, noisy = int(arrays["mask_id"]), arrays["sft_x"].astype(np.int32), arrays["sft_noisy"].astype(np.int32)
    process = Process(mask + 1, mask, 0.0, Linear(eps_noise=0.0, eps_data=1e-3), head_size=mask)
    answer = np.arange(x.shape[1]) >= arrays["sft_prompt_len"][:, None]
    np.testing.assert_array_equal(noisy[~answer], x[~answer])
    t = process.schedule.inverse_complement(jnp.asarray(arrays["sft_p_mask"]))  # one time a position
    values = reduced(process, smdm_logits(arrays, noisy), x, noisy)
    loss = losses.nelbo_rate(process, values, x, noisy, t) / (1 - 1e-3)
    assert_close(loss.sum() / answer.sum(), arrays["sft_loss"], 1e-5)
