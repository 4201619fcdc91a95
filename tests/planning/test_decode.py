"""Decoding steps for a mesh: what they give, where things lie, and what travels, on 8 virtual devices."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mdlm_jax.models import api, cache, flops
from mdlm_jax.models.config import MoEConfig, TransformerConfig
from mdlm_jax.models.sharding import make_mesh
from mdlm_jax.planning import block_decoding, collectives, decode, decoding, hlo, kernels, topologies
from mdlm_jax.planning.decoding import Decoding
from tests.marks import slow_unless

DENSE = TransformerConfig(64, 64, layers=2, d_model=32, heads=8, kv_heads=4, d_ff=48, attention="block_causal",
                          block_length=4)
EXPERTS = dataclasses.replace(DENSE, moe=MoEConfig(8, 2, 16, leading_dense=1))


def test_the_step_is_a_forward_against_the_cache():
    mesh = make_mesh({"replica": 2, "tensor": 4})
    params = api.init(DENSE, jax.random.key(0))
    tokens = jax.random.randint(jax.random.key(1), (4, 8), 0, 64)
    compiled = decode.lower(DENSE, Decoding(4, 16, 4), mesh).compile()
    slots = jax.device_put(cache.empty(DENSE, 4, 16), cache.shardings(DENSE, mesh))
    weights = jax.device_put(params, api.shardings(DENSE, mesh))
    for start in (0, 4):
        best, log_prob, slots = compiled(weights, slots, tokens[:, start:start + 4], jnp.int32(start))
    expected = jax.nn.log_softmax(api.apply(DENSE, params, tokens).logits())[:, 4:]
    np.testing.assert_array_equal(best, expected.argmax(-1))
    np.testing.assert_allclose(log_prob, expected.max(-1), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("network", "sizes"), ((DENSE, {"replica": 2, "tensor": 4}), (EXPERTS, {"expert": 8})))
def test_no_weight_and_no_key_travels(network, sizes):
    """Only activations of the window do, so longer rows send nothing more."""
    sent = []
    for slots in (16, 64):
        text = decode.lower(network, Decoding(8, slots, 4), make_mesh(sizes)).compile().as_text()
        sent.append(sum(c.wire for c in collectives.find(hlo.parse(text))))
    assert sent[0] == sent[1] > 0


def test_default_meshes_keep_weights_whole_over_fsdp():
    v5p = topologies.parse("v5p:2x2x2")
    assert decoding.default_mesh(v5p, EXPERTS) | {"fsdp": 1} == {
        "replica": 1, "fsdp": 1, "expert": 8, "context": 1, "tensor": 1}
    dense = decoding.default_mesh(topologies.parse("v5e:4x4", 2), DENSE)
    assert (dense["replica"], dense["tensor"], dense["fsdp"]) == (8, 4, 1)


def test_work_in_kernels_by_hand():
    """A forward and a backward pass with splash: 2 + 4 + 3 products with scores; of experts 3 + 3 + 3."""
    runs = {"splash_mha_fwd_residuals": 2, "splash_mha_dkv_no_residuals": 2, "splash_mha_dq_no_residuals": 2, "gmm": 6,
            "tgmm": 3}
    tokens, product = 40, 2 * 40 * 10 * 8 * 4  # 10 keys seen, 8 heads of 4
    visit = 2 * 40 * 2 * 32 * 16
    assert kernels.computed(EXPERTS, runs, tokens, 10) == 2 * 9 * product + 9 * visit
    assert kernels.in_formula(EXPERTS, runs, tokens, 10) == 2 * 2 * product + 3 * visit
    assert kernels.in_formula(EXPERTS, {}, tokens, 10) == kernels.computed(DENSE, {}, tokens, 10) == 0


@pytest.mark.parametrize(("name", "windows", "needed"), slow_unless((
    ("none", [16] * 8, [16] * 8),
    ("dual", [16, 4, 4, 4] * 2, [16, 4, 4, 4] * 2),
    ("block", [16, 4, 4, 4, 8, 4, 4, 4], [12, 4, 4, 4, 8, 4, 4, 4]),
), "block", ids=("none", "dual", "block")))
def test_flops_of_a_generated_token_by_hand(name, windows, needed):
    """8 tokens behind 8 in blocks of 4: every forward runs its window against 16 slots, and the head on 4 positions."""
    network = dataclasses.replace(DENSE, layers=1)
    found = block_decoding.plan(network, decoding.Blocks(rows=1, prompt=8, new_tokens=8, block=4, per_forward=1), name)
    head, scores = 2 * 32 * 64 * 4, 4 * 16 * 8 * 4
    compiled = sum(window * (2 * flops.matmul_parameters(network) + scores) + head for window in windows)
    assert found["compiled"] == compiled / 8 and found["forwards"] == 1 and found["tokens"] == sum(needed) / 8
    assert found["ratio"] == found["formula"] / found["compiled"] < 1
    masks = [4, 3, 2, 1] * 2
    seen = {"block": [8, 12, 12, 12, 14, 16, 16, 16]}.get(name, [16] * 8)  # keys of a query on average
    expected = sum(n * (2 * flops.matmul_parameters(network) + 4 * s * 32) + 2 * 32 * 64 * m
                   for n, s, m in zip(needed, seen, masks, strict=True))
    np.testing.assert_allclose(found["formula"], expected / 8, rtol=1e-12)
