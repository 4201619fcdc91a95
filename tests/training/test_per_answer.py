"""Rows of prompts and answers that weigh alike: the loss against its formula, the step whatever its microbatches."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from mdlm_jax.config import ConfigError, TrainConfig
from mdlm_jax.core.loss_parts import LossParts
from mdlm_jax.models.config import MoEConfig
from mdlm_jax.models.sharding import make_mesh
from mdlm_jax.training.objectives.continuous import ContinuousObjective
from mdlm_jax.training.objectives.count import CountObjective
from mdlm_jax.training.step import make_train_step
from tests.marks import slow_unless
from tests.training import tiny

COUNT = CountObjective(tiny.NETWORK, tiny.process())


def test_the_formula():
    """sum_r (1 / A_r) sum_i loss_i / B: LLaDA's fine-tuning loss, with rows that have no answer left out."""
    rng = np.random.default_rng(0)
    loss, answer = rng.random((5, 7)), rng.random((5, 7)) < 0.5
    answer[3] = False
    parts = LossParts.of(jnp.asarray(answer), diffusion=jnp.asarray(loss), edit=jnp.asarray(2 * loss))
    totals = parts.per_answer().totals()
    rows = [row for row in range(5) if answer[row].any()]
    expected = np.mean([3 * loss[row][answer[row]].sum() / answer[row].sum() for row in rows])
    assert float(totals.count) == len(rows) == 4
    assert float(totals.mean()) == pytest.approx(expected, rel=1e-6)
    assert float(parts.per_answer().objective() / totals.count) == pytest.approx(expected, rel=1e-6)
    np.testing.assert_allclose(parts.per_answer().row_counts(), [1, 1, 1, 0, 1])
    halves = [LossParts.of(jnp.asarray(answer[part]), diffusion=jnp.asarray(3 * loss[part])).per_answer().totals()
              for part in (slice(0, 2), slice(2, 5))]
    assert float((halves[0] + halves[1]).mean()) == pytest.approx(expected, rel=1e-6)


def test_llada_s_own_words_for_the_masked_loss():
    """In continuous time: cross-entropy at masks over p, over the answer's length, over the number of rows."""
    objective, batch = ContinuousObjective(tiny.NETWORK, tiny.process()), tiny.batch(4)
    trainable, key, rows = tiny.weights(objective), jax.random.key(1), jnp.arange(4)
    parts = objective.loss(trainable, batch, key, rows, 4)
    lengths = np.asarray(batch["loss_mask"]).sum(-1)
    expected = (np.asarray(parts.terms["diffusion"]) / lengths[:, None]).sum() / 4
    assert float(parts.per_answer().totals().mean()) == pytest.approx(expected, rel=1e-6)
    assert len(set(lengths)) > 1 and expected != pytest.approx(float(parts.totals().mean()), rel=1e-3)


def one():
    return make_mesh({"replica": 1, "fsdp": 1, "tensor": 1}, jax.devices()[:1])


def after(objective, mesh, **train):
    rule = optax.sgd(1.0)
    train = TrainConfig(batch_size=16, ema_decay=0.0, per_answer=True, **train)
    state, metrics = make_train_step(objective, rule, train, mesh)(tiny.state(objective, rule, mesh), tiny.batch(16))
    return jax.device_get(state.trainable), metrics


@pytest.mark.parametrize("split", slow_unless(["microbatches", "mesh"], "microbatches"))
def test_microbatches_and_a_mesh_change_nothing_and_the_gradient_is_the_formula_s(split):
    plain, metrics = after(COUNT, one())
    if split == "mesh":
        weights, other = after(dataclasses.replace(COUNT, data_shards=8), make_mesh({"fsdp": 8}))
    else:
        weights, other = after(COUNT, one(), microbatches=4)
    assert float(other["totals"].mean()) == pytest.approx(float(metrics["totals"].mean()), rel=1e-5)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), weights, plain)
    assert float(metrics["totals"].count) == 16 and np.asarray(metrics["by_level"])[1].sum() == 16

    def mean(weights):
        key = jax.random.fold_in(jax.random.fold_in(jax.random.key(0), 1), 0)
        parts = COUNT.loss(weights, tiny.batch(16), key, jnp.arange(16), 16)
        lengths = jnp.asarray(tiny.batch(16)["loss_mask"]).sum(-1)
        return (parts.per_row() / lengths).mean()

    start = tiny.weights(COUNT)
    gradient = jax.jit(jax.grad(mean))(start)
    jax.tree.map(lambda w, g, now: np.testing.assert_allclose(now, w - g, rtol=1e-4, atol=1e-5), start, gradient, plain)


def test_the_routers_share_is_the_same_coefficient():
    """Of a batch whose rows have equally many tokens, both ways of counting give the same gradient."""
    moe = MoEConfig(experts=4, per_token=2, d_ff=8, balance_loss=0.3)
    objective = CountObjective(dataclasses.replace(tiny.NETWORK, moe=moe), tiny.process())
    trainable, batch = tiny.weights(objective), tiny.batch(4, prompts=False)
    parts = jax.jit(lambda w: objective.loss(w, batch, jax.random.key(0), jnp.arange(4), 4))(trainable)
    answers = parts.per_answer()
    assert float(parts.objective() / parts.totals().count) == pytest.approx(
        float(answers.objective() / answers.totals().count), rel=1e-6)


@pytest.mark.parametrize(("train", "data", "message"), [
    ({}, {}, "train.per_answer=True: is about rows of prompts"),
    ({"objective": "genmd4:1"}, {"source": "x.jsonl", "prompt_field": "q"}, "train.per_answer=True: the gradient of"),
])
def test_where_it_means_nothing(train, data, message):
    with pytest.raises(ConfigError, match=message):
        tiny.run_config(train={"per_answer": True} | train, data=data)
    tiny.run_config(train={"per_answer": True}, data={"source": "x.jsonl", "prompt_field": "q"})
