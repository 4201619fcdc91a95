"""On-policy uniform training: what the second reading shows, what counts, and that nothing flows through it."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mdlm_jax.core.levels import Fixed
from mdlm_jax.core.prediction import Prediction
from mdlm_jax.core.weights import Power
from mdlm_jax.models import api
from mdlm_jax.training.objectives.block import BlockObjective
from mdlm_jax.training.objectives.count import CountObjective
from mdlm_jax.training.objectives.dmax import DMaxBlockObjective, DMaxObjective
from tests.training import tiny

KEY = jax.random.key(0)
TABLE = np.random.default_rng(0).standard_normal((tiny.VOCAB, tiny.VOCAB)).astype(np.float32)
STREAMS = dataclasses.replace(tiny.NETWORK, attention="two_stream", block_length=4)
PLAIN = {"law": Fixed(0.75), "weighting": Power(0.0), "coupling": "iid", "half_head": False}


def logits(tokens, table):
    """Of a token and its left neighbour."""
    left = list(range(-1, tokens.shape[1] - 1))
    return 2.0 * table[tokens] + 1.5 * table[(tokens + 5) % tiny.VOCAB][:, left]


def observed(monkeypatch, objective, batch, table=TABLE, key=KEY):
    """(parts, the tokens of both readings) of the network that `logits` is."""
    seen = []

    def apply(network, params, tokens, **options):
        seen.append(tokens)
        return Prediction.from_logits(logits(tokens, params))

    monkeypatch.setattr(api, "apply", apply)

    @jax.jit
    def run(table, batch):
        seen.clear()
        rows = len(batch["tokens"])
        parts = objective.loss({"network": table}, batch, key, jnp.arange(rows), rows)
        return parts, list(seen)

    return jax.tree.map(np.asarray, run(table, batch))


def log_probs(tokens):
    said = logits(tokens, TABLE).astype(np.float64)[..., : tiny.MASK]
    return said - np.log(np.exp(said).sum(-1, keepdims=True))


@pytest.mark.parametrize("half_head", [True, False])
def test_both_losses_are_those_of_a_plain_loop(half_head, monkeypatch):
    batch = tiny.batch(64)
    rule = DMaxObjective(tiny.NETWORK, tiny.process(), masked_weight=0.7, own_weight=1.3, half_head=half_head)
    parts, (noisy, shown) = observed(monkeypatch, rule, batch)
    first, own = np.zeros(noisy.shape), np.zeros(noisy.shape)
    for row, free in enumerate(batch["noise_mask"]):
        masks = noisy[row] == tiny.MASK
        np.testing.assert_array_equal(shown[row], np.where(
            masks, log_probs(noisy)[row].argmax(-1), batch["tokens"][row]))
        for i in np.flatnonzero(free):
            token = batch["tokens"][row, i]
            own[row, i] = -1.3 * log_probs(shown)[row, i, token]
            first[row, i] = masks[i] * -0.7 * log_probs(noisy)[row, i, token] * free.sum() / masks.sum()
    np.testing.assert_allclose(parts.terms["diffusion"], first, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(parts.terms["own"], own, rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(parts.loss_mask, batch["noise_mask"] & batch["loss_mask"])
    assert (shown != tiny.MASK).all() and (shown != batch["tokens"]).any()


def test_predictions_may_be_drawn(monkeypatch):
    batch = tiny.batch(2048, prompts=False)
    batch["tokens"][:] = batch["tokens"][:1]
    rule = DMaxObjective(tiny.NETWORK, tiny.process(), **PLAIN | {"law": Fixed(1.0)}, temperature=2.0)
    _, (noisy, shown) = observed(monkeypatch, rule, batch)
    assert (noisy == tiny.MASK).all()
    law = np.exp(log_probs(noisy)[0] / 2.0)
    law /= law.sum(-1, keepdims=True)
    for i in range(tiny.LENGTH):
        share = np.bincount(shown[:, i], minlength=tiny.MASK) / 2048
        assert (np.abs(share - law[i]) < 5 * np.sqrt(law[i] * (1 - law[i]) / 2048) + 1e-3).all()


def test_without_the_second_reading_it_is_the_masked_loss(monkeypatch):
    batch = tiny.batch(64)
    plain, (noisy,) = observed(monkeypatch, CountObjective(tiny.NETWORK, tiny.process()), batch)
    found, (same, _) = observed(monkeypatch, DMaxObjective(tiny.NETWORK, tiny.process(), own_weight=0.0), batch)
    np.testing.assert_array_equal(noisy, same)
    np.testing.assert_allclose(found.terms["diffusion"], plain.terms["diffusion"], rtol=1e-6)
    assert (found.terms["own"] == 0).all()


def test_no_gradient_passes_through_the_predictions(monkeypatch):
    """It is that of the two losses with the second reading held fixed."""
    batch = tiny.batch(16)
    rule = DMaxObjective(tiny.NETWORK, tiny.process(), **PLAIN)
    _, (noisy, shown) = observed(monkeypatch, rule, batch)

    def total(table):
        return rule.loss({"network": table}, batch, KEY, jnp.arange(16), 16).objective()

    def fixed(table):
        def each(tokens):
            said = jax.nn.log_softmax(logits(jnp.asarray(tokens), table)[..., : tiny.MASK])
            return -jnp.take_along_axis(said, jnp.minimum(batch["tokens"], 11)[..., None], -1)[..., 0]

        return jnp.where(noisy == tiny.MASK, each(noisy), 0).sum() + (each(shown) * batch["noise_mask"]).sum()

    np.testing.assert_allclose(*(jax.jit(jax.grad(one))(jnp.asarray(TABLE)) for one in (total, fixed)), atol=1e-3)


def test_in_blocks_the_noisy_stream_is_read_twice_beside_the_clean_one(monkeypatch):
    batch = tiny.batch(32)
    plain, (streams,) = observed(monkeypatch, BlockObjective(STREAMS, tiny.process()), batch)
    parts, (first, second) = observed(monkeypatch, DMaxBlockObjective(STREAMS, tiny.process()), batch)
    np.testing.assert_array_equal(streams, first)
    np.testing.assert_allclose(parts.terms["diffusion"], plain.terms["diffusion"], rtol=1e-6)
    noisy, shown = first[:, :8], second[:, :8]
    np.testing.assert_array_equal(second[:, 8:], batch["tokens"])
    np.testing.assert_array_equal(shown, np.where(noisy == tiny.MASK, log_probs(first)[:, :8].argmax(-1),
                                                  batch["tokens"]))
    own = -np.take_along_axis(log_probs(second)[:, :8], batch["tokens"][..., None], -1)[..., 0] * batch["noise_mask"]
    np.testing.assert_allclose(parts.terms["own"], own, rtol=1e-4, atol=1e-5)


def test_a_row_of_one_block_is_a_whole_row():
    """On a real network."""
    batch = tiny.batch(6, prompts=False)
    whole = DMaxObjective(tiny.NETWORK, tiny.process(), **PLAIN)
    block = DMaxBlockObjective(dataclasses.replace(STREAMS, block_length=8), tiny.process(), **PLAIN)
    trainable = tiny.weights(whole)

    found, expected = (jax.jit(lambda w, rule=rule: rule.loss(w, batch, KEY, jnp.arange(6), 6).objective())(trainable)
                       for rule in (block, whole))
    assert math.isfinite(float(found))
    np.testing.assert_allclose(found, expected, rtol=1e-4)


@pytest.mark.parametrize(("fields", "said"), [
    ({"own_weight": -1.0}, "own_weight=-1.0"), ({"temperature": -0.5}, "must not be negative"),
    ({"both": True}, "rows that are read once"), ({"confidence": 1.0}, "rows that are read once"),
    ({"process": tiny.process(0.1)}, "mixing must be 0"),
])
def test_numbers_that_cannot_be(fields, said):
    with pytest.raises(ValueError, match=said):
        dataclasses.replace(DMaxObjective(tiny.NETWORK, tiny.process()), **fields)
