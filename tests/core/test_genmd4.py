"""GenMD4's learned schedule and RLOO gradient against numbers of the reference code and against enumeration."""

import itertools
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from mdlm_jax.core import genmd4
from mdlm_jax.core.keys import row_keys
from mdlm_jax.core.prediction import Prediction
from mdlm_jax.core.reduction import reduce

FOLDER = Path(__file__).parents[1] / "golden"
GOLDEN = np.load(FOLDER / "mdm_md4.npz")
TOY = np.load(FOLDER / "genmd4_unbiased.npz")
SCHEDULE = genmd4.VectorSchedule()


def network(parameters, noisy, t):
    """The toy of the golden files: E[z] + P[:L] + tanh(mean_l E[z]) + t W."""
    embedding, places, slope = parameters
    embedded = embedding[noisy]
    logits = embedded + places[: noisy.shape[1]] + jnp.tanh(embedded.mean(1, keepdims=True))
    return Prediction.from_logits(logits + t[:, None, None] * slope)


def losses(raw, parameters, tokens, noisy, t):
    """(nats of each row, log q of each row); the mask id is the number of columns."""
    powers = SCHEDULE.powers(raw)
    mask = raw.shape[0]
    masked = noisy == mask
    reduced = reduce(network(parameters, noisy, t), suppress=mask, target=tokens, values=powers)
    rate = SCHEDULE.nelbo_rate(powers, reduced, tokens, masked, t)
    return rate.sum(-1), SCHEDULE.log_prob(powers, tokens, masked, t)


def surrogate(raw, parameters, tokens, noisy_pair, t, rloo=True):
    """[B]: what is differentiated, and what is reported."""
    (first, log_q_first), (second, log_q_second) = (losses(raw, parameters, tokens, z, t) for z in noisy_pair)
    diffusion = 0.5 * (first + second)
    extra = genmd4.rloo_surrogate(first, second, log_q_first, log_q_second)
    return diffusion + extra if rloo else diffusion, (diffusion, extra)


def golden(*names):
    return tuple(jnp.asarray(GOLDEN[name]) for name in names)


# Golden numbers -------------------------------------------------------------------------------------------------------


def test_schedule_of_the_reference():
    raw, t = golden("gen_w_raw", "gen_t")
    powers = SCHEDULE.powers(raw)
    np.testing.assert_allclose(np.asarray(powers), GOLDEN["gen_w"], rtol=1e-6)
    summary = [powers.max(), powers.min(), powers.mean()]
    np.testing.assert_allclose(summary, [GOLDEN[f"gen_power_{name}"] for name in ("max", "min", "avg")], rtol=1e-6)
    ids = jnp.broadcast_to(jnp.arange(6), (3, 6))
    share, rate = jax.jvp(lambda t: SCHEDULE.masked_share(powers, ids, t), (t,), (jnp.ones_like(t),))
    np.testing.assert_allclose(1 - np.asarray(share), GOLDEN["gen_alpha"], rtol=1e-4)
    np.testing.assert_allclose(-np.asarray(rate), GOLDEN["gen_dalpha"], rtol=1e-4)
    np.testing.assert_allclose(-np.asarray(rate / share), GOLDEN["gen_weight"], rtol=1e-4)


def test_losses_of_the_reference():
    raw, tokens, t = golden("gen_w_raw", "x", "gen_t")
    parameters = golden("net_E", "net_P", "net_W")
    noisy = golden("gen_zt1", "gen_zt2")
    for number, z in enumerate(noisy, 1):
        diffusion, _ = losses(raw, parameters, tokens, z, t)
        np.testing.assert_allclose(np.asarray(diffusion), GOLDEN[f"gen_loss_diff_{number}"], rtol=1e-4)
    _, (diffusion, extra) = surrogate(raw, parameters, tokens, noisy, t)
    np.testing.assert_allclose(np.asarray(extra), GOLDEN["gen_rloo"], rtol=1e-4)
    reconstruction = SCHEDULE.reconstruction(SCHEDULE.powers(raw), tokens).sum(-1)
    np.testing.assert_allclose(np.asarray(reconstruction), GOLDEN["gen_recon_per_example"], rtol=1e-4)
    bits = tokens.shape[1] * np.log(2)
    terms = {"loss_diff": diffusion, "loss_recon": reconstruction, "loss_nelbo": diffusion + reconstruction,
             "loss": diffusion + reconstruction + extra}
    for name, values in terms.items():
        np.testing.assert_allclose(float(values.mean()) / bits, GOLDEN[f"gen_{name}"], rtol=1e-4)
    assert GOLDEN["gen_loss_prior"] == 0.0  # nothing of ours stands for it


def test_gradients_of_the_reference():
    raw, tokens, t = golden("gen_w_raw", "x", "gen_t")
    embedding, *rest = golden("net_E", "net_P", "net_W")
    noisy = golden("gen_zt1", "gen_zt2")

    @jax.jit
    def loss(raw, embedding):
        differentiated, _ = surrogate(raw, (embedding, *rest), tokens, noisy, t)
        reconstruction = SCHEDULE.reconstruction(SCHEDULE.powers(raw), tokens).sum(-1)
        return (differentiated + reconstruction).mean() / (tokens.shape[1] * jnp.log(2.0))

    grad_raw, grad_embedding = jax.grad(loss, argnums=(0, 1))(raw, embedding)
    np.testing.assert_allclose(np.asarray(grad_raw), GOLDEN["gen_grad_w_raw"], rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(np.asarray(grad_embedding), GOLDEN["gen_grad_E"], rtol=1e-4, atol=1e-5)


# Enumeration ----------------------------------------------------------------------------------------------------------


def all_masks():
    """The toy's three tokens under each of the eight masks: tokens [8, 3], noisy [8, 3], t [8]."""
    masks = np.array(list(itertools.product([False, True], repeat=3)))
    tokens = np.broadcast_to(TOY["ub_x"], (8, 3))
    return jnp.asarray(tokens), jnp.asarray(np.where(masks, 4, tokens)), jnp.full((8,), TOY["ub_t"][0])


def test_log_prob_is_that_of_the_masks():
    tokens, noisy, t = all_masks()
    powers = SCHEDULE.powers(jnp.asarray(TOY["ub_w_raw"]))
    probability = np.exp(np.asarray(SCHEDULE.log_prob(powers, tokens, noisy == 4, t), np.float64))
    share = np.asarray(SCHEDULE.masked_share(powers, tokens[:1], t[:1]), np.float64)[0]
    np.testing.assert_allclose(probability, np.prod(np.where(np.asarray(noisy) == 4, share, 1 - share), 1), rtol=1e-5)
    assert probability.sum() == pytest.approx(1.0, abs=1e-5)
    half = jnp.asarray(np.array([[True, False, True]]).repeat(8, 0))  # only positions that noise may touch count
    partial = np.asarray(SCHEDULE.log_prob(powers, tokens, noisy == 4, t, half))
    kept = np.asarray(noisy[:, [0, 2]]) == 4
    expected = np.prod(np.where(kept, share[[0, 2]], 1 - share[[0, 2]]), 1)
    np.testing.assert_allclose(np.exp(partial), expected, rtol=1e-5)


def test_the_rloo_gradient_is_unbiased_and_naive_autodiff_is_not():
    """Mean over all 64 pairs of masks = gradient of the enumerated expectation, and both are the reference's."""
    tokens, noisy, t = all_masks()
    parameters = tuple(jnp.asarray(TOY[f"ub_{name}"]) for name in "EPW")
    raw = jnp.asarray(TOY["ub_w_raw"])

    def expectation(raw):
        loss, log_q = losses(raw, parameters, tokens, noisy, t)
        return (jnp.exp(log_q) * loss).sum()

    def mean_gradient(rloo):
        pairs = list(itertools.product(range(8), repeat=2))
        first, second = (jnp.asarray(index) for index in zip(*pairs, strict=True))
        _, log_q = losses(raw, parameters, tokens, noisy, t)
        weight = jnp.exp(log_q[first] + log_q[second])
        given = (parameters, tokens[first], (noisy[first], noisy[second]), t[first], rloo)
        return jax.grad(lambda raw: (weight * surrogate(raw, *given)[0]).sum())(raw)

    exact = np.asarray(jax.jit(jax.grad(expectation))(raw))
    with_rloo = np.asarray(jax.jit(lambda: mean_gradient(True))())
    without = np.asarray(jax.jit(lambda: mean_gradient(False))())
    np.testing.assert_allclose(with_rloo, exact, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(with_rloo, TOY["ub_exact_grad"], rtol=1e-4)
    np.testing.assert_allclose(with_rloo, TOY["ub_rloo_mean_grad"], rtol=1e-4)
    np.testing.assert_allclose(without, TOY["ub_pathwise_grad"], rtol=1e-4)
    assert abs(without - exact).max() > 1.0


def test_draws_follow_each_token_s_own_schedule_and_the_noise_mask():
    powers = jnp.asarray([0.2, 1.0, 5.0])
    tokens = jnp.broadcast_to(jnp.asarray([0, 1, 2, 1]), (4000, 4))
    allowed = jnp.broadcast_to(jnp.asarray([True, True, True, False]), tokens.shape)
    t = jnp.full((4000,), 0.6)
    keys = row_keys(jax.random.key(0), jnp.arange(4000))
    noisy = np.asarray(jax.jit(SCHEDULE.corrupt, static_argnums=4)(keys, powers, tokens, t, 3, allowed))
    share = 0.9999 * 0.6 ** np.array([0.2, 1.0, 5.0])
    for place in range(3):
        assert stats.binomtest(int((noisy[:, place] == 3).sum()), 4000, share[place]).pvalue > 1e-4
    np.testing.assert_array_equal(np.where(noisy == 3, np.asarray(tokens), noisy), np.asarray(tokens))
    np.testing.assert_array_equal(noisy[:, 3], 1)


@pytest.mark.parametrize("power", [0.5, 1.0, 3.0])
def test_init_gives_the_power(power):
    np.testing.assert_allclose(np.asarray(SCHEDULE.powers(SCHEDULE.init(5, power))), np.full(5, power), rtol=1e-6)
