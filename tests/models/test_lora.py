"""Adapters: nothing at first, gradients into them alone, and merged the same network."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.extend.core import jaxprs_in_params

from mdlm_jax.errors import ConfigError
from mdlm_jax.models import api, lora
from mdlm_jax.models.hf import families, reader, writer
from mdlm_jax.models.lora import Lora
from mdlm_jax.models.sharding import make_mesh
from tests.marks import slow_unless
from tests.models.hf.support import DESCRIPTIONS, flat, random_params

NAMES = ["qwen3", "mdlm", "llada2"]
TOKENS = jnp.asarray(np.random.default_rng(0).integers(0, 40, (2, 9)), jnp.int32)
ALL = Lora(rank=4, alpha=8.0, targets=("*",))


def _network(name):
    config = DESCRIPTIONS[name].config
    return config, random_params(config)


def _trained(adapters):
    return jax.tree.map(lambda x: x + 0.1 * jax.random.normal(jax.random.key(3), x.shape), adapters)


@pytest.mark.parametrize("name", slow_unless(NAMES, "llada2"))
def test_nothing_changes_at_the_start(name):
    config, params = _network(name)
    adapters = lora.init(ALL, config, jax.random.key(1))
    effective = flat(lora.apply(ALL, params, adapters))
    assert effective.keys() == flat(params).keys()
    for path, leaf in flat(params).items():
        np.testing.assert_array_equal(effective[path], leaf)


@pytest.mark.parametrize("name", slow_unless(NAMES, "llada2"))
def test_merged_is_applied(name):
    config, params = _network(name)
    adapters = _trained(lora.init(ALL, config, jax.random.key(1)))
    applied, merged = flat(lora.apply(ALL, params, adapters)), flat(lora.merge(ALL, params, adapters))
    for path in applied:
        np.testing.assert_allclose(merged[path], applied[path], rtol=1e-5, atol=1e-6, err_msg=path)
    changed = {path for path, leaf in flat(params).items() if not np.array_equal(leaf, applied[path])}
    assert changed == set(adapters)


def test_the_product_of_each_layer():
    config, params = _network("llada2")
    adapters = _trained(lora.init(ALL, config, jax.random.key(1)))
    effective = flat(lora.apply(ALL, params, adapters))
    pair = adapters["layers/attention/out"]
    expected = params["layers"]["attention"]["out"][1] + 2.0 * jnp.einsum("nhr,rd->nhd", pair["a"][1], pair["b"][1])
    np.testing.assert_allclose(effective["layers/attention/out"][1], expected, rtol=1e-5, atol=1e-6)
    pair = adapters["layers/moe/up"]
    expected = params["layers"]["moe"]["up"][0, 3] + 2.0 * pair["a"][0, 3] @ pair["b"][0, 3]
    np.testing.assert_allclose(effective["layers/moe/up"][0, 3], expected, rtol=1e-5, atol=1e-6)


def test_gradients_go_into_the_adapters_alone():
    config, params = _network("llada")
    plan = Lora(rank=2, alpha=2.0, targets=("*/attention/query", "*/mlp/down"))
    adapters = _trained(lora.init(plan, config, jax.random.key(1)))

    @jax.jit
    @jax.grad
    def gradient(adapters):
        return jnp.mean(api.apply(config, lora.apply(plan, params, adapters), TOKENS).logits() ** 2)

    gradients = gradient(adapters)
    assert sorted(gradients) == ["layers/attention/query", "layers/mlp/down"]
    assert all(float(jnp.abs(leaf).max()) > 0 for leaf in jax.tree.leaves(gradients))
    fresh = gradient(lora.init(plan, config, jax.random.key(1)))
    assert all(float(jnp.abs(pair["a"]).max()) == 0 < float(jnp.abs(pair["b"]).max()) for pair in fresh.values())


def test_a_rank_of_full_size_can_be_anything():
    """With r = D an adapter reaches any matrix: the axes are the right ones."""
    config, params = _network("llada")
    plan = Lora(rank=32, alpha=32.0, targets=("layers/mlp/up",))
    wanted = jax.random.normal(jax.random.key(5), params["layers"]["mlp"]["up"].shape)
    b = wanted - params["layers"]["mlp"]["up"]
    adapters = {"layers/mlp/up": {"a": jnp.broadcast_to(jnp.eye(32), (3, 32, 32)), "b": b}}
    np.testing.assert_allclose(lora.apply(plan, params, adapters)["layers"]["mlp"]["up"], wanted, atol=1e-5)


def _made(jaxpr):
    """What every operation of a program makes, those inside loops too."""
    for equation in jaxpr.eqns:
        yield from (variable.aval for variable in equation.outvars)
        for inner in jaxprs_in_params(equation.params):
            yield from _made(inner)


def test_no_leaf_is_whole_in_float32():
    """Forward and backward: nothing in float32 is larger than one of the eight layers of a bfloat16 leaf.

    In the program as written; XLA:CPU has no bfloat16 and widens what it likes.
    """
    config = dataclasses.replace(DESCRIPTIONS["llada"].config, layers=8, d_model=64, d_ff=96)
    plan = Lora(rank=2, targets=("layers/mlp/up",))
    leaf = jax.ShapeDtypeStruct((8, 64, 96), jnp.bfloat16)
    adapters = jax.eval_shape(lambda: lora.init(plan, config, jax.random.key(0)))

    def effective(adapters, leaf):
        return lora.apply(plan, {"layers": {"mlp": {"up": leaf}}}, adapters)["layers"]["mlp"]["up"]

    def gradient(adapters, leaf, cotangent):
        return jax.vjp(lambda adapters: effective(adapters, leaf), adapters)[1](cotangent)

    for program in (jax.make_jaxpr(effective)(adapters, leaf), jax.make_jaxpr(gradient)(adapters, leaf, leaf)):
        wide = [array.size for array in _made(program.jaxpr) if getattr(array, "dtype", None) == jnp.float32]
        assert max(wide) == 64 * 96


def test_count():
    config, _ = _network("llada")
    plan = Lora(rank=4, targets=("layers/attention/query",))
    adapters = lora.init(plan, config, jax.random.key(0))
    assert sum(leaf.size for leaf in jax.tree.leaves(adapters)) == 3 * (32 * 4 + 4 * 32)


@pytest.mark.slow
def test_on_a_mesh():
    config, params = _network("llada2")
    mesh = make_mesh({"fsdp": 4, "tensor": 2})
    layout = lora.shardings(ALL, config, mesh)
    adapters = _trained(lora.init(ALL, config, jax.random.key(1)))
    placed = jax.device_put(adapters, layout)
    merged = lora.merge(ALL, jax.device_put(params, api.shardings(config, mesh)), placed)
    expected = flat(lora.apply(ALL, params, adapters))
    for path, leaf in flat(merged).items():
        np.testing.assert_allclose(leaf, expected[path], rtol=1e-5, atol=1e-6)
    assert not placed["layers/attention/query"]["a"].sharding.is_fully_replicated


def test_merged_and_exported(tmp_path):
    description = DESCRIPTIONS["qwen3"]
    config, params = _network("qwen3")
    plan = Lora(rank=2)
    merged = lora.merge(plan, params, _trained(lora.init(plan, config, jax.random.key(1))))
    writer.write(tmp_path / "merged", description, merged)
    again = flat(reader.read(tmp_path / "merged", families.describe(tmp_path / "merged")))
    assert all(np.array_equal(again[path], leaf) for path, leaf in flat(merged).items())


def test_the_base_keeps_its_dtype():
    config, params = _network("llada")
    narrow = jax.tree.map(lambda x: x.astype(jnp.bfloat16), params)
    effective = lora.apply(ALL, narrow, lora.init(ALL, config, jax.random.key(0)))
    assert {leaf.dtype.name for leaf in jax.tree.leaves(effective)} == {"bfloat16"}


@pytest.mark.parametrize("fields, match", [
    ({"rank": 0}, "rank=0"), ({"alpha": 0.0}, "alpha"), ({"targets": "*/mlp/*"}, "tuple"), ({"targets": ()}, "tuple"),
])
def test_impossible_values(fields, match):
    with pytest.raises(ConfigError, match=match):
        Lora(**fields)


def test_a_pattern_that_fits_nothing():
    with pytest.raises(ConfigError, match="q_proj.*layers/attention/query"):
        lora.init(Lora(targets=("*/q_proj",)), DESCRIPTIONS["llada"].config, jax.random.key(0))
    assert dataclasses.replace(Lora(), rank=8).scale == 4.0
