"""Rows of random length in training: what stood behind the cut has no part in the loss or its gradient."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mdlm_jax.data.cuts import Cut
from mdlm_jax.training.objectives.continuous import ContinuousObjective
from mdlm_jax.training.objectives.count import CountObjective
from tests.marks import slow_unless
from tests.training import tiny

OBJECTIVES = {
    "count": CountObjective(tiny.NETWORK, tiny.process()),
    "half head": CountObjective(tiny.NETWORK, tiny.process(), half_head=True),
    "continuous": ContinuousObjective(tiny.NETWORK, tiny.process(0.3)),
}


@pytest.mark.parametrize("name", slow_unless(OBJECTIVES, "half head"))
def test_the_loss_does_not_know_what_was_cut(name):
    objective = OBJECTIVES[name]
    batch = tiny.batch(16, prompts=False)
    lengths = Cut(tiny.LENGTH, 1.0, tiny.LENGTH, 0, 3).lengths(0, np.arange(16))
    real = np.arange(tiny.LENGTH) < lengths[:, None]
    assert lengths.min() < 4
    batch |= {"attention_mask": real.astype(np.int32), "noise_mask": real, "loss_mask": real}
    other = batch | {"tokens": np.where(real, batch["tokens"], (batch["tokens"] + 1) % (tiny.VOCAB - 1))}
    params = tiny.weights(objective)

    @jax.jit
    def loss(params, batch):
        return objective.loss(params, batch, jax.random.key(0), jnp.arange(16), 16).totals()

    one, two = loss(params, batch), loss(params, other)
    assert float(one.count) == real.sum()
    np.testing.assert_allclose(float(one.mean()), float(two.mean()), rtol=1e-6)
    gradients = [jax.grad(lambda p, b=b: loss(p, b).mean())(params) for b in (batch, other)]
    for left, right in zip(*map(jax.tree.leaves, gradients), strict=True):
        np.testing.assert_allclose(left, right, rtol=1e-4, atol=1e-6)
