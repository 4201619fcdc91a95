"""Eight virtual devices in several meshes: same forward and gradients as one, and layouts that are what they say."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from mdlm_jax.config import MESH_AXES, ConfigError
from mdlm_jax.models import api
from mdlm_jax.models.config import TransformerConfig
from mdlm_jax.models.sharding import arranged, batch_sharding, make_mesh, place_rows, replicated, weight_sharding
from tests.marks import slow_unless

CONFIG = TransformerConfig(vocab_size=24, head_size=24, layers=2, d_model=32, heads=4, kv_heads=2, d_ff=48,
                           conditioning="time")
TOKENS = jax.random.randint(jax.random.key(0), (8, 10), 0, 24)
SEGMENTS = jnp.broadcast_to(jnp.asarray([1] * 4 + [2] * 5 + [0]), (8, 10))
TIME = jnp.linspace(0, 0.01, 8)  # larger ones meet sinusoids of frequency 1000, which turn rounding into 1e-5
MESHES = {"fsdp": {"replica": 1, "fsdp": 8, "tensor": 1}, "fsdp, tensor": {"replica": 1, "fsdp": 4, "tensor": 2},
          "replica, fsdp, tensor": {"replica": 2, "fsdp": 2, "tensor": 2}}


def loss(params, tokens, segments, time):
    logits = api.apply(CONFIG, params, tokens, time=time, attention_mask=segments).logits()
    picked = jnp.take_along_axis(jax.nn.log_softmax(logits), tokens[..., None], -1)[..., 0]
    return -jnp.where(segments != 0, picked, 0).mean(), logits


@functools.cache
def params():
    """Random ones of about the usual size, with open AdaLN gates, so that every weight has a gradient."""
    rng = np.random.default_rng(0)
    return jax.tree.map(lambda leaf: 0.2 * rng.standard_normal(leaf.shape, np.float32), api.abstract(CONFIG))


@functools.cache
def reference():
    (value, logits), grads = jax.jit(jax.value_and_grad(loss, has_aux=True))(params(), TOKENS, SEGMENTS, TIME)
    return jax.device_get((value, logits, grads))


@pytest.mark.parametrize("sizes", slow_unless(MESHES.values(), "replica, fsdp, tensor", ids=MESHES))
def test_forward_and_gradients_equal_those_of_one_device(sizes):
    mesh = make_mesh(sizes)
    layout, rows = api.shardings(CONFIG, mesh), batch_sharding(mesh)
    placed = jax.device_put(params(), layout)
    run = jax.jit(jax.value_and_grad(loss, has_aux=True), in_shardings=(layout, rows, rows, rows),
                  out_shardings=((replicated(mesh), rows), layout))
    (value, logits), grads = run(placed, TOKENS, SEGMENTS, TIME)
    expected, expected_logits, expected_grads = reference()
    np.testing.assert_allclose(float(value), expected, rtol=1e-6)
    np.testing.assert_allclose(np.asarray(logits), expected_logits, rtol=1e-5, atol=1e-5)
    for path, grad in jax.tree_util.tree_leaves_with_path(grads):
        wanted = functools.reduce(lambda tree, key: tree[key.key], path, expected_grads)
        assert np.abs(wanted).max() > 0, path
        np.testing.assert_allclose(np.asarray(grad) / np.abs(wanted).max(), wanted / np.abs(wanted).max(), atol=1e-5,
                                   err_msg=jax.tree_util.keystr(path))


def test_every_large_weight_is_split_and_by_the_axes_it_names():
    mesh = make_mesh(MESHES["fsdp, tensor"])
    layout, axes, shapes = api.shardings(CONFIG, mesh), api.logical_axes(CONFIG), api.abstract(CONFIG)
    assert jax.tree.structure(layout) == jax.tree.structure(shapes)
    assert axes["layers"]["attention"]["key"] == ("layers", "embed", "kv_heads", "head_dim")
    assert layout["layers"]["attention"]["key"].spec == PartitionSpec(None, "fsdp", "tensor", None)
    assert layout["layers"]["mlp"]["down"].spec == PartitionSpec(None, "tensor", "fsdp")
    assert layout["embedding"].spec == PartitionSpec("tensor", "fsdp")
    assert layout["head"].spec == PartitionSpec("fsdp", "tensor")
    for path, leaf in jax.tree_util.tree_leaves_with_path(shapes):
        sharding = functools.reduce(lambda tree, key: tree[key.key], path, layout)
        local = np.prod(sharding.shard_shape(leaf.shape))
        small = any(word in jax.tree_util.keystr(path) for word in ("norm", "time", "modulation"))
        assert local == leaf.size // (1 if small else 8), path


def test_an_axis_that_does_not_divide_stays_whole():
    mesh = make_mesh(MESHES["fsdp, tensor"])
    assert weight_sharding(mesh, ("vocab", "embed"), (259, 32)).spec == PartitionSpec(None, "fsdp")
    assert weight_sharding(mesh, ("vocab", "embed"), (260, 30)).spec == PartitionSpec("tensor", None)


def test_meshes():
    ones = dict.fromkeys(MESH_AXES, 1)
    assert dict(make_mesh({"replica": 1, "fsdp": -1, "tensor": 2}).shape) == ones | {"fsdp": 4, "tensor": 2}
    assert dict(make_mesh({"fsdp": -1}, jax.devices()[:1]).shape) == ones
    with pytest.raises(ValueError, match="makes 6 devices and there are 8; change train.mesh"):
        make_mesh({"replica": 3, "fsdp": 2, "tensor": 1})
    with pytest.raises(ValueError, match="change train.mesh"):
        make_mesh({"replica": 3, "fsdp": -1, "tensor": 1})


def test_unknown_and_colliding_axes_are_refused():
    mesh = make_mesh(MESHES["fsdp, tensor"])
    with pytest.raises(ValueError, match="logical axis 'colour': is not in WEIGHT_RULES"):
        weight_sharding(mesh, ("colour", "embed"), (8, 32))
    with pytest.raises(ValueError, match="two of them map to one mesh axis"):
        weight_sharding(mesh, ("heads", "mlp"), (8, 32))


class Device:
    """A device of one of two slices, as far as a mesh needs it."""

    platform, device_kind, process_index = "cpu", "cpu", 0

    def __init__(self, number: int):
        self.id, self.slice_index = number, number // 4


def test_replicas_span_slices_and_nothing_else_does():
    ones = dict.fromkeys(MESH_AXES, 1)
    mesh = arranged(ones | {"replica": 4, "fsdp": 2}, [Device(n) for n in range(8)])
    slices = np.vectorize(lambda device: device.slice_index)(mesh.devices).reshape(4, 2)
    np.testing.assert_array_equal(slices, [[0, 0], [0, 0], [1, 1], [1, 1]])
    with pytest.raises(ConfigError, match="replica=1 cannot be shared by 2 slices"):
        arranged(ones | {"fsdp": 8}, [Device(n) for n in range(8)])


def test_rows_are_placed_from_wherever_a_process_has_them():
    layout = NamedSharding(make_mesh({"fsdp": 4, "context": 2}), PartitionSpec("fsdp", "context"))
    rows = np.arange(8 * 6).reshape(8, 6)
    placed = place_rows({"tokens": rows}, layout, 8)["tokens"]
    np.testing.assert_array_equal(placed, rows)
    assert {shard.data.shape for shard in placed.addressable_shards} == {(2, 3)}
    behind = place_rows({"tokens": np.pad(rows, [(3, 0), (0, 0)])}, layout, 8, first=-3)["tokens"]
    np.testing.assert_array_equal(behind, rows)
