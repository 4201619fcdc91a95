"""Edits of blocks as an objective: its turns against the plain twins of the labels, its loss against the logits."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mdlm_jax.config import ConfigError, DataConfig, ModelConfig, RunConfig, TrainConfig
from mdlm_jax.core import levenshtein
from mdlm_jax.training import build
from mdlm_jax.training.objectives.block import BlockObjective
from mdlm_jax.training.objectives.levenshtein import LevenshteinObjective
from tests.core import test_levenshtein as twin
from tests.marks import slow_unless
from tests.training import tiny

COLUMNS, DELETE, INSERT = tiny.VOCAB + 2, tiny.VOCAB, tiny.VOCAB + 1
STREAMS = dataclasses.replace(tiny.NETWORK, attention="two_stream", block_length=4, head_size=COLUMNS)
KEY, ROWS = jax.random.key(4), jnp.arange(4)


@pytest.fixture(autouse=True)
def the_twins_speak_of_our_ids(monkeypatch):
    for name, value in (("MASK", tiny.MASK), ("DELETE", DELETE), ("INSERT", INSERT)):
        monkeypatch.setattr(twin, name, value)


def objective(turns=3, weight=0.7, network=STREAMS, kind=LevenshteinObjective, **more):
    more = {"edit_weight": weight, "turns": turns} | more if kind is LevenshteinObjective else more
    return kind(network, tiny.process(), coupling="iid", half_head=False, **more)


def loss(made, trainable, batch, key=KEY):
    return jax.jit(lambda w: made.loss(w, batch, key, ROWS, 4))(trainable)


def test_one_turn_without_edits_is_block_diffusion():
    batch, trainable = tiny.batch(4), tiny.weights(objective())
    ours = loss(objective(turns=1, weight=0.0), trainable, batch)
    plain = loss(objective(kind=BlockObjective), trainable, batch)
    np.testing.assert_allclose(ours.terms["diffusion"], plain.terms["diffusion"], rtol=1e-5)
    assert not np.asarray(ours.terms["edit"]).any()
    assert objective(turns=3).train_flops(4, 8) == 3 * objective(kind=BlockObjective).train_flops(4, 8)


@pytest.mark.parametrize("prompts", slow_unless([False, True], True))
def test_every_turn_is_that_of_the_plain_twins(prompts):
    """Canvas and labels of each turn from those before, block by block, and -log p of the labels from the logits."""
    made, batch = objective(turns=3), tiny.batch(4, prompts=prompts)
    trainable = jax.tree.map(lambda x: 0.3 * x, tiny.weights(made))  # so that every kind of edit is drawn
    free = np.asarray(batch["noise_mask"]).reshape(4, 2, 4).all(-1)
    (draw,) = made.draws(made.noise_keys(KEY, ROWS), made._unit_levels(KEY, ROWS, 4), batch["noise_mask"])
    canvas = np.where(draw.masked, tiny.MASK, batch["tokens"])
    labels, expected = batch["tokens"], np.zeros((4, 8))
    kinds = set()
    for turn in range(3):
        prediction, _ = made.run(trainable, batch, jnp.asarray(canvas), None, KEY, ROWS)
        logits = np.asarray(prediction.logits(), np.float64)
        logits[..., tiny.MASK] = -np.inf
        log_p = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
        each = -np.take_along_axis(log_p, labels[..., None], -1)[..., 0] / 3
        expected += np.where(np.asarray(draw.masked) & (turn == 0), 0.0, 0.7 * each)
        if turn == 0:
            diffusion = np.where(draw.masked, np.asarray(draw.weight) * each, 0.0)
        if turn == 2:
            break
        edits, after = np.asarray(made.own_draws(prediction, KEY, ROWS, turn)), canvas.copy()
        kinds |= {int(edit) for edit in edits.ravel() if edit >= DELETE}
        for row in range(4):
            for block in range(2):
                here = slice(4 * block, 4 * block + 4)
                if free[row, block]:
                    after[row, here] = twin.applied(canvas[row, here], edits[row, here])
                else:
                    after[row, here] = np.where(edits[row, here] >= DELETE, canvas[row, here], edits[row, here])
        canvas = np.where(batch["noise_mask"], after, batch["tokens"])
        np.testing.assert_array_equal(made.edited(jnp.asarray(canvas), jnp.asarray(canvas), batch), canvas)
        wildcard, labels = turn == 0, batch["tokens"].copy()
        found = np.asarray(made.labels(jnp.asarray(canvas), batch, wildcard=wildcard))
        for row in range(4):
            for block in range(2):
                here = slice(4 * block, 4 * block + 4)
                if free[row, block]:
                    draft, text = canvas[row, here], batch["tokens"][row, here]
                    labels[row, here] = _labels(draft, text, wildcard)
        np.testing.assert_array_equal(found, labels)
    assert kinds == {DELETE, INSERT}
    parts = loss(made, trainable, batch)
    counted = np.asarray(batch["loss_mask"] & batch["noise_mask"])
    np.testing.assert_allclose(parts.terms["edit"], np.where(counted, expected, 0.0), rtol=2e-4, atol=1e-5)
    np.testing.assert_allclose(parts.terms["diffusion"], np.where(counted, diffusion, 0.0), rtol=2e-4, atol=1e-5)


def _labels(draft, text, wildcard):
    """By the twin's rule from the anchors of the library, which its own test compares with every subsequence."""
    anchored = levenshtein.anchors(jnp.asarray(draft), jnp.asarray(text), mask_id=tiny.MASK, wildcard=wildcard)
    return twin.labelled(list(draft), list(text), np.asarray(anchored).tolist())


def test_what_noise_may_not_touch_stays_and_is_not_counted():
    made, batch = objective(), tiny.batch(4)
    script = jnp.full((4, 8), DELETE)
    after = np.asarray(made.edited(jnp.asarray(batch["tokens"]), script, batch))
    locked = ~np.asarray(batch["noise_mask"])
    np.testing.assert_array_equal(after[locked], batch["tokens"][locked])
    whole = np.repeat(~locked.reshape(4, 2, 4).any(-1), 4, axis=1)
    assert (after[whole] == tiny.MASK).all() and (after[~whole] == batch["tokens"][~whole]).all()
    parts = loss(made, tiny.weights(made), batch)
    assert all((np.asarray(term)[locked] == 0).all() for term in parts.terms.values())


def test_no_gradient_passes_through_the_edits(monkeypatch):
    """With the canvases of the later turns given, the gradient is the same."""
    made, batch = objective(turns=2), tiny.batch(4, prompts=False)
    trainable = tiny.weights(made)
    whole = jax.jit(jax.grad(lambda w: made.loss(w, batch, KEY, ROWS, 4).objective()))(trainable)
    seen = []
    original = LevenshteinObjective.own_draws
    monkeypatch.setattr(LevenshteinObjective, "own_draws",
                        lambda self, *a: seen.append(original(self, *a)) or seen[-1])
    made.loss(trainable, batch, KEY, ROWS, 4)
    fixed = seen[0]
    monkeypatch.setattr(LevenshteinObjective, "own_draws", lambda self, *a: fixed)
    given = jax.jit(jax.grad(lambda w: made.loss(w, batch, KEY, ROWS, 4).objective()))(trainable)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), whole, given)


def test_a_block_that_is_the_row():
    network = dataclasses.replace(STREAMS, block_length=8)
    made, batch = objective(network=network), tiny.batch(4, prompts=False)
    terms = loss(made, tiny.weights(made), batch).terms
    assert all(np.isfinite(np.asarray(term)).all() and np.asarray(term).any() for term in terms.values())


def run(model=(), **train):
    model = {"attention": "block_causal", "block_length": 8, "d_model": 32} | dict(model)
    train = {"objective": "levenshtein:0.5,2", "batch_size": 8} | train
    return RunConfig(model=ModelConfig(**model), data=DataConfig(length=32), train=TrainConfig(**train))


def test_from_the_configuration():
    config = run({"head_size": 15}, block_schedule="2:10,8")
    process = build.build_process(config, tiny.VOCAB, tiny.MASK)
    network = build.build_network(config, tiny.VOCAB)
    made, notes = build.build_objective(config, network, process, 1)
    assert (made.edit_weight, made.turns, made.sizes, made.half_head) == (0.5, 2, ((2, 10), (8, 0)), False)
    assert made.at(0).network.block_length == 2 and made.at(10).network.block_length == 8
    assert type(build.build_bound(config, network, process, 1)) is BlockObjective
    assert any("full head" in note for note in notes)
    narrow = dataclasses.replace(config, model=dataclasses.replace(config.model, head_size=14))
    with pytest.raises(ConfigError, match="model.head_size=14: .* beyond the tokenizer's 13 ids; set it to 15"):
        build.build_objective(narrow, build.build_network(narrow, tiny.VOCAB), process, 1)


@pytest.mark.parametrize(("model", "train", "message"), [
    ({}, {"objective": "levenshtein:1"}, "takes 2 number"),
    ({}, {"objective": "levenshtein:-1,2"}, "WEIGHT must not be negative"),
    ({}, {"objective": "levenshtein:1,0"}, "TURNS a positive integer"),
    ({"attention": "bidirectional", "block_length": 1}, {}, "trains a block_causal network"),
    ({"block_length": 1}, {}, "one of a token has no room"),
    ({"block_length": 5}, {}, "must divide data.length"),
    ({}, {"confidence": 1.0}, "train.confidence"),
    ({}, {"each_twice": True}, "train.each_twice"),
])
def test_what_it_refuses(model, train, message):
    with pytest.raises(ConfigError, match=message):
        run(model, **train)
