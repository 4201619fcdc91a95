"""Sharded equals unsharded on 8 virtual devices, over networks drawn at random: hidden states, loss and gradients.

Experts are compared in tests/models/moe, where near-ties of the router are dealt with.
"""

import functools
import random

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mdlm_jax.models import api
from mdlm_jax.models.config import ATTENTIONS, RopeConfig, TransformerConfig
from mdlm_jax.models.sharding import batch_sharding, make_mesh, replicated
from mdlm_jax.models.vocabulary import reduce
from tests.marks import slow_unless
from tests.models.test_transformer import parameters

MESHES = {"8,1": {"fsdp": 8}, "2,4": {"fsdp": 2, "tensor": 4}, "4,2": {"fsdp": 4, "tensor": 2},
          "replica": {"replica": 2, "fsdp": 2, "tensor": 2}, "context": {"fsdp": 2, "context": 2, "tensor": 2}}
ROWS, LENGTH = 8, 16


def drawn(seed: int) -> tuple[TransformerConfig, str]:
    """A network of random switches, small enough to be run often, and a mesh; meshes and contracts go round."""
    choose = random.Random(seed).choice
    heads = choose([4, 8])
    attention = ATTENTIONS[(seed + seed // 5) % 5]
    norm = choose(["rms", "layer"])
    config = TransformerConfig(
        vocab_size=40, head_size=choose([40, 32, 39]), layers=2, d_model=32, heads=heads,
        kv_heads=choose([1, 4, heads]), d_ff=choose([48, 64]), head_dim=choose([0, 16]), attention=attention,
        block_length=4 if attention in ("block_causal", "two_stream") else 1, norm=norm,
        norm_bias=norm == "layer" and choose([True, False]), activation=choose(["swiglu", "gelu", "gelu_tanh"]),
        qkv_bias=choose([True, False]), out_bias=choose([True, False]), mlp_bias=choose([True, False]),
        head_bias=choose([True, False]), qk_norm=choose([True, False]), tied=choose([True, False]),
        logit_shift=choose([True, False]), conditioning=choose(["none", "time", "constant"]),
        rope=choose([RopeConfig(), RopeConfig(theta=0.0), RopeConfig(interleaved=True)]),
        learned_positions=choose([0, 32]), remat=choose(["none", "full", "matmuls", "context"]),
    )
    return config, list(MESHES)[seed % 5]


def loss(config, params, tokens, segments, time, order):
    options = {"time": time} if config.time_conditioning else {}
    if config.attention == "permutation":
        options["order"] = order
    prediction = api.apply(config, params, tokens, attention_mask=segments, **options)
    reduced = reduce(prediction, suppress=3, target=tokens % 3, chunk=4)
    return -jnp.where(segments != 0, reduced.target, 0).mean(), prediction.hidden


def check(seed: int) -> None:
    config, name = drawn(seed)
    mesh, params = make_mesh(MESHES[name]), parameters(config)
    rng = np.random.default_rng(seed)
    tokens = rng.integers(0, 40, (ROWS, LENGTH), dtype=np.int32)
    segments = np.tile(np.asarray([1] * 6 + [2] * 9 + [0], np.int32), (ROWS, 1))
    order = rng.permuted(np.tile(np.arange(LENGTH, dtype=np.int32), (ROWS, 1)), axis=1)
    batch = tokens, segments, np.linspace(0, 0.01, ROWS, dtype=np.float32), order
    function = jax.value_and_grad(functools.partial(loss, config), has_aux=True)
    (expected, hidden), gradients = jax.device_get(jax.jit(function)(params, *batch))
    layout, rows = api.shardings(config, mesh), batch_sharding(mesh)

    def on_the_mesh(*arguments):
        with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
            return function(*arguments)

    run = jax.jit(on_the_mesh, in_shardings=(layout, *[rows] * 4), out_shardings=((replicated(mesh), rows), layout))
    (found, found_hidden), found_gradients = jax.device_get(run(jax.device_put(params, layout), *batch))
    np.testing.assert_allclose(found, expected, rtol=1e-5, err_msg=str((config, name)))
    real = segments != 0
    scale = np.abs(hidden).max()
    np.testing.assert_allclose(found_hidden[real] / scale, hidden[real] / scale, atol=1e-5, err_msg=str((config, name)))
    for path, gradient in jax.tree_util.tree_leaves_with_path(found_gradients):
        wanted = functools.reduce(lambda tree, key: tree[key.key], path, gradients)
        largest = np.abs(wanted).max()
        if path[-1].key == "key_bias" and not (config.rope.theta or config.qk_norm):
            assert max(largest, np.abs(gradient).max()) < 1e-6  # a softmax does not see what all its scores share
            continue
        np.testing.assert_allclose(gradient / largest, wanted / largest, atol=1e-5,
                                   err_msg=f"{jax.tree_util.keystr(path)} of {config} on {name}")


@pytest.mark.parametrize("seed", slow_unless(range(6), 1, 4))
def test_sharded_is_unsharded(seed):
    check(seed)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(6, 60))
def test_sharded_is_unsharded_for_many(seed):
    check(seed)
