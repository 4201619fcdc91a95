"""Logits of loaded checkpoints against the published model code (see golden/llada/README.md)."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mdlm_jax.models import api, cache
from mdlm_jax.models.config import TransformerConfig
from mdlm_jax.models.hf import families, reader
from mdlm_jax.models.hf.rules import Description
from tests.marks import slow_unless

from .support import GOLDEN, save

TOLERANCE = {"float32": 1e-3, "float64": 2e-4}  # the references ran in float32; their logits' std is about 4
both = pytest.mark.parametrize("dtype", sorted(TOLERANCE))
precise = pytest.mark.parametrize("dtype", slow_unless(sorted(TOLERANCE), "float64"))


@pytest.fixture(autouse=True)
def _float64():
    with jax.enable_x64(True):
        yield


def _load(name, dtype, **changes):
    folder = GOLDEN / f"{name}_ckpt"
    description = families.describe(folder)
    params = reader.read(folder, description, dtype=dtype)
    return dataclasses.replace(description.config, dtype=dtype, **changes), params


@functools.partial(jax.jit, static_argnums=0, static_argnames=("raw", "keep_layers"))
def _run(config, params, tokens, **inputs):
    """Logits, and what else the network returns."""
    output = api.forward(config, params, tokens, **inputs)
    return output.prediction.logits(), output.layers, output.cache


def _logits(config, params, tokens, **inputs):
    return np.asarray(_run(config, params, jnp.asarray(tokens, jnp.int32), **inputs)[0])


def _close(ours, theirs, dtype):
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=TOLERANCE[dtype])


@both
@pytest.mark.parametrize("case", ["full", "len1", "long"])
def test_llada(dtype, case):
    golden = np.load(GOLDEN / "llada_logits.npz")
    config, params = _load("llada", dtype)
    _close(_logits(config, params, golden[f"{case}_input_ids"]), golden[f"{case}_logits"], dtype)


@precise
@pytest.mark.parametrize("case", ["leftpad", "rightpad"])
def test_llada_padded(dtype, case):
    golden = np.load(GOLDEN / "llada_logits.npz")
    config, params = _load("llada", dtype)
    mask = golden[f"{case}_attention_mask"]
    logits = _logits(config, params, golden[f"{case}_input_ids"], attention_mask=jnp.asarray(mask))
    _close(logits[mask == 1], golden[f"{case}_logits"][mask == 1], dtype)


@precise
def test_llada_hidden_states(dtype):
    golden = np.load(GOLDEN / "llada_logits.npz")
    config, params = _load("llada", dtype)
    _, layers, _ = _run(config, params, jnp.asarray(golden["full_input_ids"], jnp.int32), keep_layers=True)
    np.testing.assert_allclose(layers, golden["full_hidden_states"], rtol=0, atol=1e-3)


@precise
def test_grouped_heads_and_a_tied_table(dtype):
    golden = np.load(GOLDEN / "llada_gqa_tied_logits.npz")
    config, params = _load("llada_gqa_tied", dtype)
    assert config.tied and config.kv_heads == 2
    _close(_logits(config, params, golden["input_ids"]), golden["logits"], dtype)


@precise
@pytest.mark.parametrize("case", ["full", "long"])
def test_dream_raw_and_aligned(dtype, case):
    golden = np.load(GOLDEN / "dream_logits.npz")
    config, params = _load("dream", dtype)
    tokens, theirs = golden[f"{case}_input_ids"], golden[f"{case}_logits"]
    _close(_logits(config, params, tokens, raw=True), theirs, dtype)
    aligned = np.concatenate([theirs[:, :1], theirs[:, :-1]], axis=1)
    _close(_logits(config, params, tokens), aligned, dtype)


@precise
def test_dream_padded(dtype):
    golden = np.load(GOLDEN / "dream_logits.npz")
    config, params = _load("dream", dtype)
    mask, positions = golden["leftpad_attention_mask"], golden["leftpad_position_ids"]
    logits = _logits(config, params, golden["leftpad_input_ids"], raw=True, attention_mask=jnp.asarray(mask),
                     positions=jnp.asarray(positions, jnp.int32))
    _close(logits[mask == 1], golden["leftpad_logits"][mask == 1], dtype)


@precise
def test_lladamoe(dtype):
    """Three layers of experts, and what each of them makes of its input."""
    golden = np.load(GOLDEN / "lladamoe_logits.npz")
    config, params = _load("lladamoe", dtype)
    logits, layers, _ = _run(config, params, jnp.asarray(golden["full_input_ids"], jnp.int32), keep_layers=True)
    _close(logits, golden["full_logits"], dtype)
    _close(layers, golden["full_hidden_states"], dtype)


@precise
def test_lladamoe_padded(dtype):
    golden = np.load(GOLDEN / "lladamoe_logits.npz")
    config, params = _load("lladamoe", dtype)
    mask = golden["leftpad_attention_mask"]
    logits = _logits(config, params, golden["leftpad_input_ids"], attention_mask=jnp.asarray(mask))
    assert (mask == 0).any()
    _close(logits[mask == 1], golden["leftpad_logits"][mask == 1], dtype)


@precise
def test_llada2_bidirectional(dtype):
    golden = np.load(GOLDEN / "llada2_logits.npz")
    config, params = _load("llada2", dtype, attention="bidirectional", block_length=1)
    _close(_logits(config, params, golden["full_input_ids"]), golden["full_logits"], dtype)


@precise
def test_llada2_block_causal(dtype):
    golden = np.load(GOLDEN / "llada2_logits.npz")
    config, params = _load("llada2", dtype, block_length=int(golden["bc_block_length"]))
    logits, layers, _ = _run(config, params, jnp.asarray(golden["bc_input_ids"], jnp.int32), keep_layers=True)
    _close(logits, golden["bc_logits"], dtype)
    _close(layers, golden["bc_hidden_states"], dtype)


@precise
def test_llada2_block_by_block_with_a_cache(dtype):
    """What the reference computes in one pass, and with its own cache: each block once, the blocks before it cached."""
    golden = np.load(GOLDEN / "llada2_kvcache.npz")
    block, tokens = int(golden["block_length"]), jnp.asarray(golden["input_ids"], jnp.int32)
    config, params = _load("llada2", dtype, block_length=block)
    length = tokens.shape[1]
    slots, parts = cache.empty(config, 1, length), []
    for first in range(0, length, block):
        logits, _, slots = _run(config, params, tokens[:, first : first + block], cache=slots, start=jnp.asarray(first))
        parts.append(logits)
    assert len(parts) > 1
    _close(np.concatenate(parts, axis=1), golden["logits"], dtype)
    _close(_logits(config, params, tokens), golden["logits"], dtype)


@precise
def test_llada2_two_streams(dtype):
    golden = np.load(GOLDEN / "llada2_logits.npz")
    config, params = _load("llada2", dtype, attention="two_stream", block_length=int(golden["bd_block_size"]))
    tokens = np.concatenate([golden["bd_noisy_ids"], golden["bd_clean_ids"]], axis=1)
    logits = _logits(config, params, tokens)
    half = tokens.shape[1] // 2
    _close(logits[:, :half], golden["bd_logits_noisy"], dtype)
    _close(logits[:, half:], golden["bd_logits_clean"], dtype)


@precise
def test_smdm(tmp_path, dtype):
    golden = np.load(GOLDEN / "smdm_backbone.npz")
    layers, heads, d_model, d_ff, columns, groups = (int(n) for n in golden["cfg"])
    config = TransformerConfig(columns + 1, columns, layers, d_model, heads, groups, d_ff)
    description = Description(config, "smdm", mask_id=columns)
    tensors = {key[2:]: golden[key] for key in golden if key.startswith("w.")}
    params = reader.read(save(tmp_path / "smdm", description, tensors), description, dtype=dtype)
    config = dataclasses.replace(config, dtype=dtype)
    _close(_logits(config, params, golden["x"]), golden["logits_fp32_rope"], dtype)
