"""The splash kernel, interpreted on CPU, against plain XLA: values and gradients; what it refuses; where it lowers."""

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import AbstractMesh, AxisType, NamedSharding, PartitionSpec

from mdlm_jax.models.attention import splash
from mdlm_jax.models.attention.dispatch import attend
from mdlm_jax.models.attention.visibility import Places
from mdlm_jax.models.sharding import BATCH_AXES, LENGTH_AXIS, make_mesh
from tests.marks import slow_unless
from tests.models.attention.contracts import assert_agree, packed, problem, values_and_gradients, visibility

CONTRACTS = (("bidirectional", 1), ("causal", 1), ("block_causal", 24), ("two_stream", 1), ("two_stream", 24))


@pytest.mark.parametrize("segmented", slow_unless((False, True), True))
@pytest.mark.parametrize(("contract", "block_length"), CONTRACTS)
def test_agrees_with_xla(contract, block_length, segmented):
    length = 256
    segments = packed(2, length) if segmented else None
    if segmented and contract == "two_stream":
        segments = jnp.tile(packed(2, length // 2), (1, 2))
    assert_agree("splash", visibility(contract, block_length, segments), *problem(length))


@pytest.mark.parametrize("length", slow_unless((8, 100, 200), 100))
@pytest.mark.parametrize(("contract", "block_length"), CONTRACTS)
def test_lengths_that_are_no_multiple_of_a_tile(contract, block_length, length):
    assert_agree("splash", visibility(contract, block_length), *problem(length, heads=2, kv_heads=2))


@pytest.mark.parametrize(("heads", "kv_heads"), slow_unless(((4, 2), (4, 1), (6, 3)), (4, 1), (6, 3)))
def test_grouped_heads(heads, kv_heads):
    assert_agree("splash", visibility("block_causal", 32), *problem(128, heads, kv_heads))


@pytest.mark.parametrize("size", slow_unless((8, 32, 80, 128), 8, 80))
def test_head_sizes(size):
    assert_agree("splash", visibility("bidirectional"), *problem(64, size=size))


def test_fewer_queries_than_keys():
    """A window against a cache: segments say which slots are filled."""
    rows, window, slots = 2, 32, 160
    filled = jnp.asarray([[1] * 100 + [0] * 60, [1] * 160], jnp.int32)
    seen = visibility("bidirectional", segments=jnp.ones((rows, window), jnp.int32), keys=Places(filled, None))
    assert_agree("splash", seen, *problem(window, keys=slots))


def test_bfloat16():
    seen = visibility("two_stream", 16, jnp.tile(packed(2, 64), (1, 2)))
    assert_agree("splash", seen, *problem(128, dtype=jnp.bfloat16), tolerance=3e-2)


@pytest.mark.parametrize("mesh", slow_unless(
    ({"replica": 2, "tensor": 4}, {"fsdp": 8}, {"fsdp": 2, "context": 4}, {"replica": 2, "context": 2, "tensor": 2}),
    {"fsdp": 8}, {"replica": 2, "context": 2, "tensor": 2}))
@pytest.mark.parametrize(("contract", "block_length"), slow_unless(
    (("bidirectional", 1), ("causal", 1), ("two_stream", 24)), ("causal", 1), ("two_stream", 24)))
def test_split_over_devices(contract, block_length, mesh):
    arrays = problem(512, heads=4, kv_heads=2, rows=8, size=16)
    seen = visibility(contract, block_length, jnp.tile(packed(8, 256), (1, 2)))
    truth = values_and_gradients("xla", *arrays, seen)
    mesh = make_mesh(mesh)
    spread = jax.device_put((arrays, seen), NamedSharding(mesh, PartitionSpec(BATCH_AXES, LENGTH_AXIS)))
    with jax.set_mesh(mesh):
        ours = values_and_gradients("splash", *spread[0], spread[1])
    for a, b in zip(ours, truth, strict=True):
        assert jnp.allclose(a, b, atol=2e-5)


def test_no_array_of_length_squared():
    """Neither among the constants nor in the program outside the kernel."""
    length = 8192
    arrays = [jax.ShapeDtypeStruct((1, length, 1, 64), jnp.bfloat16)] * 3
    with jax.sharding.use_abstract_mesh(one_device()):
        jaxpr = jax.make_jaxpr(lambda q, k, v: attend("splash", q, k, v, visibility("two_stream", 32)))(*arrays)
    consts = [c.size for c in jaxpr.consts]
    shapes = [v.aval.size for e in jaxpr.eqns for v in e.outvars]
    assert max(consts + shapes) < length**2 / 100


@pytest.mark.parametrize(("block_length", "expected"), ((4, 8 + 36 + 36), (256, 8 + 28 + 36)))
def test_hidden_tiles_are_skipped(block_length, expected):
    """Of 16 x 16 tiles two_stream visits the noisy diagonal and a triangle of clean keys for each half."""
    seen = visibility("two_stream", block_length)
    kernel = splash._kernel(seen, 1, (4096, 4096), (4096, 4096), (256, 256), 1, False)
    visited = int((kernel.fwd_mask_info.block_mask > 0).sum())
    assert visited == expected
    assert kernel.fwd_mask_info.partial_mask_blocks is None


def one_device(platform="tpu", kind="TPU v5 lite"):
    device = jax.sharding.AbstractDevice(device_kind=kind, num_cores=1, platform=platform)
    return AbstractMesh((1,), ("fsdp",), axis_types=(AxisType.Auto,), abstract_device=device)


@pytest.mark.parametrize(("contract", "block_length"), CONTRACTS)
def test_lowers_for_tpu_without_libtpu(contract, block_length):
    seen = visibility(contract, block_length, jnp.ones((1, 256), jnp.int32))

    def loss(query, key, value, cotangent):
        with jax.sharding.use_abstract_mesh(one_device()):
            return (attend("splash", query, key, value, seen) * cotangent).sum()

    traced = jax.jit(jax.grad(loss, argnums=(0, 1, 2))).trace(*problem(256, rows=1, dtype=jnp.bfloat16))
    assert traced.lower(lowering_platforms=("tpu",)).as_text().count("tpu_custom_call") == 3


@pytest.mark.parametrize(
    ("change", "message"),
    (
        ({"contract": "permutation"}, "backend='xla'"),
        ({"contract": "causal", "order": jnp.zeros((2, 64), jnp.int32)}, "backend='xla'"),
        ({"contract": "two_stream", "length": 63}, "one even number"),
        ({"dtype": jnp.float16}, "backend='xla'"),
    ),
)
def test_refusals_name_the_remedy(change, message):
    arrays = problem(change.get("length", 64), dtype=change.get("dtype", jnp.float32))
    seen = visibility(change.get("contract", "bidirectional"), order=change.get("order"))
    with pytest.raises(ValueError, match=message):
        attend("splash", *arrays[:3], seen)


def test_rows_must_fit_the_mesh():
    with jax.set_mesh(make_mesh({"fsdp": 8})), pytest.raises(ValueError, match="8 devices cannot share 2 rows"):
        attend("splash", *problem(64)[:3], visibility("bidirectional"))


def test_the_mesh_says_what_it_is_compiled_for():
    assert splash.target_platform() == "cpu"
    with jax.sharding.use_abstract_mesh(one_device()):
        assert splash.target_platform() == "tpu"
    with jax.sharding.use_abstract_mesh(one_device("gpu", "H200")), pytest.raises(ValueError, match="cudnn or xla"):
        attend("splash", *problem(64)[:3], visibility("bidirectional"))


@pytest.mark.parametrize(("length", "shards", "expected"), (
    (1, 1, (128, 128)), (128, 1, (128, 128)), (200, 1, (256, 256)), (640, 1, (640, 128)), (768, 1, (768, 256)),
    (4096, 1, (4096, 512)), (4100, 1, (4352, 256)), (8200, 1, (8704, 512)), (4096, 8, (4096, 512)),
    (1000, 8, (1024, 128)),
))
def test_tiles(length, shards, expected):
    assert splash.tiles(length, shards) == expected
