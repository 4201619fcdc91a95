"""In bfloat16 the gradients that are sums over many tokens stay sums: of table rows, biases and modulations."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mdlm_jax.core.reduction import reduce
from mdlm_jax.models import api, vocabulary
from mdlm_jax.models.config import TransformerConfig
from mdlm_jax.models.sharding import make_mesh
from tests.marks import slow_unless

MASK = 64
BASE = TransformerConfig(65, 64, layers=2, d_model=32, heads=4, kv_heads=2, d_ff=64)
BIASED = dataclasses.replace(BASE, qkv_bias=True, out_bias=True, mlp_bias=True)
MODULATED = dataclasses.replace(BASE, conditioning="time", condition_dim=16)


def test_a_row_that_is_looked_up_often_is_summed_in_float32():
    table, ids = jnp.zeros((8, 4), jnp.bfloat16), jnp.full((16, 4096), 3)
    gradient = jax.grad(lambda t: vocabulary.lookup(t, ids, ("vocab", "embed")).astype(jnp.float32).sum())(table)
    assert gradient.dtype == jnp.bfloat16
    np.testing.assert_array_equal(np.asarray(gradient[3], np.float32), 65536.0)


@functools.partial(jax.jit, static_argnums=(0, 2))
def gradients(config, params, sizes):
    """Of the masked tokens' log-probability, half of 8 x 512 tokens being masks."""
    key = jax.random.key(0)
    tokens = jax.random.randint(key, (8, 512), 0, 64)
    masked = jax.random.uniform(jax.random.fold_in(key, 1), tokens.shape) < 0.5
    time = jnp.full((8,), 0.5) if config.time_conditioning else None

    def loss(params):
        prediction = api.apply(config, params, jnp.where(masked, MASK, tokens), time=time)
        return -jnp.where(masked, reduce(prediction, suppress=None, target=tokens).target, 0.0).mean()

    return jax.grad(loss)(params)


@pytest.mark.parametrize("config", slow_unless(
    [BASE, BIASED, MODULATED], "tables", ids=["tables", "biases", "modulations"]))
def test_no_gradient_is_lost_among_many_tokens(config):
    params = jax.tree.map(lambda w: w + 0.02 * jax.random.normal(jax.random.key(w.size), w.shape),
                          api.init(config, jax.random.key(0)))
    exact = gradients(config, params, None)
    narrow = gradients(dataclasses.replace(config, dtype="bfloat16"), params, None)
    for path, leaf in jax.tree.leaves_with_path(exact):
        found = dict(jax.tree.leaves_with_path(narrow))[path]
        if "key_bias" in str(path):  # its gradient is zero: it adds the same to all scores of a query
            continue
        error = float(jnp.linalg.norm(found - leaf) / jnp.linalg.norm(leaf))
        assert error < 0.04, (jax.tree_util.keystr(path), error)
    mask_row = float(jnp.linalg.norm(narrow["embedding"][MASK] - exact["embedding"][MASK])
                     / jnp.linalg.norm(exact["embedding"][MASK]))
    assert mask_row < 0.04


def test_parameters_are_made_where_a_mesh_is_set():
    mesh = make_mesh({"fsdp": 4, "tensor": 2})
    expected = api.init(BASE, jax.random.key(0))
    with jax.set_mesh(mesh):
        made = api.init(BASE, jax.random.key(0))
        assert jax.tree.structure(api.abstract(BASE)) == jax.tree.structure(api.shardings(BASE, mesh))
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(np.asarray(a), np.asarray(b)), made, expected)


@pytest.mark.parametrize(("sizes", "rows", "length", "message"), [
    ({"fsdp": 8}, 3, 8, "3 rows cannot be shared by 8 devices"),
    ({"fsdp": 4, "context": 2}, 4, 7, "7 positions cannot be split over context=2"),
])
def test_what_a_mesh_cannot_split(sizes, rows, length, message):
    with jax.set_mesh(make_mesh(sizes)), pytest.raises(ValueError, match=message):
        api.apply(BASE, {}, jnp.zeros((rows, length), jnp.int32))


def test_a_mesh_of_other_axes():
    mesh = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    with jax.set_mesh(mesh), pytest.raises(ValueError, match="has no axis replica; make it with"):
        api.apply(BASE, {}, jnp.zeros((8, 8), jnp.int32))
