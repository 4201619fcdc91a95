"""Runs of adapters: only they train, by the chain rule, and their checkpoints give the whole network."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from mdlm_jax.config import ConfigError, TrainConfig
from mdlm_jax.core.process import Process
from mdlm_jax.data.pipeline import Pipeline
from mdlm_jax.data.tokenizers import ByteTokenizer
from mdlm_jax.models import api
from mdlm_jax.models.config import TransformerConfig
from mdlm_jax.models.lora import Lora
from mdlm_jax.models.sharding import make_mesh
from mdlm_jax.training import adapters, optimizers, saved, trainer
from mdlm_jax.training.checkpoints import Checkpoints
from mdlm_jax.training.objectives.count import CountObjective
from mdlm_jax.training.objectives.genmd4 import GenMD4Objective
from mdlm_jax.training.state import abstract_state, init_state, sharded_init, state_shardings
from mdlm_jax.training.step import make_train_step
from mdlm_jax.training.trainer import Trainer
from tests.marks import slow_unless
from tests.training import tiny

LORA = {"lora_rank": 3, "lora_alpha": 6.0, "lora_targets": "*/attention/query, */mlp/down", "init_from": "elsewhere"}
TARGETS = ("query", "down")


def one():
    return make_mesh({"replica": 1, "fsdp": 1, "tensor": 1}, jax.devices()[:1])


def start(objective, train, rule, mesh):
    """A state whose adapters are not at their start, where B is zero and A gets no gradient."""
    state = jax.device_get(init_state(objective, rule, train.ema_decay > 0, jax.random.key(3), adapters.of(train)))
    rng = np.random.default_rng(1)
    shaken = jax.tree.map(lambda x: 0.3 * rng.standard_normal(x.shape, np.float32), state.trainable)
    state = dataclasses.replace(state, trainable=shaken)
    layout = state_shardings(objective, rule, train.ema_decay > 0, mesh, adapters.of(train))
    return jax.device_put(state, layout)


def pairs(tree):
    layers = tree["adapters"]["layers"]
    return {"query": layers["attention"]["query"], "down": layers["mlp"]["down"]}


def test_the_names_and_the_default_are_those_of_the_library():
    assert adapters.of(TrainConfig()) is None
    assert adapters.of(TrainConfig(lora_rank=16, init_from="x")) == Lora()
    assert adapters.of(TrainConfig(**LORA)) == Lora(3, 6.0, ("*/attention/query", "*/mlp/down"))


def test_gradients_are_those_of_the_whole_weights_by_the_chain_rule():
    """W + s A B: dA = s dW B^T and dB = s A^T dW, with dW of a run that trains everything, at the merged weights."""
    objective, rule = CountObjective(tiny.NETWORK, tiny.process()), optax.sgd(1.0)
    train = TrainConfig(batch_size=4, ema_decay=0.0, **LORA)
    plain = TrainConfig(batch_size=4, ema_decay=0.0)
    state, batch = start(objective, train, rule, one()), tiny.batch(4)
    before, frozen = pairs(jax.device_get(state.trainable)), jax.device_get(state.frozen)
    merged = jax.device_get(adapters.merged(adapters.of(train), state.trainable, state.frozen))
    kernels = {"query": ("attention", "query"), "down": ("mlp", "down")}
    for name, (part, leaf) in kernels.items():
        a, b = (np.asarray(before[name][x], np.float64) for x in "ab")
        expected = frozen["network"]["layers"][part][leaf] + 2.0 * np.einsum(
            "lir,lr...->li...", a.reshape(a.shape[0], -1, 3), b).reshape(frozen["network"]["layers"][part][leaf].shape)
        np.testing.assert_allclose(merged["network"]["layers"][part][leaf], expected, rtol=1e-5, atol=1e-6)

    whole = jax.device_put(init_state(objective, rule, False, jax.random.key(3)),
                           state_shardings(objective, rule, False, one()))
    whole = dataclasses.replace(whole, trainable=jax.device_put(merged, jax.devices()[0]))
    trained, there = make_train_step(objective, rule, plain, one())(whole, batch)
    after, here = make_train_step(objective, rule, train, one())(state, batch)
    assert float(here["totals"].mean()) == pytest.approx(float(there["totals"].mean()), rel=1e-6)
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(after.frozen), frozen)
    for name, (part, leaf) in kernels.items():
        moved_to = np.asarray(trained.trainable["network"]["layers"][part][leaf])
        gradient = merged["network"]["layers"][part][leaf] - moved_to
        a, b = before[name]["a"], before[name]["b"]
        flat = gradient.reshape(a.shape[0], a.reshape(a.shape[0], -1, 3).shape[1], -1)
        da = 2.0 * np.einsum("lio,lro->lir", flat, b.reshape(b.shape[0], 3, -1)).reshape(a.shape)
        db = 2.0 * np.einsum("lir,lio->lro", a.reshape(a.shape[0], -1, 3), flat).reshape(b.shape)
        moved = pairs(jax.device_get(after.trainable))[name]
        np.testing.assert_allclose(a - moved["a"], da, rtol=1e-3, atol=1e-5)
        np.testing.assert_allclose(b - moved["b"], db, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("changes", slow_unless(
    [{"microbatches": 2}, {"mesh": {"fsdp": 4, "tensor": 2}}], "mesh", ids=["micro", "mesh"]))
def test_microbatches_and_a_mesh_change_nothing(changes):
    found = []
    for mesh, microbatches in ((one(), 1), (make_mesh(changes.get("mesh", {"fsdp": 8})),
                                            changes.get("microbatches", 1))):
        shards = mesh.shape["fsdp"]
        train = TrainConfig(batch_size=16, microbatches=microbatches, warmup_steps=1, **LORA)
        network = dataclasses.replace(tiny.NETWORK, d_model=32)
        objective, rule = CountObjective(network, tiny.process(), data_shards=shards), optimizers.optimizer(train)
        if microbatches > 1:
            mesh = one()
        state, step = start(objective, train, rule, mesh), make_train_step(objective, rule, train, mesh)
        losses = []
        for n in range(3):
            state, metrics = step(state, tiny.batch(16, seed=n))
            losses.append(float(metrics["totals"].mean()))
        found.append((losses, jax.device_get(state.trainable)))
    np.testing.assert_allclose(found[1][0], found[0][0], rtol=2e-5)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-3), found[1][1], found[0][1])


def test_moments_and_averages_are_the_adapters_alone_and_lie_like_them():
    train = TrainConfig(batch_size=8, **LORA | {"lora_targets": "*"})
    mesh, rule = make_mesh({"fsdp": 4, "tensor": 2}), optimizers.optimizer(train)
    objective = CountObjective(dataclasses.replace(tiny.NETWORK, d_model=32), tiny.process(), data_shards=4)
    state = sharded_init(objective, rule, True, mesh, 0, adapters.of(train))
    count = sum(leaf.size for leaf in jax.tree.leaves(state.trainable))
    assert optimizers.trainable_parameters(train, state.trainable) == count
    assert sum(leaf.size for leaf in jax.tree.leaves(state.optimizer) if leaf.ndim) == 2 * count
    assert sum(leaf.size for leaf in jax.tree.leaves(state.ema)) == count
    assert sum(leaf.size for leaf in jax.tree.leaves(state.frozen)) == api.num_parameters(objective.network)
    moment = state.optimizer[1][0].mu["adapters"]["layers"]["attention"]["query"]["a"]
    assert moment.sharding == state.trainable["adapters"]["layers"]["attention"]["query"]["a"].sharding
    assert not moment.sharding.is_fully_replicated
    wanted = abstract_state(objective, rule, True, mesh, adapters.of(train))
    jax.tree.map(lambda a, b: (a.shape, a.sharding) == (b.shape, b.sharding) or pytest.fail(), state, wanted)


def test_a_learned_schedule_trains_beside_adapters():
    train = TrainConfig(batch_size=4, ema_decay=0.0, warmup_steps=1, objective="genmd4:1", **LORA)
    objective, rule = GenMD4Objective(tiny.NETWORK, tiny.process()), optimizers.optimizer(train)
    state, step = start(objective, train, rule, one()), make_train_step(objective, rule, train, one())
    before = jax.device_get(state.trainable)
    assert sorted(before) == ["adapters", "schedule"]
    for n in range(2):
        state, _ = step(state, tiny.batch(4, seed=n))
    after = jax.device_get(state.trainable)
    assert all(jax.tree.leaves(jax.tree.map(lambda a, b: bool((a != b).any()), before, after)))


# Whole runs -----------------------------------------------------------------------------------------------------------


class Stop(Exception):
    """What interrupts a run in these tests."""


def make(workdir, **more):
    rows = np.random.default_rng(0).integers(0, 256, (20, tiny.LENGTH))
    pipeline = Pipeline(rows, batch_size=4, seed=0, packing="concat", tokenizer=ByteTokenizer())
    network = TransformerConfig(259, 259, layers=2, d_model=16, heads=2, kv_heads=2, d_ff=32)
    train = TrainConfig(batch_size=4, steps=6, log_every=1, checkpoint_every=2, warmup_steps=2, ema_decay=0.5,
                        learning_rate=0.05, **LORA | more)
    base = api.init(network, jax.random.key(77))
    checkpoints = Checkpoints(workdir / "checkpoints", train.keep_checkpoints)
    return Trainer(train, CountObjective(network, Process(259, 256)), pipeline, one(), workdir, checkpoints,
                   {"config.json": "{}"}, 4, start_from=lambda: {"network": jax.tree.map(jnp.copy, base)}), base


@pytest.mark.parametrize("ema_decay", slow_unless([0.5, 0.0], 0.0))
def test_a_run_goes_on_bit_for_bit_and_its_checkpoint_gives_the_merged_network(ema_decay, tmp_path, monkeypatch):
    monkeypatch.setattr(trainer, "matmul_ceiling", lambda dtype: 1e9)
    measured = []

    def evaluate(params):
        measured.append(jax.device_get(params["network"]))
        return {"eval/size": 1.0}

    def stop(params):
        raise Stop

    def run(workdir, evaluate):
        made, base = make(workdir)
        made = dataclasses.replace(made, train=dataclasses.replace(made.train, ema_decay=ema_decay))
        return made.run(evaluate), base

    state, base = run(tmp_path / "whole", evaluate)
    with pytest.raises(Stop):
        run(tmp_path / "part", stop)  # at step 4, before its checkpoint
    assert Checkpoints(tmp_path / "part" / "checkpoints").steps() == [2]
    again, _ = run(tmp_path / "part", evaluate)
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(np.asarray(a), np.asarray(b)), again, state)
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(state.frozen["network"]), jax.device_get(base))

    folder, train = Checkpoints(tmp_path / "whole" / "checkpoints").latest_good(), make(tmp_path / "x")[0].train
    found = saved.weights(folder, train)["network"]
    shapes = saved.described(folder)["network"]
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(found), measured[1])
    assert jax.tree.map(lambda x: (x.shape, x.dtype), found) == jax.tree.map(lambda x: (x.shape, x.dtype), shapes)
    for path, leaf in jax.tree.leaves_with_path(found):
        changed = not np.array_equal(leaf, jax.tree.leaves_with_path(base)[
            [p for p, _ in jax.tree.leaves_with_path(base)].index(path)][1])
        assert changed == (jax.tree_util.keystr(path[-1:], simple=True) in TARGETS), path
    mesh = make_mesh({"fsdp": 4, "tensor": 2})
    network = make(tmp_path / "x")[0].objective.network
    spread = saved.weights(folder, train, network, mesh)["network"]
    jax.tree.map(lambda a, b: np.testing.assert_allclose(np.asarray(a), np.asarray(b), atol=1e-6), spread, found)
    assert not spread["layers"]["attention"]["query"].sharding.is_fully_replicated


# What cannot be meant -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("changes", "message"), [
    ({"lora_rank": -1}, "train.lora_rank=-1: must not be negative"),
    ({"lora_alpha": 0.0}, "train.lora_alpha=0.0: must be positive"),
    ({"lora_targets": "*/mlp/*,"}, "train.lora_targets='.*': write patterns"),
    ({"init_from": ""}, "train.lora_rank=3: trains adapters of given weights, and without train.init_from"),
    ({"optimizer": "muon"}, "train.optimizer='muon': orthogonalises whole matrices"),
    ({"router_bias_rate": 1e-3}, "train.router_bias_rate=0.001: .* only adapters train"),
    ({"lora_rank": 0}, "train.lora_alpha=6.0: has no meaning without train.lora_rank"),
    ({"lora_rank": 0, "lora_alpha": 32.0}, "train.lora_targets=.*: has no meaning without"),
])
def test_combinations_that_cannot_be(changes, message):
    with pytest.raises(ConfigError, match=message):
        TrainConfig(**LORA | changes)


def test_patterns_that_fit_nothing():
    objective = CountObjective(tiny.NETWORK, tiny.process())
    wrong = TrainConfig(**LORA | {"lora_targets": "*/q_proj"})
    with pytest.raises(ConfigError, match="train.lora_targets: '\\*/q_proj' fits no matrix"):
        init_state(objective, optimizers.optimizer(wrong), False, jax.random.key(0), adapters.of(wrong))
    for freeze, message in (("network/embedding", "fits no weight; they are adapters/layers/attention/query/a"),
                            ("adapters/*", "leaves nothing to train")):
        train = TrainConfig(freeze=freeze, **LORA)
        with pytest.raises(ConfigError, match=message):
            init_state(objective, optimizers.optimizer(train), False, jax.random.key(0), adapters.of(train))


def test_half_of_each_adapter_may_stay():
    objective, train = CountObjective(tiny.NETWORK, tiny.process()), TrainConfig(freeze="adapters/*/a", **LORA)
    rule = optimizers.optimizer(train)
    state = start(objective, train, rule, one())
    before = pairs(jax.device_get(state.trainable))
    step = make_train_step(objective, rule, train, one())
    for n in range(2):
        state, _ = step(state, tiny.batch(4, seed=n))
    for name, now in pairs(jax.device_get(state.trainable)).items():
        np.testing.assert_array_equal(now["a"], before[name]["a"])
        assert (now["b"] != before[name]["b"]).any()


@pytest.mark.parametrize("freeze", ["network/layers/moe/*", "network/embedding, */router*", "*/router_bias"])
def test_a_frozen_selection_bias_is_not_moved_by_a_rate(freeze):
    with pytest.raises(ConfigError, match="moves network/layers/moe/router_bias, which train.freeze=.* keeps"):
        TrainConfig(freeze=freeze, router_bias_rate=1e-3)
    assert TrainConfig(freeze="network/layers/moe/router", router_bias_rate=1e-3).router_bias_rate == 1e-3
