"""cuDNN against plain XLA where there is a GPU; elsewhere its refusals and how it is asked."""

import jax
import jax.numpy as jnp
import pytest

from mdlm_jax.models.attention import cudnn
from mdlm_jax.models.attention.dispatch import attend
from mdlm_jax.models.attention.visibility import Places
from tests.models.attention.contracts import assert_agree, packed, problem, visibility

on_gpu = pytest.mark.skipif(jax.default_backend() != "gpu", reason="needs an NVIDIA GPU and jax[cuda12]")


def gpu_mesh():
    device = jax.sharding.AbstractDevice(device_kind="NVIDIA H200", num_cores=132, platform="gpu")
    auto = (jax.sharding.AxisType.Auto,)
    return jax.sharding.AbstractMesh((1,), ("fsdp",), axis_types=auto, abstract_device=device)


@pytest.mark.skipif(jax.default_backend() == "gpu", reason="refused where there is no GPU")
def test_refused_without_a_gpu():
    with pytest.raises(ValueError, match="NVIDIA GPUs, not on cpu; set backend='xla'"):
        attend("cudnn", *problem(64, dtype=jnp.bfloat16)[:3], visibility("bidirectional"))


@pytest.mark.parametrize(("change", "message"), (
    ({"dtype": jnp.float32}, "bfloat16 or float16, not float32"),
    ({"size": 20}, "multiple of 8"),
    ({"size": 264}, "up to 256"),
    ({"length": 63, "contract": "block_causal"}, "even lengths"),
))
def test_refusals_name_the_remedy(change, message):
    arrays = problem(change.get("length", 64), size=change.get("size", 64), dtype=change.get("dtype", jnp.bfloat16))
    with jax.sharding.use_abstract_mesh(gpu_mesh()), pytest.raises(ValueError, match=message):
        attend("cudnn", *arrays[:3], visibility(change.get("contract", "bidirectional")))


def test_how_it_is_asked():
    query, key, _, _ = problem(64)
    assert cudnn.how(query, key, visibility("bidirectional")) == {}
    assert cudnn.how(query, key, visibility("causal")) == {"is_causal": True}
    order = jnp.zeros((2, 64), jnp.int32)
    for seen in (visibility("causal", order=order), visibility("causal", segments=packed(2, 64)),
                 visibility("bidirectional", segments=packed(2, 64)), visibility("two_stream", 8)):
        assert cudnn.how(query, key, seen)["mask"].shape[1:] == (1, 64, 64)
    few = visibility("causal", keys=Places(None, None))
    assert "mask" in cudnn.how(query[:, :32], key, few), "cuDNN aligns causal rectangles in its own way"


@on_gpu
@pytest.mark.parametrize("segmented", (False, True))
@pytest.mark.parametrize(("contract", "block_length"), (
    ("bidirectional", 1), ("causal", 1), ("block_causal", 24), ("two_stream", 24), ("permutation", 1)))
def test_agrees_with_xla(contract, block_length, segmented):
    segments = jnp.tile(packed(2, 128), (1, 2)) if segmented else None
    order = jax.random.permutation(jax.random.key(0), jnp.tile(jnp.arange(256), (2, 1)), axis=1, independent=True)
    seen = visibility(contract, block_length, segments, order.astype(jnp.int32) if contract == "permutation" else None)
    assert_agree("cudnn", seen, *problem(256, heads=4, kv_heads=2, dtype=jnp.bfloat16), tolerance=4e-2)
