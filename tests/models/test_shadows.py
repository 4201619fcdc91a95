"""Shadows: tokens scored a second time, as if they were not there, by places that no token sees."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mdlm_jax.models import api, cache
from mdlm_jax.models.attention import cudnn
from mdlm_jax.models.attention.dispatch import attend
from mdlm_jax.models.attention.visibility import Places, Visibility
from mdlm_jax.models.config import TransformerConfig
from tests.marks import slow_unless
from tests.models.attention.contracts import problem

V, L, MASK = 11, 8, 10
NETWORK = TransformerConfig(V, V, layers=1, d_model=16, heads=2, kv_heads=1, d_ff=32)
TOKENS = jnp.asarray(np.random.default_rng(0).integers(0, MASK, (3, L)), jnp.int32)
SEGMENT = jnp.asarray(np.arange(L) < np.array([[8], [6], [7]]), jnp.int32)


@functools.cache
def params_of(network):
    return jax.tree.map(lambda x: 4.0 * x, api.init(network, jax.random.key(1)))


def logits(network, tokens, **inputs):
    return np.asarray(api.apply(network, params_of(network), tokens, **inputs).logits())


def shadowed(tokens, shadow):
    return jnp.concatenate([tokens, jnp.full(shadow.shape, MASK)], axis=1)


@pytest.mark.parametrize("contract", ["bidirectional", "causal", "block_causal", "permutation"])
def test_who_sees_whom(contract):
    order = np.concatenate([np.arange(L), [2, 3, 0, 7]])[None].repeat(2, 0)
    whose = np.array([[-1] * L + [2, 3, -1, 7]] * 2)
    segment = np.array([[1] * L + [1, 1, 0, 1], [1] * 7 + [0] + [1, 1, 0, 0]])
    places = Places(*map(jnp.asarray, (segment, order, whose)))
    seen = np.asarray(Visibility(places, places, contract, 3).mask(2, L + 4, L + 4))[:, 0]
    for row, query, key in np.ndindex(seen.shape):
        i, j = order[row, query], order[row, key]
        allowed = {"bidirectional": True, "block_causal": j // 3 <= i // 3}.get(contract, j <= i)
        real = segment[row, query] == segment[row, key] == 1
        if query < L:
            expected = allowed and real and key < L
        else:
            expected = allowed and real and key != whose[row, query]
            if contract == "permutation":  # they are in no order themselves
                expected = expected and (key < L or key == query)
        assert seen[row, query, key] == expected, (row, query, key)
    assert not Visibility(places, places, contract, 3).everything


@pytest.mark.parametrize("place", slow_unless(range(L), 0, 5))
def test_one_shadow_is_the_forward_without_its_token(place):
    """In one layer, where what the token told others cannot come back."""
    shadow = jnp.full((3, 1), place)
    found = logits(NETWORK, shadowed(TOKENS, shadow), attention_mask=SEGMENT, shadow=shadow)[:, L]
    masked = logits(NETWORK, TOKENS.at[:, place].set(MASK), attention_mask=SEGMENT)[:, place]
    there = np.asarray(SEGMENT)[:, place] > 0
    np.testing.assert_allclose(found[there], masked[there], atol=2e-5)
    seen = logits(NETWORK, TOKENS, attention_mask=SEGMENT)[:, place]
    assert np.abs(found - seen)[there].max() > 1e-2


def test_several_shadows_are_masks_that_see_each_other():
    """In one layer: the token is masked, and the other shadows' masks stand in a second row of places."""
    shadow = jnp.asarray([[1, 3, 5]] * 3)
    found = logits(NETWORK, shadowed(TOKENS, shadow), shadow=shadow)
    for number, place in enumerate([1, 3, 5]):
        others = np.delete(np.array([1, 3, 5]), number)
        tokens = jnp.concatenate([TOKENS.at[:, place].set(MASK), jnp.full((3, 2), MASK)], axis=1)
        positions = jnp.asarray(np.concatenate([np.arange(L), others])[None].repeat(3, 0))
        by_hand = logits(NETWORK, tokens, positions=positions)
        np.testing.assert_allclose(found[:, L + number], by_hand[:, place], atol=2e-5)


@pytest.mark.parametrize("network", slow_unless(
    [dataclasses.replace(NETWORK, layers=3), dataclasses.replace(NETWORK, layers=2, learned_positions=L),
     dataclasses.replace(NETWORK, layers=2, attention="block_causal", block_length=3)], "deep", "block_causal",
    ids=["deep", "learned", "block_causal"]))
def test_tokens_do_not_see_them_and_empty_places_nobody_does(network):
    shadow = jnp.asarray([[0, 2, -1, 4], [3, -1, 5, 1], [-1, 6, 2, 0]])
    found = logits(network, shadowed(TOKENS, shadow), attention_mask=SEGMENT, shadow=shadow)
    plain = logits(network, TOKENS, attention_mask=SEGMENT)
    there = np.asarray(SEGMENT) > 0
    np.testing.assert_allclose(found[:, :L][there], plain[there], atol=2e-5)
    for row in range(3):
        kept = np.asarray(shadow[row]) >= 0
        fewer = shadow[row][kept][None]
        alone = logits(network, shadowed(TOKENS[row : row + 1], fewer), attention_mask=SEGMENT[row : row + 1],
                       shadow=fewer)
        np.testing.assert_allclose(found[row, L:][kept], alone[0, L:], atol=2e-5)


@pytest.mark.slow
def test_positions_of_ones_own_go_along():
    positions = jnp.asarray(np.random.default_rng(1).permuted(np.arange(2 * L)[None].repeat(3, 0), axis=1)[:, :L])
    shadow = jnp.full((3, 1), 4)
    found = logits(NETWORK, shadowed(TOKENS, shadow), positions=positions, shadow=shadow)[:, L]
    masked = logits(NETWORK, TOKENS.at[:, 4].set(MASK), positions=positions)[:, 4]
    np.testing.assert_allclose(found, masked, atol=2e-5)


def test_backends_honour_them_or_say_that_they_cannot():
    whose = jnp.asarray([[-1] * 6 + [1, 3]] * 2)
    places = Places(None, None, whose)
    seen = Visibility(places, places, "bidirectional")
    query, key, value, _ = problem(8)
    np.testing.assert_array_equal(cudnn.how(query, key, seen)["mask"], seen.mask(2, 8, 8))
    with pytest.raises(ValueError, match="backend='splash': shadows hide single keys.*set backend='xla'"):
        attend("splash", query, key, value, seen)


def test_mistakes_are_named():
    shadow = jnp.asarray([[1]] * 3)
    tokens = shadowed(TOKENS, shadow)
    shifted = dataclasses.replace(NETWORK, logit_shift=True)
    with pytest.raises(ValueError, match="shadow: row i of this network scores token i.1"):
        logits(shifted, tokens, shadow=shadow)
    with pytest.raises(ValueError, match="shadow: there are none in two streams"):
        logits(dataclasses.replace(NETWORK, attention="two_stream"), tokens, shadow=jnp.asarray([[1]] * 3))
    with pytest.raises(ValueError, match="shadow: there are none beside a cache"):
        logits(NETWORK, tokens, shadow=shadow, cache=cache.empty(NETWORK, 3, 16), start=0)
