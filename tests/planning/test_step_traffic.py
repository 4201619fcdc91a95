"""The train step on 8 virtual devices, read from XLA:CPU: no gradient is summed whole, and no row moves."""

import dataclasses
import functools

import jax
import pytest

from mdlm_jax.config import DataConfig, RunConfig, TrainConfig
from mdlm_jax.config.model import ModelConfig
from mdlm_jax.models import api
from mdlm_jax.models.sharding import make_mesh
from mdlm_jax.planning import collectives, hlo, minimum, step
from tests.marks import slow_unless

CONFIG = RunConfig(
    model=ModelConfig(layers=3, d_model=64, heads=4, d_ff=96, vocab_size=1000, remat="full"),
    data=DataConfig(length=32),
    train=TrainConfig(batch_size=32, ema_decay=0.0, head_budget=1 << 14),
)
MESHES = ({"fsdp": 8}, {"replica": 2, "fsdp": 4}, {"fsdp": 4, "tensor": 2})


def compiled(config, sizes):
    mesh = make_mesh(sizes)
    objective, _ = step.objective_of(config, mesh)
    text = step.lower(config, objective, mesh).compile().as_text()
    return objective, mesh, collectives.find(hlo.parse(text))


@functools.cache
def found(index):
    return compiled(CONFIG, MESHES[index])


def least(index):
    objective, mesh, _ = found(index)
    shapes = jax.tree.map(lambda leaf, layout: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=layout),
                          api.abstract(objective.network), api.shardings(objective.network, mesh))
    return minimum.traffic(shapes, "float32", dict(mesh.shape))


@pytest.mark.parametrize("index", slow_unless(range(len(MESHES)), 0, 2))
def test_tables_are_gathered_once_and_scattered_once(index):
    _, mesh, travels = found(index)
    table = 1000 * 64 * 4 // mesh.shape["tensor"]
    kinds = [c.kind for c in travels if c.bytes * c.times == table]
    assert sorted(kinds) == ["all-gather", "all-gather", "reduce-scatter", "reduce-scatter"]


@pytest.mark.parametrize("index", range(len(MESHES)))
def test_gradients_are_scattered_once_and_never_summed_whole(index):
    """Every gradient is reduce-scattered once; over replicas only each device's share of it is summed."""
    _, mesh, travels = found(index)
    totals = collectives.totals(travels)
    assert totals["reduce-scatter"]["bytes"] == least(index)["reduce-scatter"]
    summed = sum(c.total for c in travels if c.kind == "all-reduce" and c.group != mesh.shape["tensor"])
    assert summed < 1.02 * least(index).get("all-reduce", 0) + 4000 * mesh.shape["replica"]


@pytest.mark.parametrize("index", range(len(MESHES)))
def test_weights_are_gathered_twice_at_most(index):
    totals = collectives.totals(found(index)[2])
    assert totals["all-gather"]["bytes"] <= least(index)["all-gather"]
    assert set(totals) <= {"all-gather", "reduce-scatter", "all-reduce"}


def test_traffic_does_not_grow_with_the_tokens():
    """But for the few numbers of every row that all devices must know."""
    longer = dataclasses.replace(CONFIG, data=DataConfig(length=64))
    short, long = (collectives.totals(c) for c in (found(0)[2], compiled(longer, MESHES[0])[2]))
    assert short.keys() == long.keys()
    for kind in short:
        assert long[kind]["bytes"] == pytest.approx(short[kind]["bytes"], rel=1e-3)


def test_the_minimum_by_hand():
    """One matrix split over fsdp, one replicated, on 2 replicas of 4 devices in bfloat16."""
    mesh = make_mesh({"replica": 2, "fsdp": 4})

    def leaf(*spec):
        layout = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(*spec))
        return jax.ShapeDtypeStruct((8, 16), "float32", sharding=layout)

    least = minimum.traffic({"a": leaf("fsdp", "tensor"), "b": leaf()}, "bfloat16", dict(mesh.shape))
    assert least == {"all-gather": 2 * 256, "reduce-scatter": 256, "all-reduce": 256 / 4 + 256}
    assert minimum.wire("all-gather", 512, dict(mesh.shape)) == 512 * 3 / 4
    assert minimum.wire("all-reduce", 320, dict(mesh.shape)) == 320
