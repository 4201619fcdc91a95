"""GIDD (arXiv 2503.04482) against arrays of the reference code: the process whose uniform share changes with time."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mdlm_jax.core import gidd, losses, posterior
from mdlm_jax.core.gidd import FLOOR, GiddProcess
from mdlm_jax.core.process import Process
from mdlm_jax.core.schedules import Linear
from tests.core.support import Reference, assert_close, one_hot, reduced

CASES, ROWS, SIZE, MASK = 5, 3, 12, 11
UNIFORM = [0.0, 0.1, 0.2, 0.5]


@pytest.fixture(params=["float64", "float32"])
def reference(request):
    with jax.enable_x64(request.param == "float64"):
        reference = Reference("diffusion_gidd", request.param)
        if request.param == "float32":
            reference.tolerance = 5e-4  # the float32 nearest 0.9999 has a complement 2.4e-4 off
        yield reference


@pytest.fixture(params=range(4), ids=lambda i: f"uniform{UNIFORM[i]}")
def case(request, reference):
    return Case(reference, request.param)


class Case:
    """One uniform share; the reference's cases of (t, s) laid out as the rows of one batch."""

    def __init__(self, reference, index):
        self.reference, self.index = reference, index
        self.process = GiddProcess(
            SIZE, MASK, p_uniform=float(reference.arrays["p_uniform"][index]), gamma=float(reference.arrays["gamma"])
        )
        self.t, self.s = jnp.asarray(reference["t"].reshape(-1)), jnp.asarray(reference["s"].reshape(-1))
        self.x0, self.zt = (np.tile(reference[key], (CASES, 1)) for key in ("x0", "zt"))
        self.logits = jnp.asarray(np.tile(reference["logits"], (CASES, 1, 1)))

    def compare(self, key, actual, **how):
        actual = np.asarray(actual)
        self.reference.compare(key, actual.reshape(CASES, ROWS, *actual.shape[1:]), select=self.index, **how)

    def reduced(self):
        offset = losses.softplus_offset(self.process, self.t, self.x0.shape)
        return reduced(self.process, self.logits, self.x0, self.zt, offset)


def test_masses(case):
    process, t, arrays = case.process, case.t, case.reference.arrays
    assert (arrays["vocab_size"], arrays["mask_id"]) == (SIZE, MASK)
    assert np.isclose(np.log(FLOOR), -arrays["clip_noise"])
    masses = process.masses(t)
    case.compare("alpha_t", masses.keep[:, 0])
    case.compare("beta_pi_t", posterior.noise_vector(process, masses)[:, 0])
    clean = one_hot(case.x0, SIZE, case.reference.dtype)
    case.compare("q_zt_given_x0", posterior.marginal(process, clean, t))
    case.compare("alpha_ratio", -process.schedule.rate(t) / process.schedule.alpha(t))
    case.reference.compare("log_B", np.log(process.schedule.peak), select=case.index)


def test_elbo_and_its_factors(case):
    """elbo = elbo_weights (kl + is): the weight is our h(z) / (a f(x, z)), all three also compared one by one."""
    process, t, dtype = case.process, case.t, case.reference.dtype
    case.compare("elbo", losses.nelbo_rate(process, case.reduced(), case.x0, case.zt, t))
    masses = process.masses(t)
    truth = posterior.marginal(process, one_hot(case.x0, SIZE, dtype), t)
    model = posterior.marginal(process, posterior.clean_probs(process, case.logits), t)
    here = one_hot(case.zt, SIZE, dtype).astype(bool)
    weight = process.noise_mass(process.inflow(t), case.zt) / (masses.keep * truth[here].reshape(case.zt.shape))
    case.compare("elbo_weights", weight)
    case.compare("kl", (truth * jnp.log(truth / model)).sum(-1))
    ratio = (truth / model)[here].reshape(case.zt.shape)
    case.compare("is", ratio - jnp.log(ratio) - 1.0)


def test_clipped_weight(case):
    process, t, arrays = case.process, case.t, case.reference.arrays
    most = float(arrays["max_loss_weight"])
    assert (arrays["min_loss_weight"], most) == (0.0, 2.0)
    case.compare("w_clip", jnp.minimum(losses.elbo_weight(process, case.x0, case.zt, t), most))
    case.compare("loss_clip", gidd.clipped_loss(process, case.reduced(), case.x0, case.zt, t, most))


def test_dynamic_weight_is_the_reference_s_but_at_clean_tokens(case):
    """There the reference has exp(gamma / 2 sigmoid(-t)) in place of exp(-gamma / 2 logit(1 - t))."""
    process, t, arrays = case.process, case.t, case.reference.arrays
    theirs = arrays["w_dynamic"][case.index].reshape(case.zt.shape)
    ours, loss = (np.asarray(f(process, *more, case.x0, case.zt, t)) for f, more in (
        (gidd.dynamic_weight, ()), (gidd.dynamic_loss, (case.reduced(),))))
    clean, time = case.zt == case.x0, np.asarray(t, np.float64)[:, None]
    tolerance = {"rtol": case.reference.tolerance}
    np.testing.assert_allclose(ours[~clean], theirs[~clean], **tolerance)
    their_loss = arrays["loss_dynamic"][case.index].reshape(case.zt.shape)
    np.testing.assert_allclose(loss[~clean], their_loss[~clean], **tolerance)
    scale = np.exp(arrays["log_B"][case.index]) / SIZE
    named = np.minimum(scale * np.exp(1.0 / (1.0 + np.exp(time)) / 2), 2.0)
    np.testing.assert_allclose(theirs[clean], np.broadcast_to(named, clean.shape)[clean], rtol=1e-6)
    right = np.minimum(scale * np.exp(-np.log((1 - time) / time) / 2), 2.0)
    np.testing.assert_allclose(ours[clean], np.broadcast_to(right, clean.shape)[clean], **tolerance)
    kept = their_loss[clean] * ours[clean] / theirs[clean]
    np.testing.assert_allclose(loss[clean], kept, rtol=10 * case.reference.tolerance, atol=1e-8)


def test_dynamic_weight_is_that_of_the_bound_without_its_rise_at_both_ends():
    """2 t (1 - t) times the bound's own, for a large vocabulary and little noise, which is why lambda stands there."""
    process = gidd.GiddProcess(5000, 0, p_uniform=1e-3)
    with jax.enable_x64(True):
        t = jnp.asarray([1e-4, 0.03, 0.5, 0.99])
        tokens, noisy = np.full((4, 3), 7), np.tile([0, 9, 7], (4, 1))
        ratio = 2 * (t * (1 - t))[:, None] * losses.elbo_weight(process, tokens, noisy, t)
        np.testing.assert_allclose(gidd.dynamic_weight(process, tokens, noisy, t) / ratio, 1.0, rtol=3e-3)


def test_posterior(case):
    probs = posterior.clean_probs(case.process, case.logits)
    case.compare("posterior_theta", posterior.posterior(case.process, case.zt, probs, case.s, case.t))


def test_masked_baseline(reference):
    """The MDLM loss of GIDD's repository: log-linear with eps 1e-4."""
    process = Process(SIZE, MASK, 0.0, Linear(1e-4))
    t = jnp.asarray(reference["t"])
    reference.compare("mdlm_sigma", -jnp.log(process.schedule.alpha(t)))
    reference.compare("mdlm_dsigma", process.schedule.rate(t) / process.schedule.alpha(t))
    x0, zt = (np.tile(reference[key], (CASES, 1)) for key in ("x0", "mdlm_zt"))
    logits = jnp.asarray(np.tile(reference["logits"], (CASES, 1, 1)))
    loss = losses.nelbo_rate(process, reduced(process, logits, x0, zt), x0, zt, t.reshape(-1))
    reference.compare("mdlm_elbo", np.asarray(loss).reshape(CASES, ROWS, -1))


# What the overridden scalars must satisfy, for other gammas too -------------------------------------------------------


@pytest.mark.parametrize("gamma", [0.5, 1.0, 2.0])
@pytest.mark.parametrize("p_uniform", [0.0, 0.2, 0.9])
def test_scalars(p_uniform, gamma):
    process = GiddProcess(5, 2, p_uniform=p_uniform, gamma=gamma)
    with jax.enable_x64(True):
        s, t = jnp.asarray([1e-4, 0.2, 0.5, 0.3]), jnp.asarray([2e-4, 0.9, 1 - 1e-4, 0.30001])
        before, now, step = process.masses(s), process.masses(t), process.transition(s, t)
        assert_close(now.keep + now.uniform + now.mask, np.ones((4, 1)), 1e-14)
        assert_close(step.keep + step.uniform + step.mask, np.ones((4, 1)), 1e-13)
        np.testing.assert_allclose(step.keep * before.keep, now.keep, rtol=1e-12)
        np.testing.assert_allclose(step.keep * before.uniform + step.uniform, now.uniform, rtol=1e-11)
        np.testing.assert_allclose(step.keep * before.mask + step.mask, now.mask, rtol=1e-11)
        inflow, (u_rate, m_rate, a_rate) = process.inflow(t), (
            jax.vmap(jax.grad(lambda x, name=name: getattr(process.masses(x[None]), name)[0, 0]))(t)[:, None]
            for name in ("uniform", "mask", "keep")
        )
        np.testing.assert_allclose(inflow.uniform, now.keep * u_rate - a_rate * now.uniform, rtol=1e-8)
        np.testing.assert_allclose(inflow.mask, now.keep * m_rate - a_rate * now.mask, rtol=1e-8)
        np.testing.assert_allclose(process.schedule.rate(t), -a_rate[:, 0], rtol=1e-8)
        np.testing.assert_allclose(process.schedule.complement(t), (now.uniform + now.mask)[:, 0], rtol=1e-13)
        half = process.masses(jnp.asarray([0.5])).uniform
        np.testing.assert_allclose(half, max(p_uniform, np.exp(-20.0)), rtol=1e-6)


def test_small_steps_in_float32():
    """Steps of 1e-4 keep 1e-3 relative accuracy in what they add, which a difference of masses would lose."""
    process = GiddProcess(5, 2, p_uniform=0.2)
    t = np.asarray([2e-3, 0.1, 0.5, 0.999], np.float32)
    s = (t - np.float32(1e-4)).astype(np.float32)
    narrow = process.transition(jnp.asarray(s), jnp.asarray(t))
    with jax.enable_x64(True):
        wide = process.transition(jnp.asarray(s.astype(np.float64)), jnp.asarray(t.astype(np.float64)))
    for ours, truth in zip(narrow, wide, strict=True):
        assert ours.dtype == np.float32
        np.testing.assert_allclose(ours, truth, rtol=1e-3)


@pytest.mark.parametrize("gamma", [0.5, 1.0, 2.0])
def test_the_ends_of_time(gamma):
    """At t = 1 there are masks alone, at s = 0 nothing but the token, and what lies between is finite."""
    process = GiddProcess(5, 2, p_uniform=0.3, gamma=gamma)
    zero, one, half = (jnp.asarray([x]) for x in (0.0, 1.0, 0.5))
    assert [float(m[0, 0]) for m in process.masses(one)] == [0, 0, 1]
    assert [float(m[0, 0]) for m in process.masses(zero)] == [1, 0, 0]
    for s in (zero, half):
        assert [float(m[0, 0]) for m in process.transition(s, one)] == [0, 0, 1]
    for ours, whole in zip(process.transition(zero, half), process.masses(half), strict=True):
        np.testing.assert_allclose(ours, whole, rtol=1e-6)
    assert [float(m[0, 0]) for m in process.transition(one, one)][1:] == [0, 0]
    np.testing.assert_array_equal(losses.prior(process, np.array([[0, 1, 3]])), 0.0)


def test_prior_is_all_masks():
    process = GiddProcess(5, 2, p_uniform=0.2)
    assert (np.asarray(process.prior(jax.random.split(jax.random.key(0), 3), 50)) == 2).all()


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"mask_id": 2, "p_uniform": 1.0}, "p_uniform=1.0"),
        ({"mask_id": 2, "p_uniform": -0.1}, "p_uniform=-0.1"),
        ({"mask_id": 2, "gamma": 2.5}, "gamma=2.5"),
        ({"mask_id": None}, "without a mask"),
    ],
)
def test_impossible_processes_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        GiddProcess(5, **arguments)


@pytest.mark.parametrize("gamma", [0.5, 1.0, 2.0])
@pytest.mark.parametrize("p_uniform", [0.0, 0.3])
def test_inverses(p_uniform, gamma):
    process = GiddProcess(5, 2, p_uniform=p_uniform, gamma=gamma)
    t = jnp.asarray([0.0, 1e-4, 0.01, 0.3, 0.5, 0.9, 0.999, 1.0], jnp.float32)
    found = process.schedule.inverse_complement(process.schedule.complement(t))
    np.testing.assert_allclose(found, t, rtol=1e-5, atol=1e-11)
    np.testing.assert_allclose(process.schedule.inverse(process.schedule.alpha(t)), t, atol=1e-6)
    np.testing.assert_allclose(process.masked_time(process.masses(t).mask[:, 0]), t, rtol=1e-5, atol=1e-11)
