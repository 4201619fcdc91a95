"""Windows against a cache give what one pass over the whole row gives, wherever the contract says they must."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mdlm_jax.models import api, cache
from mdlm_jax.models.config import TransformerConfig
from mdlm_jax.models.sharding import make_mesh
from tests.marks import slow_unless
from tests.models.test_transformer import parameters

BASE = TransformerConfig(23, 23, layers=2, d_model=32, heads=4, kv_heads=2, d_ff=48)
TOKENS = jax.random.randint(jax.random.key(0), (3, 12), 0, 23)


@functools.partial(jax.jit, static_argnums=0)
def run(config, params, tokens, slots, start, mask=None):
    output = api.forward(config, params, tokens, cache=slots, start=start, attention_mask=mask)
    return output.prediction.logits(), output.cache


@functools.partial(jax.jit, static_argnums=0)
def whole(config, params, tokens, mask=None):
    return api.apply(config, params, tokens, attention_mask=mask).logits()


@pytest.mark.parametrize(("contract", "block", "cuts"), slow_unless(
    [("causal", 1, [0, 1, 5, 6, 12]), ("block_causal", 4, [0, 4, 12]), ("block_causal", 3, [0, 3, 6, 9, 12])],
    ("causal", 1, [0, 1, 5, 6, 12]), ("block_causal", 3, [0, 3, 6, 9, 12])))
def test_block_by_block_is_one_pass(contract, block, cuts):
    config = dataclasses.replace(BASE, attention=contract, block_length=block, qk_norm=True)
    params, slots, parts = parameters(config), cache.empty(config, 3, 16), []
    for first, last in zip(cuts[:-1], cuts[1:], strict=True):
        logits, slots = run(config, params, TOKENS[:, first:last], slots, first)
        parts.append(logits)
    np.testing.assert_allclose(np.concatenate(parts, 1), whole(config, params, TOKENS), rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(np.asarray(slots.segment), [[1] * 12 + [0] * 4] * 3)


@pytest.mark.parametrize("sizes", slow_unless(
    [{"fsdp": 8}, {"fsdp": 2, "tensor": 4}, {"replica": 2, "fsdp": 2, "tensor": 2}], {"fsdp": 2, "tensor": 4}))
def test_a_sharded_cache_is_the_cache(sizes):
    """Rows and heads over eight devices, block by block; what the layout says is where the keys lie."""
    config = dataclasses.replace(BASE, kv_heads=4, attention="block_causal", block_length=4)
    tokens = jax.random.randint(jax.random.key(1), (8, 12), 0, 23)
    params, mesh = parameters(config), make_mesh(sizes)
    layout = cache.shardings(config, mesh)
    weights = jax.device_put(params, api.shardings(config, mesh))
    slots, parts = jax.device_put(cache.empty(config, 8, 16), layout), []
    with jax.set_mesh(mesh):
        for start in (0, 4, 8):
            logits, slots = run(config, weights, tokens[:, start:start + 4], slots, start)
            parts.append(np.asarray(logits))
    assert slots.key.sharding.is_equivalent_to(layout.key, slots.key.ndim)
    held = {shard.data.shape for shard in slots.key.addressable_shards}
    assert held == {(2, 8 * sizes.get("tensor", 1) // 8, 16, 4 // sizes.get("tensor", 1), 8)}
    np.testing.assert_allclose(np.concatenate(parts, 1), whole(config, params, tokens), rtol=1e-4, atol=1e-5)


def test_a_dropped_window_leaves_no_trace():
    """A draft of a block, then its final form: what is committed is what one pass sees."""
    config = dataclasses.replace(BASE, attention="block_causal", block_length=4)
    params = parameters(config)
    _, slots = run(config, params, TOKENS[:, :4], cache.empty(config, 3, 8), 0)
    run(config, params, TOKENS[:, 8:12], slots, 4)
    logits, _ = run(config, params, TOKENS[:, 4:8], slots, 4)
    np.testing.assert_allclose(logits, whole(config, params, TOKENS[:, :8])[:, 4:], rtol=1e-4, atol=1e-5)


def test_prefix_cache_of_a_bidirectional_network():
    """With one layer the keys of the prefix do not depend on what follows, so a prefix cache is exact."""
    config = dataclasses.replace(BASE, layers=1)
    params = parameters(config)
    full, slots = run(config, params, TOKENS, cache.empty(config, 3, 12), 0)
    np.testing.assert_allclose(full, whole(config, params, TOKENS), rtol=1e-4, atol=1e-5)
    changed = TOKENS.at[:, 5:].set((TOKENS[:, 5:] + 1) % 23)
    logits, _ = run(config, params, changed[:, 5:], slots.keep(jnp.arange(12) < 5), 5)
    np.testing.assert_allclose(logits, whole(config, params, changed)[:, 5:], rtol=1e-4, atol=1e-5)


def test_dual_cache_overwrites_a_block_in_place():
    """One layer again: keys of the suffix stay valid while a block in the middle changes."""
    config = dataclasses.replace(BASE, layers=1)
    params = parameters(config)
    _, slots = run(config, params, TOKENS, cache.empty(config, 3, 12), 0)
    changed = TOKENS.at[:, 4:8].set((TOKENS[:, 4:8] + 1) % 23)
    logits, _ = run(config, params, changed[:, 4:8], slots, 4)
    np.testing.assert_allclose(logits, whole(config, params, changed)[:, 4:8], rtol=1e-4, atol=1e-5)


def test_rows_may_start_at_different_slots_and_padding_is_not_seen():
    config = dataclasses.replace(BASE, attention="causal")
    params = parameters(config)
    starts = jnp.asarray([0, 3, 5])
    mask = (jnp.arange(6) < starts[:, None]).astype(jnp.int32)  # the prompts: none, 3 and 5 tokens, padded right
    _, slots = run(config, params, TOKENS[:, :6], cache.empty(config, 3, 12), 0, mask)
    logits, slots = run(config, params, TOKENS[:, 6:9], slots, starts)
    for row, start in enumerate(np.asarray(starts)):
        together = jnp.concatenate([TOKENS[row : row + 1, :start], TOKENS[row : row + 1, 6:9]], 1)
        expected = whole(config, params, together)[0, start:]
        np.testing.assert_allclose(logits[row], expected, rtol=1e-4, atol=1e-5)


def test_a_cache_needs_a_start_and_a_start_a_cache():
    with pytest.raises(ValueError, match="start: goes with a cache"):
        api.forward(BASE, parameters(BASE), TOKENS, start=0)
    with pytest.raises(ValueError, match="start: goes with a cache"):
        api.forward(BASE, parameters(BASE), TOKENS, cache=cache.empty(BASE, 3, 12))


def test_a_window_beyond_the_last_slot_is_refused():
    params, slots = parameters(BASE), cache.empty(BASE, 3, 8)
    for tokens, start, end in ((TOKENS, 0, 12), (TOKENS[:, :4], 6, 10), (TOKENS[:, :4], jnp.asarray([0, 5, 2]), 9)):
        with pytest.raises(ValueError, match=f"has 8 slots and the window ends at {end}"):
            api.forward(BASE, params, tokens, cache=slots, start=start)


def test_aligned_rows_beside_a_cache_are_refused_and_raw_ones_are_those_of_one_pass():
    """Row 0 of an aligned window would need the hidden state before the window."""
    config = dataclasses.replace(BASE, attention="causal", logit_shift=True)
    params, slots, parts = parameters(config), cache.empty(config, 3, 12), []
    with pytest.raises(ValueError, match="raw: row 0 of an aligned window needs the position before it"):
        api.forward(config, params, TOKENS, cache=slots, start=0)
    for start in (0, 4, 8):
        output = api.forward(config, params, TOKENS[:, start:start + 4], cache=slots, start=start, raw=True)
        parts.append(output.prediction.logits())
        slots = output.cache
    expected = api.apply(config, params, TOKENS, raw=True).logits()
    np.testing.assert_allclose(np.concatenate(parts, 1), expected, rtol=1e-4, atol=1e-5)


def test_more_positions_than_were_learned_are_refused():
    config = dataclasses.replace(BASE, learned_positions=8, rope=dataclasses.replace(BASE.rope, theta=0.0))
    with pytest.raises(ValueError, match="12 positions, and the network learned 8"):
        api.apply(config, parameters(config), TOKENS)


def test_layers_are_each_block_s_input_and_the_end():
    params = parameters(BASE)
    output = api.forward(BASE, params, TOKENS, keep_layers=True)
    assert output.layers.shape == (3, 3, 12, 32)
    np.testing.assert_allclose(output.layers[0], params["embedding"][TOKENS], rtol=1e-6)
    np.testing.assert_array_equal(output.layers[-1], output.prediction.hidden)


def test_shifted_logits_are_aligned_unless_raw():
    config = dataclasses.replace(BASE, logit_shift=True)
    params = parameters(config)
    raw = api.apply(config, params, TOKENS, raw=True).logits()
    aligned = api.apply(config, params, TOKENS).logits()
    np.testing.assert_allclose(raw, api.apply(BASE, params, TOKENS).logits(), rtol=1e-6)
    np.testing.assert_allclose(aligned, np.concatenate([raw[:, :1], raw[:, :-1]], 1), rtol=1e-6)


@pytest.mark.parametrize(("contract", "given", "message"), [
    ("permutation", {}, "order: the permutation contract needs one"),
    ("bidirectional", {"order": TOKENS}, "order: the bidirectional contract compares none"),
    ("two_stream", {"tokens": TOKENS[:, :11]}, r"takes \[noisy; clean\] and no cache, got length 11"),
])
def test_inputs_that_do_not_fit_the_contract(contract, given, message):
    config = dataclasses.replace(BASE, attention=contract)
    given = {"tokens": TOKENS} | given
    with pytest.raises(ValueError, match=message):
        api.forward(config, {}, **given)
