"""What decoding needs in memory: the arithmetic against real arrays, and the refusal before anything is compiled."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mdlm_jax.config import ConfigError
from mdlm_jax.models import api
from mdlm_jax.models.config import TransformerConfig
from mdlm_jax.models.denoise import Denoiser
from mdlm_jax.models.sharding import make_mesh
from mdlm_jax.sampling import memory, program
from mdlm_jax.sampling.canvas import blank
from mdlm_jax.sampling.loop import begin
from mdlm_jax.sampling.low_confidence import LowConfidence

VOCAB, BLOCK, LENGTH = 40, 4, 16
NETWORK = TransformerConfig(VOCAB, VOCAB, layers=2, d_model=16, heads=4, kv_heads=2, d_ff=32, attention="block_causal",
                            block_length=BLOCK)
MODEL, PARAMS = Denoiser(NETWORK), api.init(NETWORK, jax.random.key(0))
DECODER = LowConfidence(VOCAB - 1, head_budget=3 * 2 * VOCAB)  # 3 positions of each of 2 rows at once
CALL = {"steps": 16, "block_length": BLOCK, "cache": "block"}


def start(params=PARAMS, rows=2, model=MODEL, **options):
    return begin(model, params, blank(VOCAB - 1, rows, LENGTH), DECODER, **CALL | options)


def test_bytes_are_those_of_the_arrays():
    layout, _, now = start()
    found = memory.need(MODEL, PARAMS, DECODER, rows=2, slots=layout.slots)
    assert found.parameters == sum(x.nbytes for x in jax.tree.leaves(PARAMS))
    assert found.cache == 2 * sum(x.nbytes for x in jax.tree.leaves(now.cache))
    assert found.logits == 3 * 2 * VOCAB * 4
    assert memory.need(MODEL, PARAMS, DECODER, rows=2, slots=0).cache == 0


def test_on_a_mesh_it_is_one_devices_share():
    mesh = make_mesh({"fsdp": 4, "tensor": 2})
    params = jax.device_put(PARAMS, api.shardings(NETWORK, mesh))
    layout, _, now = start(params, rows=4, mesh=mesh)
    found = memory.need(MODEL, params, DECODER, rows=4, slots=layout.slots, mesh=mesh)
    mine = lambda tree: sum(x.addressable_shards[0].data.nbytes for x in jax.tree.leaves(tree))  # noqa: E731
    assert found.parameters == mine(params) and found.cache == 2 * mine(now.cache)
    shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), params)
    assert memory.need(MODEL, shapes, DECODER, rows=4, slots=layout.slots, mesh=mesh.abstract_mesh) == found


def test_a_budget_is_kept_to_the_byte_and_nothing_is_compiled():
    layout = start()[0]
    total = memory.need(MODEL, PARAMS, DECODER, rows=2, slots=layout.slots).total
    start(memory_budget=total)
    before = program.block._cache_size()
    with pytest.raises(ConfigError, match=r"memory: decoding needs at least .* memory_budget allows .*: parameters .*, "
                                          r"cache .* \(2 of 2 rows of 16 slots\), logits .*; take fewer rows"):
        start(memory_budget=total - 1)
    assert program.block._cache_size() == before
    model = Denoiser(dataclasses.replace(NETWORK, attention="bidirectional", block_length=1))
    guided = memory.need(model, PARAMS, DECODER, rows=2, slots=LENGTH + 1, guided=True)
    assert guided.cache == 2 * memory.need(model, PARAMS, DECODER, rows=2, slots=LENGTH + 1).cache
    with pytest.raises(ConfigError, match="2 of 4 rows of 17 slots"):
        begin(model, PARAMS, blank(VOCAB - 1, 2, LENGTH, np.array([1])), DECODER, guidance=1.0,
              memory_budget=guided.total - 1, **CALL | {"cache": "dual"})
    with pytest.raises(ConfigError, match="memory_budget=0: must be a positive"):
        start(memory_budget=0)


def test_the_device_sets_the_limit(monkeypatch):
    whole = memory.limit(PARAMS)
    assert 1 << 28 < whole < 1 << 50
    mesh = make_mesh({"fsdp": 8})
    assert memory.limit(jax.device_put(PARAMS, api.shardings(NETWORK, mesh))) == whole // 8  # one machine
    shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), PARAMS)
    assert memory.limit(shapes) is None
    large = dataclasses.replace(NETWORK, layers=80, heads=64, kv_heads=64, d_model=8192)
    with pytest.raises(ConfigError, match="on a device and it has"):
        begin(Denoiser(large), PARAMS, blank(VOCAB - 1, 8, 65536), DECODER, **CALL | {"steps": 16384})
    monkeypatch.setattr(memory, "limit", lambda params: 1000)
    with pytest.raises(ConfigError, match="it has 9.31e-07: parameters .*, logits .* bfloat16 weights, or a mesh"):
        start(cache="none")


def test_numbers_of_the_8b_shape():
    """LLaDA-8B in bfloat16: 14.9 GiB of weights; a cache of 4096 slots is 2 GiB a row, and two are alive."""
    big = TransformerConfig(126464, 126464, layers=32, d_model=4096, heads=32, kv_heads=32, d_ff=12288,
                            dtype="bfloat16")
    shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, jnp.bfloat16), api.abstract(big))
    found = memory.need(Denoiser(big), shapes, LowConfidence(126336), rows=1, slots=4096)
    assert round(found.parameters / 2**30, 1) == 14.9 and round(found.cache / 2**30, 2) == 4.0
    assert found.logits == 4 * 33 * 126464
