"""Guidance against the arrays SMDM's code produced, and at its edges."""

import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mdlm_jax.core.guidance import guide, unconditional_tokens

GOLDEN = np.load(pathlib.Path(__file__).parents[1] / "golden" / "guidance.npz")


def network(tokens):
    """The tiny network behind the golden arrays: h = emb[x] + pos; logits = tanh(h + mean_l(h) U) W."""
    hidden = GOLDEN["net_emb"][tokens] + GOLDEN["net_pos"][: tokens.shape[-1]]
    return np.tanh(hidden + hidden.mean(-2, keepdims=True) @ GOLDEN["net_U"]) @ GOLDEN["net_W"]


@pytest.mark.parametrize("index", [0, 1])
@pytest.mark.parametrize(("inputs", "expected"), [("mc_noisy", "ucfg_logits"), ("chain_noisy", "chain_logits")])
def test_unsupervised_guidance_matches_smdm(index, inputs, expected):
    tokens, mask_id = GOLDEN[f"{inputs}_{index}"], int(GOLDEN["mask_id"])
    prompt = np.broadcast_to(np.arange(tokens.shape[-1]) < len(GOLDEN["prefix"]), tokens.shape)
    blind = np.asarray(unconditional_tokens(jnp.asarray(tokens, jnp.int32), prompt, mask_id))
    ours = guide(network(tokens), network(blind), float(GOLDEN["cfgs"][index]))
    np.testing.assert_allclose(np.asarray(ours), GOLDEN[f"{expected}_{index}"], rtol=1e-4, atol=1e-5)
    if GOLDEN["cfgs"][index] != 0:  # the test would notice guidance that does nothing
        assert np.abs(network(tokens) - GOLDEN[f"{expected}_{index}"]).max() > 0.01


def test_guided_law_is_the_ratio_of_powers():
    rng = np.random.default_rng(0)
    conditional, unconditional = rng.normal(size=(2, 4, 7))
    expected = np.exp(conditional * 2.5 - unconditional * 1.5)
    expected /= expected.sum(-1, keepdims=True)
    ours = jax.nn.softmax(guide(conditional, unconditional, 1.5))
    np.testing.assert_allclose(np.asarray(ours), expected, rtol=1e-5)
    shifted = jax.nn.softmax(guide(conditional + 7, unconditional - 3, 1.5))  # logits or log-probabilities alike
    np.testing.assert_allclose(np.asarray(shifted), expected, rtol=1e-5)


def test_scale_zero_and_minus_one():
    rng = np.random.default_rng(1)
    conditional, unconditional = rng.normal(size=(2, 5)).astype(np.float32)
    np.testing.assert_array_equal(np.asarray(guide(conditional, unconditional, 0.0)), conditional)
    np.testing.assert_allclose(np.asarray(guide(conditional, unconditional, -1.0)), unconditional, rtol=1e-6)


@pytest.mark.parametrize("jitted", [False, True])
def test_impossible_classes_never_give_nan(jitted):
    inf = np.float32(np.inf)
    conditional = np.array([-inf, -inf, 1.0, 2.0], np.float32)
    unconditional = np.array([-inf, 3.0, -inf, 1.0], np.float32)
    function = jax.jit(guide) if jitted else guide
    for scale, expected in [(0.0, conditional), (1.0, [-inf, -inf, inf, 3.0]), (-0.5, [-inf, -inf, -inf, 1.5])]:
        np.testing.assert_array_equal(np.asarray(function(conditional, unconditional, scale)), expected)


def test_scale_may_be_traced_and_per_row():
    rng = np.random.default_rng(2)
    conditional, unconditional = rng.normal(size=(2, 3, 4, 5)).astype(np.float32)
    scale = np.array([0.0, 0.5, 2.0], np.float32)[:, None, None]
    ours = jax.jit(guide)(conditional, unconditional, scale)
    expected = unconditional + (1 + scale) * (conditional - unconditional)
    np.testing.assert_allclose(np.asarray(ours), expected, rtol=1e-5, atol=1e-6)


def test_low_precision_is_widened_before_the_difference():
    conditional = jnp.asarray([20.0, 20.125], jnp.bfloat16)
    unconditional = jnp.asarray([19.875, 20.0], jnp.bfloat16)
    guided = guide(conditional, unconditional, 0.3)
    assert guided.dtype == jnp.float32
    np.testing.assert_allclose(np.asarray(guided), [20.0 + 0.3 * 0.125, 20.125 + 0.3 * 0.125], rtol=1e-6)


def test_unconditional_tokens_touch_only_the_prompt():
    tokens = jnp.asarray([[1, 2, 9, 4], [5, 9, 7, 8]], jnp.int32)
    prompt = np.array([[True, True, False, False], [True, False, False, False]])
    blind = unconditional_tokens(tokens, prompt, 9)
    assert blind.dtype == jnp.int32
    np.testing.assert_array_equal(np.asarray(blind), [[9, 9, 9, 4], [9, 9, 7, 8]])
