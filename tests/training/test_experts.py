"""Expert layers in training: the routers' losses act on the gradient and on no reported number."""

import dataclasses
import functools

import jax
import numpy as np
import pytest

from mdlm_jax.models.config import MoEConfig
from mdlm_jax.training.objectives.continuous import ContinuousObjective, DiscreteObjective
from mdlm_jax.training.objectives.count import CountObjective
from tests.training import tiny


def objective(kind, **losses):
    moe = MoEConfig(experts=4, per_token=2, d_ff=8, **losses)
    mixing = 0.0 if kind is CountObjective else 0.2
    return kind(dataclasses.replace(tiny.NETWORK, moe=moe), tiny.process(mixing, eps=0.0))


def parts(made, trainable):
    return made.loss(trainable, tiny.batch(4), jax.random.key(0), np.arange(4), 4)


@pytest.mark.parametrize("kind", [CountObjective, ContinuousObjective, DiscreteObjective])
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
