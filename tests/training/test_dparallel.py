"""Certainty-forcing distillation: which tokens are masked, what they count, and where the entropy has a gradient."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mdlm_jax.core.levels import Uniform
from mdlm_jax.core.prediction import Head, Prediction
from mdlm_jax.models import api
from mdlm_jax.training.objectives.count import CountObjective
from mdlm_jax.training.objectives.dparallel import DParallelObjective
from tests.training import tiny

ROWS, KEY = 512, jax.random.key(0)
TABLE = np.random.default_rng(0).standard_normal((tiny.VOCAB, tiny.VOCAB)).astype(np.float32)


def objective(**fields):
    return DParallelObjective(tiny.NETWORK, tiny.process(), **{"block": 3} | fields)


def logits(tokens, table):
    """Of a token and its left neighbour, whatever the array library."""
    return 2.0 * table[tokens] + 1.5 * table[(tokens + 5) % tiny.VOCAB][:, [7, *range(7)]]


def observed(monkeypatch, objective, batch, table=TABLE):
    """(parts, the noisy rows) of the network that `logits` is."""
    seen = []

    def apply(network, params, tokens, **options):
        seen.append(tokens)
        return Prediction.from_logits(logits(tokens, params))

    monkeypatch.setattr(api, "apply", apply)

    @jax.jit
    def run(table, batch):
        seen.clear()
        rows = len(batch["tokens"])
        return objective.loss({"network": table}, batch, KEY, jnp.arange(rows), rows), seen[0]

    return jax.tree.map(np.asarray, run(table, batch))


@pytest.mark.parametrize("block", [1, 3, 50])
def test_of_one_block_half_is_masked_then_the_other_half_and_all_behind_it(block, monkeypatch):
    batch = tiny.batch(ROWS)
    _, noisy = observed(monkeypatch, objective(block=block), batch)
    chosen, first_half = [], []
    for pair, free in zip((noisy == tiny.MASK).reshape(ROWS, 2, -1), batch["noise_mask"], strict=True):
        places = np.flatnonzero(free)
        blocks = [places[i : i + block] for i in range(0, len(places), block)]
        active = [i for i, part in enumerate(blocks) if (pair[0, part] ^ pair[1, part]).any()]
        assert len(active) == 1  # complements in one block
        now = blocks[active[0]]
        assert (pair[0, now] ^ pair[1, now]).all()
        assert pair[:, now].sum(1).tolist() == [len(now) // 2, -(-len(now) // 2)]
        rest = np.zeros(8, bool)
        rest[places[places > now[-1]]] = True
        outside = np.delete(np.arange(8), now)
        assert (pair[:, outside] == rest[outside]).all()  # clean before, masked behind; what noise may not touch stays
        chosen.append((active[0], len(blocks)))
        first_half.append(pair[0, now] if len(now) % 2 == 0 else [])
    np.testing.assert_array_equal(np.where(noisy == tiny.MASK, 0, noisy - np.repeat(batch["tokens"], 2, 0)), 0)
    for number in {n for _, n in chosen}:  # every block alike, every half alike
        counts = np.bincount([one for one, n in chosen if n == number], minlength=number)
        assert (np.abs(counts - counts.mean()) <= 4.5 * np.sqrt(counts.mean())).all()
    half = np.concatenate(first_half)
    assert not len(half) or abs(half.mean() - 0.5) < 1e-9
    for size in {len(part) for part in first_half if len(part)}:
        share = np.mean([part for part in first_half if len(part) == size], axis=0)
        assert (np.abs(share - 0.5) < 4.5 * 0.5 / np.sqrt(sum(len(p) == size for p in first_half))).all()


def twin(batch, noisy, beta, temperature):
    """Both terms, token by token, in plain numpy."""
    tokens, length = np.repeat(batch["tokens"], 2, 0), batch["tokens"].shape[1]
    said = logits(noisy, TABLE).astype(np.float64)[..., : tiny.MASK]
    found = {"diffusion": np.zeros(tokens.shape), "confidence": np.zeros(tokens.shape)}
    count = 0
    for row in range(len(tokens)):
        other = noisy[row ^ 1]
        for i in range(length):
            if noisy[row, i] != tiny.MASK or other[i] == tiny.MASK or not batch["loss_mask"][row // 2, i]:
                continue  # seen, or behind the active block
            count += 1
            p = np.exp(said[row, i]) / np.exp(said[row, i]).sum()
            found["diffusion"][row, i] = -math.log(p[tokens[row, i]])
            if p.argmax() == tokens[row, i]:
                sharp = np.exp(said[row, i] / temperature) / np.exp(said[row, i] / temperature).sum()
                found["confidence"][row, i] = beta * -(sharp * np.log(sharp)).sum()
    return found, count


@pytest.mark.parametrize(("half_head", "temperature"), [(True, 0.5), (False, 0.5), (True, 1.0), (False, 2.0)])
def test_the_loss_is_that_of_a_plain_loop(half_head, temperature, monkeypatch):
    batch = tiny.batch(64)
    batch["loss_mask"][:, 3] = False
    rule = objective(half_head=half_head, confidence=1.7, sharpness=temperature)
    parts, noisy = observed(monkeypatch, rule, batch)
    expected, count = twin(batch, noisy, 1.7, temperature)
    for name, values in expected.items():
        np.testing.assert_allclose(parts.terms[name], values, rtol=2e-4, atol=2e-5)
        assert (values > 0).any()
    assert float(parts.totals().count) == count and (expected["confidence"] > 0).sum() < count
    assert float(parts.totals().mean()) == pytest.approx(sum(v.sum() for v in expected.values()) / count, rel=1e-4)


def test_the_entropy_has_a_gradient_only_where_a_masked_token_is_guessed_right(monkeypatch):
    batch = tiny.batch(32)
    _, noisy = observed(monkeypatch, objective(), batch)
    right = twin(batch, noisy, 1.0, 0.5)[0]["confidence"] > 0
    said = jnp.asarray(logits(noisy, TABLE))
    rule = objective(confidence=1.0, half_head=False)
    tokens, masked = jnp.asarray(np.repeat(batch["tokens"], 2, 0)), jnp.asarray(noisy == tiny.MASK)

    def forced(said):
        return rule.masked_terms(Prediction.from_logits(said), tokens, masked, 1.0)["confidence"][right].sum()

    def alone(said):
        log_p = jax.nn.log_softmax(said[..., : tiny.MASK] / 0.5)
        return -(jnp.exp(log_p) * log_p).sum(-1)[right].sum()

    gradient, wanted = (np.asarray(jax.jit(jax.grad(one))(said)) for one in (forced, alone))
    np.testing.assert_allclose(gradient, wanted, atol=1e-4)
    assert (gradient[~right] == 0).all() and (np.abs(gradient[right]).sum(-1) > 0).all()


def test_a_temperature_divides_logits_with_their_bias():
    rng = np.random.default_rng(1)
    prediction = Prediction(*(jnp.asarray(rng.standard_normal((2, 3, 4)), jnp.float32),
                              Head(*(jnp.asarray(rng.standard_normal(s), jnp.float32) for s in ((4, 6), (6,))))))
    np.testing.assert_allclose(prediction.tempered(0.3).logits(), prediction.logits() / 0.3, rtol=1e-4)


def test_half_and_full_head_agree_and_no_more_of_it_is_run_than_the_block():
    batch = tiny.batch(6)
    half, full = (objective(half_head=h) for h in (True, False))
    trainable = tiny.weights(half)

    def gradient(rule):
        return jax.jit(jax.value_and_grad(
            lambda w: rule.loss(w, batch, KEY, jnp.arange(6), 6).objective()))(trainable)

    (found, slope), (expected, wanted) = gradient(half), gradient(full)
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-4), slope, wanted)
    assert half.head_positions(6, 8) == 6 * 3 and full.head_positions(6, 8) == 12 * 8
    assert objective(block=99).head_positions(6, 8) == 6 * 8


def test_a_row_without_anything_to_noise_counts_nothing(monkeypatch):
    batch = tiny.batch(4)
    for name in ("noise_mask", "loss_mask"):
        batch[name][:2] = False
    parts, noisy = observed(monkeypatch, objective(), batch)
    assert (parts.loss_mask[:4] == 0).all() and (noisy[:4] != tiny.MASK).all() and parts.loss_mask[4:].any()
    assert np.isfinite(float(parts.totals().mean()))


@pytest.mark.parametrize(("fields", "said"), [
    ({"block": 0}, "block=0, confidence=2.0, sharpness=0.5: need a block of a token at least"),
    ({"confidence": -1.0}, "a weight that is not negative"), ({"sharpness": 0.0}, "a positive temperature"),
    ({"law": Uniform()}, "half of a block is masked"), ({"both": False}, "half of a block is masked"),
    ({"network": tiny.TIMED}, "must see whole rows and no time"),
    ({"network": dataclasses.replace(tiny.NETWORK, attention="causal")}, "must see whole rows"),
    ({"process": tiny.process(0.1)}, "half of a block is masked"),
])
def test_numbers_that_cannot_be(fields, said):
    with pytest.raises(ValueError, match=said):
        dataclasses.replace(objective(), **fields)


def test_without_an_entropy_at_another_temperature_it_is_cap():
    """The rule of the entropy is `CountObjective`'s, which takes any temperature."""
    batch, said = tiny.batch(8), jnp.asarray(logits(tiny.batch(8, seed=1)["tokens"], TABLE))
    shared = {"confidence": 0.5, "half_head": False}
    rules = [objective(**shared, sharpness=1.0), CountObjective(tiny.NETWORK, tiny.process(), **shared)]
    found = [rule.masked_terms(Prediction.from_logits(said), batch["tokens"], batch["noise_mask"], 1.0)
             for rule in rules]
    jax.tree.map(np.testing.assert_array_equal, *found)
