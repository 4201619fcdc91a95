"""Plans by arithmetic: against steps compiled for 8 virtual devices, and by hand."""

import dataclasses
import functools
import math

import jax
import pytest

from mdlm_jax.config import MESH_AXES, DataConfig, ProcessConfig, RunConfig, TrainConfig
from mdlm_jax.config.model import ModelConfig
from mdlm_jax.core.process import Process
from mdlm_jax.errors import ConfigError
from mdlm_jax.models import api, presets
from mdlm_jax.models.sharding import make_mesh, weight_sharding
from mdlm_jax.planning import estimate, layout, measure, minimum, picture, report, step, topologies
from mdlm_jax.planning.work import model_flops
from mdlm_jax.training import optimizers
from mdlm_jax.training.build import build_objective
from mdlm_jax.training.state import abstract_state

DENSE = ModelConfig(layers=3, d_model=64, heads=4, d_ff=96, vocab_size=1000, remat="full")
EXPERTS = ModelConfig(layers=3, d_model=64, heads=4, kv_heads=2, vocab_size=1000, head_size=999, moe_experts=8,
                      moe_per_token=2, moe_d_ff=32, moe_shared_d_ff=32, moe_leading_dense=1, moe_selection_bias=True)
MDLM = ModelConfig(layers=2, d_model=64, heads=2, vocab_size=101, norm="layer", norm_bias=True, activation="gelu_tanh",
                   mlp_bias=True, qkv_bias=True, out_bias=True, head_bias=True, qk_norm=True, conditioning="time")
GPT2 = ModelConfig(layers=2, d_model=64, heads=2, vocab_size=101, learned_positions=64, rope_theta=0.0, tied=True)
MESHES = ({"fsdp": 8}, {"replica": 2, "fsdp": 4}, {"fsdp": 4, "tensor": 2}, {"replica": 2, "expert": 4},
          {"fsdp": 2, "expert": 2, "tensor": 2})
SMALL = RunConfig(model=DENSE, data=DataConfig(length=32), train=TrainConfig(batch_size=32, ema_decay=0.0))


def sized(mesh):
    return dict.fromkeys(MESH_AXES, 1) | mesh


@functools.cache
def declared(network):
    return api.abstract(network), api.logical_axes(network)


@pytest.mark.parametrize("mesh", range(len(MESHES)))
@pytest.mark.parametrize("model", (DENSE, EXPERTS, MDLM, GPT2), ids=("dense", "experts", "mdlm", "gpt2"))
def test_the_layout_is_that_of_the_network(model, mesh):
    """Numbers of every leaf on a device, and so the least traffic, as jax's shardings have them."""
    network, sizes = model.transformer(model.vocab_size), sized(MESHES[mesh])
    devices, (leaves, axes) = make_mesh(MESHES[mesh]), declared(network)
    shapes = jax.tree.map(lambda leaf, names: jax.ShapeDtypeStruct(
        leaf.shape, leaf.dtype, sharding=weight_sharding(devices, names, leaf.shape)), leaves, axes)
    held = {jax.tree_util.keystr(path, simple=True, separator="/"): math.prod(leaf.sharding.shard_shape(leaf.shape))
            for path, leaf in jax.tree.leaves_with_path(shapes)}
    assert layout.local(network, sizes) == held
    least = minimum.of_leaves(layout.splits(network, sizes).values(), 4, sizes, 2)
    assert least == pytest.approx(minimum.traffic(shapes, "float32", sizes, 2))


@pytest.mark.parametrize(("mesh", "changes"), (
    (0, {}), (1, {"ema_decay": 0.99}), (2, {"optimizer": "lion"}), (1, {"optimizer": "muon"}),
    (0, {"freeze": "network/embedding,network/layers/mlp/*"}),
), ids=("adamw", "ema", "lion", "muon", "frozen"))
def test_the_state_is_that_of_the_optimiser(mesh, changes):
    """To the byte, but for the few counters of steps."""
    config = dataclasses.replace(SMALL, train=dataclasses.replace(SMALL.train, **changes))
    devices = make_mesh(MESHES[mesh])
    objective, _ = step.objective_of(config, devices)
    state = abstract_state(objective, optimizers.optimizer(config.train), config.train.ema_decay > 0, devices)
    held = sum(math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize
               for leaf in jax.tree.leaves(state))
    found = estimate.memory_of(config, estimate.network_of(config), sized(MESHES[mesh]))
    assert 0 < held - found["state"] <= 32


def test_a_compiled_plan_says_the_same(monkeypatch):
    """`measure.plan` of 8 virtual devices that stand for a v5e:2x4: arguments, least traffic, model FLOPs."""
    topology, sizes = topologies.parse("v5e:2x4"), sized(MESHES[1])
    config = dataclasses.replace(SMALL, train=dataclasses.replace(SMALL.train, ema_decay=0.99))
    monkeypatch.setattr(topologies, "make_mesh", lambda topology, sizes: make_mesh(sizes))
    compiled, found = measure.plan(config, topology, sizes), estimate.estimate(config, topology, sizes)
    counters = compiled["memory"]["arguments"] - found["memory"]["state"] - found["memory"]["batch"]
    assert 0 < counters <= 32
    assert compiled["traffic"]["minimum"] == found["traffic"]["minimum"]
    assert compiled["flops"]["formula_with_kernels"] == pytest.approx(found["flops"]["formula_with_kernels"], rel=1e-6)
    assert compiled["bound"]["seconds"].keys() == found["bound"]["seconds"].keys()
    assert compiled["bound"]["step"] == max(compiled["bound"]["seconds"].values()) > 0
    assert "GiB" in report.text(compiled) and len(picture.plan_figure(compiled).axes) == 2


@pytest.mark.parametrize(("train", "model"), (
    ({}, {}), ({"batch_size": 24}, {}), ({"half_head": False}, {}), ({"time_sampling": "iid"}, {}),
    ({"each_twice": True, "weighting": "constant"}, {}), ({"objective": "continuous"}, {}),
    ({"objective": "discrete:10"}, {}), ({"objective": "draft_edit:0.1,1,3"}, {}),
    ({"objective": "dparallel:8,2,0.5"}, {}), ({"objective": "dparallel:64,2,1", "half_head": False}, {}),
    ({"objective": "dmax:1,1,0"}, {}), ({"objective": "dmax:1,1,0", "weighting": "constant", "level_law": "fixed:0.75",
                                         "half_head": False}, {"attention": "block_causal", "block_length": 8}),
    ({"objective": "autoregressive"}, {"attention": "causal", "logit_shift": True}),
    ({"objective": "any_order"}, {"attention": "permutation"}),
    ({"objective": "any_subset:0.1,0.6"}, {"attention": "permutation"}),
    ({"objective": "block"}, {"attention": "block_causal", "block_length": 8}),
    ({"objective": "block", "each_twice": True}, {"attention": "block_causal", "block_length": 8}),
    ({"objective": "block"}, {"attention": "block_causal", "block_length": 32}),
    ({"objective": "levenshtein:1,3"}, {"attention": "block_causal", "block_length": 8, "head_size": 1002}),
    ({"objective": "levenshtein:1,2"}, {"attention": "block_causal", "block_length": 32, "head_size": 1002}),
), ids=("pairs", "single", "full_head", "iid", "twice", "continuous", "discrete", "draft_edit",
        "dparallel", "dparallel_row", "dmax", "dmax_blocks", "autoregressive", "any_order", "any_subset", "block",
        "block_twice", "one_block", "levenshtein", "levenshtein_one_block"))
def test_model_flops_are_those_of_the_objective(train, model):
    config = RunConfig(model=dataclasses.replace(DENSE, **model), data=DataConfig(length=32),
                       train=TrainConfig(**{"batch_size": 32, "ema_decay": 0.0} | train))
    objective, _ = step.objective_of(config, make_mesh({"fsdp": 8}))
    found = estimate.flops_of(config, estimate.network_of(config), sized({"fsdp": 8}))
    assert 8 * found["formula_with_kernels"] == pytest.approx(
        objective.train_flops(config.train.batch_size, 32), rel=1e-6)


def test_a_mixture_is_counted_on_every_latent_and_not_planned():
    config = RunConfig(model=dataclasses.replace(DENSE, latent=8), data=DataConfig(length=32),
                       train=TrainConfig(batch_size=32, ema_decay=0.0, init_from="run", objective="di4c:8,4,0.1,1"))
    network = estimate.network_of(config)
    objective, _ = step.objective_of(config, make_mesh({"fsdp": 8}))
    assert model_flops(config, network, sized({"fsdp": 8})) == objective.train_flops(32, 32)
    with pytest.raises(ConfigError, match="plan the run of train.init_from"):
        estimate.flops_of(config, network, sized({"fsdp": 8}))


@pytest.mark.parametrize("train", (
    {"objective": "joint:3"}, {"objective": "planner:2"}, {"objective": "prism:4"}, {"objective": "codd:8"},
    {"objective": "sdtt:8"}, {"objective": "duo:8"}), ids=("joint", "planner", "prism", "codd", "sdtt", "duo"))
def test_small_networks_beside_one_that_stays_and_teachers(train):
    """Their FLOPs are known, a plan of memory and traffic is not."""
    source = "trajectories:there" if train["objective"].startswith("joint") else "language:hmm"
    config = RunConfig(model=DENSE, data=DataConfig(length=32, source=source),
                       process=ProcessConfig(mixing=1.0 if train["objective"] == "duo:8" else 0.0),
                       train=TrainConfig(**{"batch_size": 32, "ema_decay": 0.0, "init_from": "run"} | train))
    network = estimate.network_of(config)
    objective, _ = step.objective_of(config, make_mesh({"fsdp": 8}))
    assert model_flops(config, network, sized({"fsdp": 8})) == objective.train_flops(32, 32)
    if train["objective"] == "joint:3":
        drawn = dataclasses.replace(config, train=dataclasses.replace(config.train, on_policy=0.5))
        assert model_flops(drawn, network, sized({"fsdp": 8})) == dataclasses.replace(
            objective, on_policy=0.5).train_flops(32, 32)
    with pytest.raises(ConfigError, match="plan the run of train.init_from"):
        estimate.flops_of(config, network, sized({"fsdp": 8}))


def test_a_head_on_two_networks():
    """As the small networks: its FLOPs are known with the twin's shape, a plan is not."""
    config = RunConfig(model=DENSE, data=DataConfig(length=32, source="language:hmm"), train=TrainConfig(
        objective="maria", batch_size=32, ema_decay=0.0, init_from="run", twin="other"))
    network, process = estimate.network_of(config), Process(1000, 999)
    twin = dataclasses.replace(network, attention="causal", logit_shift=True, layers=1)
    objective, _ = build_objective(config, network, process, 8, twin)
    assert model_flops(config, network, sized({"fsdp": 8}), twin) == objective.train_flops(32, 32)
    with pytest.raises(ConfigError, match="plan the run of train.init_from"):
        estimate.flops_of(config, network, sized({"fsdp": 8}))
    with pytest.raises(ConfigError, match="plan the run of train.init_from"):
        step.objective_of(config, make_mesh({"fsdp": 8}))


def test_memory_by_hand():
    """LLaDA-8B on replica 16 x fsdp 16, two rows of 4096 a device."""
    network = presets.get("llada-8b")
    network = dataclasses.replace(network, dtype="bfloat16", remat="full")
    config = RunConfig(model=ModelConfig(**presets.fields("llada-8b") | {"dtype": "bfloat16", "remat": "full"}),
                       data=DataConfig(length=4096), train=TrainConfig(batch_size=512, ema_decay=0.0))
    found = estimate.memory_of(config, network, sized({"replica": 16, "fsdp": 16}))
    norms = (2 * 32 + 1) * 4096  # whole on every device
    held = (8_015_581_184 - norms) / 16 + norms
    assert found["state"] == 12 * held and found["gradients"] == 4 * held
    assert found["batch"] == 2 * 4096 * 14
    assert found["saved"] == 32 * 8192 * 4096 * 2
    assert found["working"] == 4096 * 126464 * 6 + 12 * (1 << 22)  # the head's table and its gradient, three chunks
    assert found["peak"] / 2**30 == pytest.approx(13.64, rel=0.1)  # compiled, benchmarks/plans.md


def test_what_is_saved_of_a_token_by_hand():
    network = dataclasses.replace(DENSE.transformer(1000), dtype="bfloat16")
    of = {remat: estimate.saved_of_token(dataclasses.replace(network, remat=remat))
          for remat in ("full", "context", "matmuls", "none", "offload")}
    assert of["offload"] == 0 and of["full"] == 2 * 64
    assert of["context"] == 2 * 128 + 4 * 4
    assert of["matmuls"] == 2 * (64 + 64 + 3 * 64 + 2 * 64 + 2 * 96) + 16
    assert of["none"] > of["matmuls"]


def test_traffic_by_hand():
    """Two slices of two replicas each, fsdp 4, tensor 2."""
    sizes = sized({"replica": 4, "fsdp": 4, "tensor": 2})
    network = DENSE.transformer(1000)
    wire, across = estimate.wire_of(SMALL, network, sizes, {"all-gather": 800.0, "reduce-scatter": 400.0,
                                                            "all-reduce": 100.0}, slices=2)
    assert wire["fsdp"] == 1200 * 3 / 4
    assert wire["replica"] == 100.0  # 2 (2 - 1) / 2 of 100
    assert across == 50.0  # each of two devices sends half of the sum once
    tokens = 32 // 16 * 32
    assert wire["tensor"] == tokens * 64 * 4 * (3 * 2 * 3 + 2)


def test_remat_gathers_tokens_for_the_experts_again_but_scatters_no_results():
    """As compiled for LLaDA2-mini on v5e:16x16: five exchanges a layer, four without remat."""
    config, sizes, sent = dataclasses.replace(SMALL, model=EXPERTS), sized({"replica": 2, "expert": 4}), {}
    for remat in ("none", "full"):
        network = dataclasses.replace(EXPERTS.transformer(1000), remat=remat)
        sent[remat] = estimate.wire_of(config, network, sizes, {})[0]["expert"]
    row = 32 // 8 * 32 * 64 * 4
    assert sent["full"] - sent["none"] == 3 / 4 * 2 * 4 * row  # two layers of experts, three quarters of four parts


@pytest.mark.parametrize(("name", "group", "rings"), (
    ("v5e:16x16", 2, 1), ("v5e:16x16", 16, 1), ("v5e:16x16", 128, 1), ("v5e:16x16", 256, 2),
    ("v5p:8x8x8", 8, 1), ("v5p:8x8x8", 64, 2), ("v5p:8x8x8", 512, 3), ("tpu7x:4x4x4", 16, 1), ("tpu7x:4x4x4", 32, 2),
    ("v5e:1x1", 1, 1), ("v5e:1x4", 4, 1),
))
def test_a_ring_uses_the_axes_it_fills(name, group, rings):
    from mdlm_jax.planning.bound import speed
    from mdlm_jax.planning.chips import CHIPS

    topology = topologies.parse(name)
    assert speed(topology, group) == rings * CHIPS[topology.generation].ring


def test_the_bound_of_gpus_by_hand():
    """LLaDA-8B-like bytes on 16 nodes of 8 H100: a node's gather by NVLink, replicas by one adapter a GPU."""
    from mdlm_jax.planning.bound import bound, speed

    nodes = topologies.parse("h100:8x16")
    assert speed(nodes, 8) == 450e9 and speed(nodes, 16, inside=8) == 50e9
    assert speed(nodes, 128) == 400e9  # eight adapters of a node carry eight different parts
    assert speed(nodes, 4, inside=2) == 450e9 and speed(nodes, 8, inside=2) == 200e9
    found = bound(nodes, 989e12, 494.5e12, 3350e9 / 2, 0.25, 25e9)
    assert found["seconds"] == {"compute": 1.0, "memory": 0.5, "interconnect": 0.25, "data_center": 0.5}
    assert (found["slowest"], found["step"], found["mfu"]) == ("compute", 1.0, 0.5)


def test_rows_that_devices_cannot_share():
    topology = topologies.parse("v5e:4x4")
    config = dataclasses.replace(SMALL, train=dataclasses.replace(SMALL.train, batch_size=24))
    with pytest.raises(ConfigError, match="is 24 rows, which 16 devices cannot share evenly"):
        estimate.estimate(config, topology, topology.default_mesh())


def test_a_plan_needs_a_vocabulary():
    with pytest.raises(ConfigError, match="model.vocab_size=0"):
        estimate.network_of(RunConfig())
