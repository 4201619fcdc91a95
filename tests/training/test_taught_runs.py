"""Runs with a teacher: any mesh and microbatches, from a checkpoint bit for bit, with adapters, and what is kept."""

import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mdlm_jax.config import TrainConfig
from mdlm_jax.core.process import Process
from mdlm_jax.data.pipeline import Pipeline
from mdlm_jax.data.tokenizers import ByteTokenizer
from mdlm_jax.models import api
from mdlm_jax.models.config import TransformerConfig
from mdlm_jax.models.sharding import make_mesh
from mdlm_jax.training import adapters, optimizers, saved, trainer
from mdlm_jax.training.checkpoints import Checkpoints, abstract, restore_path
from mdlm_jax.training.objectives.duo import DuoObjective
from mdlm_jax.training.objectives.sdtt import SDTTObjective
from mdlm_jax.training.state import init_state, sharded_init, state_shardings
from mdlm_jax.training.step import make_train_step
from mdlm_jax.training.trainer import Trainer
from tests.training import tiny

WIDE = dataclasses.replace(tiny.TIMED, d_model=32, condition_dim=16)
KINDS = {"sdtt": (SDTTObjective, 0.0), "duo": (DuoObjective, 1.0)}
LORA = {"lora_rank": 3, "lora_alpha": 6.0, "lora_targets": "*/attention/query, */mlp/down"}


def one():
    return make_mesh({"replica": 1, "fsdp": 1, "tensor": 1}, jax.devices()[:1])


def shaken(tree, seed):
    """Not at its start, where a head may be zero, and an adapter's B is."""
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda x: x + 0.1 * rng.standard_normal(x.shape, np.float32), tree)


def after(kind, mesh, microbatches=1, steps=2, **more):
    """What trains and what stays after some steps, the losses, and what stayed before."""
    made, mixing = KINDS[kind]
    train = TrainConfig(batch_size=16, microbatches=microbatches, warmup_steps=1, objective=f"{kind}:4", init_from="x",
                        **more)
    objective = made(WIDE, tiny.process(mixing), steps=4, data_shards=mesh.shape["fsdp"])
    rule, plan = optimizers.optimizer(train), adapters.of(train)
    state = jax.device_get(init_state(objective, rule, True, jax.random.key(3), plan))
    state, losses = dataclasses.replace(state, trainable=shaken(state.trainable, 1), frozen=shaken(state.frozen, 2)), []
    before = state.frozen
    state = jax.device_put(state, state_shardings(objective, rule, True, mesh, plan))
    step = make_train_step(objective, rule, train, mesh)
    for n in range(steps):
        state, metrics = step(state, tiny.batch(16, seed=n))
        losses.append(float(metrics["totals"].mean()))
    return jax.device_get(state.trainable), jax.device_get(state.frozen), losses, before


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "how"), list(itertools.product(KINDS, ("eight", "microbatches", "both"))))
def test_meshes_and_microbatches_change_nothing(kind, how):
    alone = after(kind, one())
    mesh = one() if how == "microbatches" else make_mesh({"fsdp": 4, "tensor": 2})
    found = after(kind, mesh, 1 if how == "eight" else 2)
    np.testing.assert_allclose(found[2], alone[2], rtol=5e-5)
    assert alone[2][0] > 1e-4
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-3), found[0], alone[0])
    jax.tree.map(np.testing.assert_array_equal, found[1], found[3])
    assert list(found[1]) == ["teacher"]


def test_adapters_have_their_own_network_as_teacher():
    trainable, frozen, losses, before = after("sdtt", one(), **LORA)
    assert list(trainable) == ["adapters"] and list(frozen) == ["network"] and losses[0] > 1e-4
    jax.tree.map(np.testing.assert_array_equal, frozen, before)
    plan = adapters.of(TrainConfig(objective="sdtt:4", init_from="x", **LORA))
    joined = adapters.join(plan, trainable, frozen)
    assert joined["teacher"] is frozen["network"]
    assert (joined["network"]["layers"]["mlp"]["down"] != frozen["network"]["layers"]["mlp"]["down"]).any()
    assert list(adapters.merged(plan, trainable, frozen)) == ["network"]


def test_moments_and_averages_are_the_student_s_alone():
    mesh, train = make_mesh({"fsdp": 4, "tensor": 2}), TrainConfig(batch_size=8, objective="sdtt:4", init_from="x")
    objective, rule = SDTTObjective(WIDE, tiny.process(), steps=4, data_shards=4), optimizers.optimizer(train)
    state = sharded_init(objective, rule, True, mesh, 0, adapters.of(train))
    count = api.num_parameters(WIDE)
    assert sum(leaf.size for leaf in jax.tree.leaves(state.optimizer) if leaf.ndim) == 2 * count
    assert [sum(leaf.size for leaf in jax.tree.leaves(part)) for part in (state.ema, state.frozen)] == [count, count]
    here, there = state.trainable["network"]["layers"], state.frozen["teacher"]["layers"]
    assert there["mlp"]["down"].sharding == here["mlp"]["down"].sharding
    assert not there["mlp"]["down"].sharding.is_fully_replicated


# Whole runs -----------------------------------------------------------------------------------------------------------


class Stop(Exception):
    """What interrupts a run in these tests."""


def make(workdir, **more):
    rows = np.random.default_rng(0).integers(0, 256, (20, tiny.LENGTH))
    pipeline = Pipeline(rows, batch_size=4, seed=0, packing="concat", tokenizer=ByteTokenizer())
    network = TransformerConfig(259, 259, layers=1, d_model=16, heads=2, kv_heads=2, d_ff=32, dropout=0.1)
    train = TrainConfig(batch_size=4, steps=6, log_every=1, checkpoint_every=2, warmup_steps=2, ema_decay=0.5,
                        learning_rate=0.05, objective="sdtt:4", init_from="elsewhere", **more)
    base = shaken(api.init(network, jax.random.key(77)), 3)
    return Trainer(train, SDTTObjective(network, Process(259, 256), steps=4), pipeline, one(), workdir,
                   Checkpoints(workdir / "checkpoints", train.keep_checkpoints), {"config.json": "{}"}, 4,
                   start_from=lambda: {"network": jax.tree.map(jnp.copy, base)}), base


@pytest.mark.slow
@pytest.mark.parametrize("more", [{}, LORA], ids=["whole", "adapters"])
def test_a_run_goes_on_bit_for_bit_with_its_teacher(more, tmp_path, monkeypatch):
    monkeypatch.setattr(trainer, "matmul_ceiling", lambda dtype: 1e9)
    measured = []

    def evaluate(params):
        assert list(params) == ["network"]
        measured.append(jax.device_get(params["network"]))
        return {"eval/size": 1.0}

    def stop(params):
        raise Stop

    whole, base = make(tmp_path / "whole", **more)
    state = whole.run(evaluate)
    with pytest.raises(Stop):
        make(tmp_path / "part", **more)[0].run(stop)  # at step 4, before its checkpoint
    assert Checkpoints(tmp_path / "part" / "checkpoints").steps() == [2]
    again = make(tmp_path / "part", **more)[0].run(evaluate)
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(np.asarray(a), np.asarray(b)), again, state)

    teacher = "network" if more else "teacher"
    folder = Checkpoints(tmp_path / "whole" / "checkpoints").latest_good()
    kept = restore_path(folder, abstract(folder)).tree["frozen"]
    assert list(kept) == [teacher]
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(np.asarray(a), np.asarray(b)), kept[teacher], base)
    found = saved.weights(folder, whole.train)
    assert list(found) == list(saved.described(folder)) == ["network"]
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(np.asarray(a), b), found["network"], measured[1])
    assert (np.asarray(found["network"]["layers"]["mlp"]["down"]) != base["layers"]["mlp"]["down"]).any()
    mesh = make_mesh({"fsdp": 4, "tensor": 2})
    spread = saved.weights(folder, whole.train, whole.objective.network, mesh)["network"]
    jax.tree.map(lambda a, b: np.testing.assert_allclose(np.asarray(a), b, atol=1e-6), spread, found["network"])
