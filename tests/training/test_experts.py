"""Expert layers in training: the routers' losses act on the gradient and on no reported number."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from mdlm_jax.config import TrainConfig
from mdlm_jax.models.config import MoEConfig
from mdlm_jax.models.sharding import batch_sharding, make_mesh
from mdlm_jax.training.objectives.continuous import ContinuousObjective, DiscreteObjective
from mdlm_jax.training.objectives.count import CountObjective
from mdlm_jax.training.optimizers import optimizer as adamw
from mdlm_jax.training.state import TrainState, state_shardings
from mdlm_jax.training.step import make_train_step
from tests.marks import slow_unless
from tests.training import tiny


def objective(kind, **losses):
    moe = MoEConfig(experts=4, per_token=2, d_ff=8, **losses)
    mixing = 0.0 if kind is CountObjective else 0.2
    return kind(dataclasses.replace(tiny.NETWORK, moe=moe), tiny.process(mixing, eps=0.0))


def parts(made, trainable):
    return made.loss(trainable, tiny.batch(4), jax.random.key(0), np.arange(4), 4)


@pytest.mark.parametrize("kind", slow_unless(
    [CountObjective, ContinuousObjective, DiscreteObjective], CountObjective))
def test_coefficients_are_linear_in_the_objective_and_absent_from_the_report(kind):
    trainable = tiny.weights(objective(kind))
    plain, once, twice, z = (
        jax.jit(functools.partial(parts, objective(kind, **losses)))(trainable)
        for losses in ({}, {"balance_loss": 0.1}, {"balance_loss": 0.2}, {"z_loss": 0.1})
    )
    count = float(plain.totals().count)
    extra = [float(found.objective() - plain.objective()) / count for found in (once, twice, z)]
    assert 0.1 * 0.9 < extra[0] < 0.1 * 4  # X sum f p of one layer: 1 if even, X if all go to one
    assert extra[1] == pytest.approx(2 * extra[0], rel=1e-3) and extra[2] > 0
    for found in (once, twice, z):
        np.testing.assert_allclose(float(found.totals().mean()), float(plain.totals().mean()), rtol=1e-6)


@pytest.mark.slow
def test_the_balance_loss_evens_the_load_by_its_gradient():
    """One step of descent on the balance loss alone lowers it."""
    made = objective(CountObjective, balance_loss=1.0)
    bare = objective(CountObjective)
    trainable = tiny.weights(made)

    @jax.jit
    def value_and_grad(weights):
        return jax.value_and_grad(lambda w: parts(made, w).objective() - parts(bare, w).objective())(weights)

    before, gradient = value_and_grad(trainable)
    router = gradient["network"]["layers"]["moe"]["router"]
    assert np.abs(np.asarray(router)).max() > 0
    norm = np.sqrt(sum((np.asarray(g) ** 2).sum() for g in jax.tree.leaves(gradient)))
    after, _ = value_and_grad(jax.tree.map(lambda w, g: w - 0.05 * g / norm, trainable, gradient))
    assert float(after) < float(before)


# The selection bias ---------------------------------------------------------------------------------------------------


def biased(rate, optimizer, microbatches=1, sizes=None):
    """(step, state, batches): a lopsided router with selection bias."""
    made = objective(CountObjective, router="sigmoid", selection_bias=True)
    here = make_mesh({"replica": 1, "fsdp": 1, "tensor": 1}, jax.devices()[:1]) if sizes is None else make_mesh(sizes)
    made = dataclasses.replace(made, data_shards=1 if sizes is None else sizes["fsdp"])
    train = TrainConfig(batch_size=32, microbatches=microbatches, ema_decay=0.0, router_bias_rate=rate)
    trainable = tiny.weights(made)
    moe = trainable["network"]["layers"]["moe"]
    moe["router_bias"] = jnp.zeros_like(moe["router_bias"])
    layout = state_shardings(made, optimizer, False, here)
    state = jax.device_put(TrainState(jnp.zeros((), jnp.int32), trainable, optimizer.init(trainable), None), layout)
    step = make_train_step(made, optimizer, train, here)
    batches = [jax.device_put(tiny.batch(32, seed=n), batch_sharding(here)) for n in range(4)]
    return made, step, state, batches


def router_of(state):
    return np.asarray(state.trainable["network"]["layers"]["moe"]["router_bias"])


@pytest.mark.slow
def test_the_bias_evens_the_load_where_nothing_else_learns():
    """Loads over the mean load: from beyond 1.4 for the fullest expert to within 15 %."""
    made, step, state, batches = biased(0.01, optax.sgd(0.0))

    @jax.jit
    def fullest(trainable):
        chosen = made.loss(trainable, batches[0], jax.random.key(9), jnp.arange(32), 32).router.chosen
        return (chosen / chosen.mean(-1, keepdims=True)).max()

    before = float(fullest(state.trainable))
    others = {k: np.asarray(v) for k, v in state.trainable["network"]["layers"]["moe"].items() if k != "router_bias"}
    for n in range(100):
        state, _ = step(state, batches[n % 4])
    assert before > 1.4 and float(fullest(state.trainable)) < 1.15
    moe = state.trainable["network"]["layers"]["moe"]
    for name, value in others.items():
        np.testing.assert_array_equal(np.asarray(moe[name]), value)


@pytest.mark.parametrize(("microbatches", "sizes"), slow_unless(
    [(4, None), (1, {"replica": 1, "fsdp": 4, "tensor": 2})], (4, None)))
def test_the_load_is_that_of_the_whole_batch(microbatches, sizes):
    found = []
    for options in ({}, {"microbatches": microbatches, "sizes": sizes}):
        _, step, state, batches = biased(0.5, optax.sgd(0.0), **options)
        found.append(router_of(step(state, batches[0])[0]))
    assert np.abs(found[0]).max() == 0.5
    np.testing.assert_array_equal(*found)


def test_the_optimiser_and_its_weight_decay_leave_the_bias_alone():
    optimizer = adamw(TrainConfig(weight_decay=0.5, learning_rate=0.1, warmup_steps=0))
    _, step, state, batches = biased(0.0, optimizer)
    moe = state.trainable["network"]["layers"]["moe"]
    shifted = jax.tree.map(jnp.copy, state.trainable)
    shifted["network"]["layers"]["moe"]["router_bias"] = moe["router_bias"] + jnp.arange(4.0)
    after, _ = step(dataclasses.replace(state, trainable=shifted), batches[0])
    np.testing.assert_array_equal(router_of(after), np.arange(4.0)[None])
    router = tiny.weights(objective(CountObjective, router="sigmoid", selection_bias=True))
    moved = np.asarray(after.trainable["network"]["layers"]["moe"]["router"])
    assert np.abs(moved - np.asarray(router["network"]["layers"]["moe"]["router"])).max() > 0
