"""The train step: microbatches, meshes and averages must not change what is computed, only where and how."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from mdlm_jax.config import TrainConfig
from mdlm_jax.core.prediction import Prediction
from mdlm_jax.models import api
from mdlm_jax.models.sharding import batch_sharding, make_mesh
from mdlm_jax.training.objectives.any_order import AnyOrderObjective, AnySubsetObjective
from mdlm_jax.training.objectives.autoregressive import AutoregressiveObjective
from mdlm_jax.training.objectives.block import BlockObjective
from mdlm_jax.training.objectives.continuous import ContinuousObjective
from mdlm_jax.training.objectives.count import CountObjective
from mdlm_jax.training.objectives.dmax import DMaxBlockObjective, DMaxObjective
from mdlm_jax.training.objectives.dparallel import DParallelObjective
from mdlm_jax.training.objectives.draft_edit import DraftEditObjective
from mdlm_jax.training.optimizers import optimizer as adamw
from mdlm_jax.training.state import sharded_init, state_shardings
from mdlm_jax.training.step import make_train_step
from tests.marks import slow_unless
from tests.training import tiny

ROWS = 16
COUNT = CountObjective(tiny.NETWORK, tiny.process())
MIXED = ContinuousObjective(tiny.NETWORK, tiny.process(0.3))
MESHES = {"fsdp": {"replica": 1, "fsdp": 8, "tensor": 1}, "all": {"replica": 2, "fsdp": 2, "tensor": 2}}


def mesh(sizes=None):
    if sizes is None:
        return make_mesh({"replica": 1, "fsdp": 1, "tensor": 1}, jax.devices()[:1])
    return make_mesh(sizes)


def step(objective, sizes=None, **train):
    """One step of plain gradient descent at rate 1 from `tiny.weights`: (metrics, minus the gradient)."""
    optimizer, here = optax.sgd(1.0), mesh(sizes)
    config = TrainConfig(batch_size=ROWS, ema_decay=0.0, **train)
    before = tiny.state(objective, optimizer, here)
    start = jax.device_get(before.trainable)
    run = make_train_step(objective, optimizer, config, here)
    after, metrics = run(before, jax.device_put(tiny.batch(ROWS), batch_sharding(here)))
    assert int(after.step) == 1
    return jax.device_get(metrics), jax.tree.map(lambda a, b: np.asarray(a) - b, jax.device_get(after.trainable), start)


@functools.cache
def whole(objective):
    return step(objective)


def assert_same(found, expected, tolerance):
    metrics, gradient = found
    reference, wanted = expected
    np.testing.assert_allclose(metrics["totals"].mean(), reference["totals"].mean(), rtol=1e-6)
    assert metrics["totals"].count == reference["totals"].count
    np.testing.assert_allclose(metrics["grad_norm"], reference["grad_norm"], rtol=1e-5)
    assert reference["grad_norm"] > 0.1
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=tolerance * reference["grad_norm"]),
                 gradient, wanted)


def test_microbatches_change_nothing():
    """Also not the pairs: each microbatch holds whole ones, though it takes every fourth of them."""
    assert_same(step(COUNT, microbatches=4), whole(COUNT), 1e-6)


_STREAMS = dataclasses.replace(tiny.NETWORK, attention="two_stream")
_BLOCKS = dataclasses.replace(_STREAMS, block_length=4)
_CAUSAL = dataclasses.replace(tiny.NETWORK, attention="causal", logit_shift=True)
MORE = {
    "both": CountObjective(tiny.NETWORK, tiny.process(), both=True, confidence=0.3),
    "block": BlockObjective(_BLOCKS, tiny.process()),
    "block_both": BlockObjective(_BLOCKS, tiny.process(), coupling="stratified", both=True),
    "block_of_one": BlockObjective(_STREAMS, tiny.process(), coupling="iid", half_head=False),
    "autoregressive": AutoregressiveObjective(_CAUSAL, tiny.process(), coupling="iid"),
    "any_order": AnyOrderObjective(_STREAMS, tiny.process(), coupling="iid"),
    "any_subset": AnySubsetObjective(_STREAMS, tiny.process(), coupling="iid", low=0.1, high=0.6),
    "draft_edit": DraftEditObjective(tiny.NETWORK, tiny.process(), edit_rate=0.3),
    "dparallel": DParallelObjective(tiny.NETWORK, tiny.process(), block=3),
    "dmax": DMaxObjective(tiny.NETWORK, tiny.process()),
    "dmax_blocks": DMaxBlockObjective(_BLOCKS, tiny.process()),
}


@pytest.mark.parametrize("name", slow_unless(MORE, "draft_edit", "block_both"))
def test_microbatches_change_no_objective(name):
    assert_same(step(MORE[name], microbatches=4), whole(MORE[name]), 2e-6)


@pytest.mark.parametrize("name", slow_unless(MORE, "block_both"))
def test_eight_devices_change_no_objective(name):
    objective = dataclasses.replace(MORE[name], data_shards=4)
    assert_same(step(objective, MESHES["all"]), whole(MORE[name]), 1e-5)


@pytest.mark.parametrize("sizes", slow_unless(MESHES.values(), "fsdp", ids=MESHES))
def test_eight_devices_do_what_one_does(sizes):
    objective = dataclasses.replace(COUNT, data_shards=sizes["replica"] * sizes["fsdp"])
    assert_same(step(objective, sizes), whole(COUNT), 1e-5)


@pytest.mark.slow
def test_eight_devices_with_microbatches_do_what_one_does():
    assert_same(step(COUNT, MESHES["all"], microbatches=2), whole(COUNT), 1e-5)


def test_the_gradient_is_that_of_the_mean_over_counted_tokens():
    batch = tiny.batch(ROWS)
    key = jax.random.fold_in(jax.random.fold_in(jax.random.key(0), 1), 0)  # seed 0, stream 1, step 0

    def mean(trainable):
        parts = COUNT.loss(trainable, batch, key, jnp.arange(ROWS), ROWS)
        return parts.per_row().sum() / batch["loss_mask"].sum()

    value, grads = jax.jit(jax.value_and_grad(mean))(tiny.weights(COUNT))
    metrics, updates = whole(COUNT)
    np.testing.assert_allclose(metrics["totals"].mean(), value, rtol=1e-6)
    jax.tree.map(lambda u, g: np.testing.assert_allclose(u, -np.asarray(g), atol=1e-6), updates, grads)
    np.testing.assert_allclose(metrics["update_norm"], metrics["grad_norm"], rtol=1e-6)


@pytest.mark.parametrize("objective", [COUNT, MIXED], ids=["count", "mixed"])
def test_the_noise_is_the_same_bit_for_bit_on_any_mesh_and_in_any_microbatch(objective, monkeypatch):
    """The tokens that the network is given."""
    given = []

    def apply(network, params, tokens, **options):
        given.append(tokens)
        return Prediction.from_logits(jnp.zeros((*tokens.shape, tiny.VOCAB)))

    def noisy(batch, rows):
        objective.loss({"network": {}}, batch, jax.random.key(3), rows, ROWS)
        return given.pop()

    monkeypatch.setattr(api, "apply", apply)
    batch = tiny.batch(ROWS)
    one = np.asarray(jax.jit(noisy)(batch, jnp.arange(ROWS)))
    assert 0.2 < (one != batch["tokens"]).mean() < 0.8
    rows = batch_sharding(mesh(MESHES["all"]))
    many = jax.jit(noisy, in_shardings=(rows, rows), out_shardings=rows)(batch, jnp.arange(ROWS))
    np.testing.assert_array_equal(np.asarray(many), one)
    part = np.array([4, 5, 12, 13])
    few = jax.jit(noisy)({name: x[part] for name, x in batch.items()}, jnp.asarray(part))
    np.testing.assert_array_equal(np.asarray(few), one[part])


def test_average_warms_up_and_the_learning_rate_does_too():
    train = TrainConfig(batch_size=ROWS, ema_decay=0.4, steps=10, warmup_steps=4, learning_rate=1e-2)
    optimizer, here = adamw(train), mesh()
    state = tiny.state(COUNT, optimizer, here, ema=True)
    run = make_train_step(COUNT, optimizer, train, here)
    expected, sizes = jax.device_get(state.ema), []
    for n in range(4):
        state, metrics = run(state, jax.device_put(tiny.batch(ROWS, seed=n), batch_sharding(here)))
        decay = min(0.4, (1 + n) / (10 + n))  # 0.1, 0.18, 0.25, 0.31
        now = jax.device_get(state.trainable)
        expected = jax.tree.map(lambda old, new, d=decay: d * old + (1 - d) * new, expected, now)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(np.asarray(a), b, rtol=1e-5, atol=1e-7),
                     state.ema, expected)
        sizes.append(float(metrics["update_norm"]))
    assert int(state.step) == 4
    assert sizes[1] > 1.4 * sizes[0] and sizes[3] > 1.2 * sizes[1]


def test_fresh_states_are_the_same_on_every_mesh_and_laid_out_as_declared():
    objective, optimizer = COUNT, adamw(TrainConfig())
    one = sharded_init(objective, optimizer, True, mesh(), seed=5)
    many = sharded_init(objective, optimizer, True, mesh(MESHES["all"]), seed=5)
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(np.asarray(a), np.asarray(b)), many, one)
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(np.asarray(a), np.asarray(b)), one.ema, one.trainable)
    layout = state_shardings(objective, optimizer, True, mesh(MESHES["all"]))
    jax.tree.map(lambda x, sharding: x.sharding.is_equivalent_to(sharding, x.ndim) or pytest.fail(str(x.sharding)),
                 many, layout)
    split = [x for x in jax.tree.leaves(many) if x.sharding.shard_shape(x.shape) != x.shape]
    assert len(split) >= 4 * 8  # weights, both moments and the average
