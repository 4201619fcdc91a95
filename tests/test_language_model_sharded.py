"""``logits`` of a model on a mesh: any number of rows, experts where they are, kernels that the TPU compiler takes."""

import dataclasses
import functools

import jax
import numpy as np
import pytest

from mdlm_jax import language_model
from mdlm_jax.language_model import LanguageModel
from mdlm_jax.models import api
from mdlm_jax.models.config import MoEConfig, TransformerConfig
from mdlm_jax.models.hf.rules import Description
from mdlm_jax.models.sharding import make_mesh
from mdlm_jax.planning import collectives, hlo
from tests.marks import slow_unless
from tests.models.hf.support import random_params

DENSE = TransformerConfig(vocab_size=40, head_size=40, layers=2, d_model=64, heads=4, kv_heads=4, d_ff=96,
                          logit_shift=True)
EXPERTS = dataclasses.replace(DENSE, moe=MoEConfig(
    experts=16, per_token=2, d_ff=128, shared_d_ff=16, router="sigmoid", selection_bias=True, normalize=True))
TIMED = dataclasses.replace(DENSE, conditioning="time", time_features=8, condition_dim=8)
CAUSAL = dataclasses.replace(DENSE, attention="block_causal", block_length=2)
CASES = {
    "fsdp": (DENSE, {"fsdp": 8}), "fsdp and tensor": (DENSE, {"fsdp": 4, "tensor": 2}),
    "expert": (EXPERTS, {"expert": 8}), "expert and fsdp": (EXPERTS, {"expert": 4, "fsdp": 2}),
    "time": (TIMED, {"fsdp": 8}), "context": (CAUSAL, {"fsdp": 4, "context": 2}),
}
TOKENS = np.random.default_rng(0).integers(0, 40, (3, 7))
TIME = np.asarray([0.2, 0.5, 0.9], np.float32)


@functools.cache
def models(name: str) -> tuple[LanguageModel, LanguageModel]:
    """The same model on one device and on eight."""
    config, sizes = CASES[name]
    params = random_params(config)
    sharded = jax.device_put(params, api.shardings(config, make_mesh(sizes)))
    description = Description(config, "")
    return LanguageModel(params, description, None), LanguageModel(sharded, description, None)


@pytest.mark.parametrize("rows", slow_unless([1, 3], 3))
@pytest.mark.parametrize("name", slow_unless(CASES, "fsdp and tensor", "expert and fsdp", "time", "context"))
def test_any_number_of_rows(name, rows):
    alone, sharded = models(name)
    time = TIME[:rows] if alone.config.time_conditioning else None
    expected, found = (model.logits(TOKENS[:rows], time=time) for model in (alone, sharded))
    assert found.shape == (rows, 7, 40)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", slow_unless(CASES, "expert and fsdp", "time", "context"))
def test_padding_is_padding_on_a_mesh_too(name):
    alone, sharded = models(name)
    time = TIME if alone.config.time_conditioning else None
    mask = np.asarray([[0, 0, 1, 1, 1, 1, 1], [1] * 7, [1, 1, 1, 1, 0, 0, 0]])
    expected, found = (np.asarray(model.logits(TOKENS, mask, time=time, raw=True)) for model in (alone, sharded))
    np.testing.assert_allclose(found[mask == 1], expected[mask == 1], rtol=1e-4, atol=1e-4)


def called(monkeypatch, model: LanguageModel, rows: int):
    """What ``logits`` traced, for a look at the program it ran."""
    seen = []
    run = language_model._logits
    monkeypatch.setattr(language_model, "_logits", lambda *arguments: seen.append(arguments) or run(*arguments))
    model.logits(TOKENS[:rows])
    return run.trace(*seen[0])


def test_experts_stay_where_they_are(monkeypatch):
    """No collective is as large as a device's part of one expert matrix of one layer."""
    _, sharded = models("expert")
    travels = collectives.find(hlo.parse(called(monkeypatch, sharded, 3).lower().compile().as_text()))
    part = 16 // 8 * 64 * 128 * 4
    assert travels and max(travel.bytes for travel in travels) < part, travels[:3]


@pytest.mark.parametrize("name", ["fsdp and tensor", "expert"])
def test_weights_travel_no_more_than_once(monkeypatch, name):
    """All that is gathered is the weights that lie over fsdp, each once, and what the few tokens need."""
    _, sharded = models(name)
    travels = collectives.find(hlo.parse(called(monkeypatch, sharded, 3).lower().compile().as_text()))
    tensor = sharded.params["embedding"].sharding.mesh.shape["tensor"]
    weights = sum(leaf.nbytes // (tensor if "tensor" in str(leaf.sharding.spec) else 1)
                  for leaf in jax.tree.leaves(sharded.params) if "fsdp" in str(leaf.sharding.spec))
    activations = 64 * 2**10
    gathered = collectives.totals(travels).get("all-gather", {"bytes": 0})["bytes"]
    assert gathered < weights + activations, (gathered, weights)


@pytest.mark.parametrize("name", slow_unless(
    ["fsdp and tensor", "expert", "expert and fsdp"], "fsdp and tensor", "expert and fsdp"))
def test_it_lowers_for_tpu(monkeypatch, name):
    _, sharded = models(name)
    traced = called(monkeypatch, sharded, 1)
    text = traced.lower(lowering_platforms=("tpu",)).as_text()
    assert "stablehlo.dot_general" in text
    assert ("tpu_custom_call" in text) == (sharded.config.moe is not None)


def test_two_streams_cannot_be_filled_up():
    config = dataclasses.replace(DENSE, attention="two_stream", block_length=1)
    mesh = make_mesh({"fsdp": 2, "context": 4})
    params = jax.device_put(random_params(config), api.shardings(config, mesh))
    model = LanguageModel(params, Description(config, ""), None)
    with pytest.raises(ValueError, match="context=4; give a multiple"):
        model.logits(TOKENS[:, :6])
