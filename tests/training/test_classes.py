"""Objectives of networks that are told the class of a row."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mdlm_jax.config import ConfigError
from mdlm_jax.models.sharding import make_mesh
from mdlm_jax.planning import step
from mdlm_jax.training.build import build_bound, build_network, build_objective, build_process
from mdlm_jax.training.objectives.autoregressive import AutoregressiveObjective
from mdlm_jax.training.objectives.block import BlockObjective
from mdlm_jax.training.objectives.continuous import ContinuousObjective
from mdlm_jax.training.objectives.count import CountObjective
from mdlm_jax.training.objectives.draft_edit import DraftEditObjective
from tests.marks import slow_unless
from tests.training import tiny

CONSTANT = dataclasses.replace(tiny.NETWORK, conditioning="constant", condition_dim=16, time_features=16, classes=4)
TIMED = dataclasses.replace(CONSTANT, conditioning="time")
STREAMS = dataclasses.replace(CONSTANT, attention="two_stream")
KINDS = {
    "count": CountObjective(TIMED, tiny.process()),
    "both": CountObjective(CONSTANT, tiny.process(), both=True),
    "continuous": ContinuousObjective(CONSTANT, tiny.process(0.1)),
    "draft_edit": DraftEditObjective(CONSTANT, tiny.process()),
    "blocks": BlockObjective(dataclasses.replace(STREAMS, block_length=2), tiny.process()),
    "one block": BlockObjective(dataclasses.replace(STREAMS, block_length=tiny.LENGTH), tiny.process()),
    "autoregressive": AutoregressiveObjective(
        dataclasses.replace(CONSTANT, attention="causal", logit_shift=True), tiny.process()),
}
DIGITS = {"data": {"source": "digits", "length": 64}, "model": {"classes": 10, "conditioning": "constant"}}


def batch(rows, seed=0):
    return tiny.batch(rows, seed) | {"label": np.random.default_rng(seed).integers(0, 4, rows).astype(np.int32)}


@functools.partial(jax.jit, static_argnums=0)
def total(objective, weights, rows, at=None):
    index = jnp.arange(len(rows["tokens"])) if at is None else jnp.asarray(at)
    return objective.loss(weights, rows, jax.random.key(0), index, 8).objective()


def without_class(objective):
    network = dataclasses.replace(objective.network, classes=0)
    return dataclasses.replace(objective, network=network, class_dropout=0.0)


@pytest.mark.parametrize("name", slow_unless(sorted(KINDS), "blocks", "continuous", "count", "draft_edit", "one block"))
def test_the_loss_is_that_of_a_network_whose_condition_is_moved_by_the_class(name):
    """Rows of one class, and the class's row added to the bias it is added to: the same loss in a network without."""
    objective, rows = KINDS[name], batch(8) | {"label": np.full(8, 2, np.int32)}
    weights = tiny.weights(objective)
    plain = {key: leaf for key, leaf in weights["network"].items() if key != "classes"}
    moved = plain["time"]["second_bias"] + weights["network"]["classes"][2]
    plain = {**plain, "time": {**plain["time"], "second_bias": moved}}
    found = total(objective, weights, rows)
    assert found == pytest.approx(float(total(without_class(objective), {"network": plain}, rows)), rel=1e-4)
    assert abs(found - total(objective, weights, rows | {"label": np.full(8, 1, np.int32)})) > 1e-3


@pytest.mark.parametrize("name", slow_unless(["count", "continuous", "one block"], "continuous", "one block"))
def test_the_row_of_no_class_is_learnt_by_those_dropped_alone(name):
    objective, rows = KINDS[name], batch(8)
    weights = tiny.weights(objective)

    def gradient(dropout):
        made = dataclasses.replace(objective, class_dropout=dropout)
        return np.abs(jax.jit(jax.grad(lambda w: total(made, w, rows)))(weights)["network"]["classes"]).sum(-1)

    given, dropped = gradient(0.0), gradient(0.999999)
    assert given[4] == 0 and (given[np.unique(rows["label"])] > 0).all()
    assert dropped[4] > 0 and not dropped[:4].any()


def test_classes_are_dropped_as_often_as_said_and_by_row_not_by_place():
    objective = dataclasses.replace(KINDS["continuous"], class_dropout=0.1)
    label = jnp.arange(20000) % 4

    def told(key, rows):
        return np.asarray(objective.condition({"label": label[rows]}, jax.random.key(key), rows))

    found = told(0, jnp.arange(20000))
    hidden = found == -1
    assert (found[~hidden] == np.asarray(label)[~hidden]).all()
    assert abs(hidden.mean() - 0.1) < 5 * (0.09 / 20000) ** 0.5
    some = jnp.asarray([7, 19999, 3, 11])
    np.testing.assert_array_equal(told(0, some), found[np.asarray(some)])
    assert (told(1, jnp.arange(20000)) != found).any()
    assert KINDS["continuous"].condition({"label": label}, jax.random.key(0), label) is label


def test_microbatches_and_turns_hide_the_same_classes():
    objective = dataclasses.replace(KINDS["continuous"], class_dropout=0.5)
    rows, weights = batch(8), tiny.weights(objective)
    whole = total(objective, weights, rows)
    halves = [total(objective, weights, {name: x[at] for name, x in rows.items()}, at=at)
              for at in (np.arange(0, 4), np.arange(4, 8))]
    assert float(sum(halves)) == pytest.approx(float(whole), rel=1e-5)


def test_a_run_trains_with_dropout_and_is_measured_without():
    config = tiny.run_config(**DIGITS, train={"class_dropout": 0.1}, process={"mixing": 0.1})
    network, process = build_network(config, 18), build_process(config, 18, 17)
    assert network.classes == 10
    assert build_objective(config, network, process, 1)[0].class_dropout == 0.1
    assert build_bound(config, network, process, 1).class_dropout == 0.0


def test_a_plan_s_step_takes_labels():
    config = tiny.run_config(**DIGITS | {"model": DIGITS["model"] | {"vocab_size": 18, "layers": 1, "d_model": 16}},
                             train={"class_dropout": 0.1, "batch_size": 16}, process={"mixing": 0.1})
    mesh = make_mesh({"fsdp": 8}, jax.devices()[:8])
    assert "tensor<16xi32>" in step.lower(config, step.objective_of(config, mesh)[0], mesh).as_text()


@pytest.mark.parametrize(("sections", "message"), [
    ({"model": {"classes": 10, "conditioning": "constant"}}, "model.classes=10: needs rows with classes"),
    ({**DIGITS, "model": {}, "train": {"class_dropout": 0.1}}, "train.class_dropout=0.1: has no meaning"),
    ({**DIGITS, "train": {"class_dropout": 1.0}}, r"must lie in \[0, 1\)"),
    ({**DIGITS, "model": {"classes": -1, "conditioning": "constant"}}, "model.classes=-1"),
    ({**DIGITS, "model": {"classes": 10}}, "model.classes=10: AdaLN tells the network its class"),
], ids=["source", "dropout", "share", "negative", "conditioning"])
def test_what_a_run_would_not_read_is_refused(sections, message):
    with pytest.raises(ConfigError, match=message):
        tiny.run_config(**sections)
