"""CoDD's circuit: its likelihood is that of sums over rows and paths, it begins as marginals, it alone trains."""

import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mdlm_jax.core.prediction import Prediction
from mdlm_jax.core.process import Process
from mdlm_jax.core.schedules import Linear
from mdlm_jax.models import api, circuit, flops
from mdlm_jax.models.circuit import LOUD, CircuitConfig
from mdlm_jax.models.config import TransformerConfig
from mdlm_jax.training.objectives.codd import CoDDObjective

KEY = jax.random.key(0)
V, ID, L, S = 4, 4, 5, 3
NETWORK = TransformerConfig(V + 1, V + 1, layers=1, d_model=16, heads=2, kv_heads=2, d_ff=24, conditioning="time",
                            condition_dim=16)
PROCESS = Process(V + 1, ID, schedule=Linear(1e-3))
OBJECTIVE = CoDDObjective(NETWORK, PROCESS, states=S)


def random(tree, seed, spread=1.0):
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda leaf: jnp.asarray(spread * rng.standard_normal(leaf.shape), jnp.float32), tree)


WEIGHTS = random(circuit.abstract(CircuitConfig(S, V + 1)), 1)


def batch(rows=4, length=L):
    noise = np.ones((rows, length), bool)
    noise[0, :2] = noise[1, 3:] = False
    seen = np.ones((rows, length), np.int32)
    seen[1, 3:], seen[2, 2:] = 0, 2  # padding; two segments
    return {"tokens": jnp.asarray(np.random.default_rng(5).integers(0, V, (rows, length)), jnp.int32),
            "attention_mask": jnp.asarray(seen), "noise_mask": jnp.asarray(noise), "loss_mask": jnp.asarray(noise),
            "positions": jnp.broadcast_to(jnp.arange(length), (rows, length))}


def softmax(x):
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def circuit_law(params, row, segment):
    """sum_z w(z, x) of a whole row, in plain numpy float64: a matrix product a segment."""
    p = {name: np.asarray(leaf, np.float64) for name, leaf in params.items()}
    start, step, leaf, end = softmax(p["start"]), softmax(p["step"]), softmax(p["leaf"]), np.exp(p["end"])
    found = 1.0
    for number in sorted(set(segment) - {0}):
        now = None
        for token in row[segment == number]:
            now = (start if now is None else now @ step) * leaf[:, token]
        found *= now @ end
    return found


def enumerated(params, marginals, tokens, masked, segment):
    """log p(x_i | masks' tokens before i, what is seen) [L]: by sums over all that may stand at the masks."""
    places = np.flatnonzero(masked)
    weights = {}
    for values in itertools.product(range(V), repeat=len(places)):
        row = tokens.copy()
        row[places] = values
        weights[values] = circuit_law(params, row, segment) * np.prod([marginals[i, row[i]] for i in places])
    found, chosen = np.zeros(L), tuple(tokens[places])
    for number, place in enumerate(places):
        same = [sum(w for values, w in weights.items() if values[:n] == chosen[:n]) for n in (number, number + 1)]
        found[place] = np.log(same[1] / same[0])
    return found


@pytest.mark.parametrize("budget", [1 << 22, 8])
def test_the_likelihood_is_that_of_all_rows_and_paths(budget):
    """Every set of masks of one row, and rows with padding, two segments and what is never noised; whole and in chunks
    of one position."""
    data = batch()
    tokens, segment = np.asarray(data["tokens"]), np.asarray(data["attention_mask"])
    masked = np.array(list(itertools.product([False, True], repeat=L)))
    index = np.r_[np.full(len(masked), 3), 0, 1, 2, 2]
    masked = np.concatenate([masked, [[0, 0, 1, 1, 1], [1, 1, 1, 0, 0], [1, 1, 1, 1, 1], [0, 1, 1, 0, 1]]]).astype(bool)
    logits = 1.5 * np.random.default_rng(3).standard_normal((len(index), L, V + 1))
    marginals = softmax(np.where(np.arange(V + 1) == ID, -np.inf, logits))
    objective = CoDDObjective(NETWORK, PROCESS, states=S, head_budget=budget)
    found = jax.jit(objective.log_prob)(WEIGHTS, Prediction.from_logits(jnp.asarray(logits, jnp.float32)),
                                        jnp.asarray(tokens[index]), jnp.asarray(masked), jnp.asarray(segment[index]))
    expected = [enumerated(WEIGHTS, *one) for one in zip(marginals, tokens[index], masked, segment[index], strict=True)]
    np.testing.assert_allclose(np.where(masked, found, 0.0), expected, atol=3e-5)


def test_gradients_are_finite_differences():
    data = batch()
    logits = jnp.asarray(np.random.default_rng(3).standard_normal((4, L, V + 1)), jnp.float32)
    masked = jnp.asarray(np.random.default_rng(4).random((4, L)) < 0.7) & data["noise_mask"]

    def loss(params, wide=False):
        if wide:
            rows = zip(np.asarray(data["tokens"]), np.asarray(masked), np.asarray(data["attention_mask"]),
                       softmax(np.where(np.arange(V + 1) == ID, -np.inf, np.asarray(logits, np.float64))), strict=True)
            return -sum(enumerated(params, law, *row).sum() for *row, law in rows)
        objective = CoDDObjective(NETWORK, PROCESS, states=S, head_budget=16)
        found = objective.log_prob(params, Prediction.from_logits(logits), data["tokens"], masked,
                                   data["attention_mask"])
        return -jnp.where(masked, found, 0.0).sum()

    grads, rng = jax.jit(jax.grad(loss))(WEIGHTS), np.random.default_rng(6)
    for name, leaf in WEIGHTS.items():
        place = tuple(rng.integers(0, size) for size in leaf.shape)
        ends = []
        for h in (1e-4, -1e-4):
            moved = np.asarray(leaf, np.float64).copy()
            moved[place] += h
            ends.append(loss(WEIGHTS | {name: moved}, wide=True))
        assert float(grads[name][place]) == pytest.approx((ends[0] - ends[1]) / 2e-4, abs=2e-4), name


@pytest.mark.parametrize("states", [1, 2, 7])
def test_a_fresh_circuit_gives_the_marginals(states):
    """In total variation within 1e-3 a token and a bit; a silent one exactly, whatever its chain is."""
    fresh = circuit.init(CircuitConfig(states, V + 1), KEY)
    every = np.array(list(itertools.product(range(V), repeat=L)), np.int32)
    logits = np.broadcast_to(np.random.default_rng(3).standard_normal((L, V + 1)), (len(every), L, V + 1))
    marginals = softmax(np.where(np.arange(V + 1) == ID, -np.inf, logits[0]))
    apart = np.log(marginals[np.arange(L), every]).sum(1)
    everywhere = jnp.ones(every.shape, bool)
    objective = CoDDObjective(NETWORK, PROCESS, states=states)

    def law(params):
        prediction = Prediction.from_logits(jnp.asarray(logits, jnp.float32))
        return np.asarray(objective.log_prob(params, prediction, jnp.asarray(every), everywhere, everywhere)).sum(1)

    assert np.abs(np.exp(law(fresh)) - np.exp(apart)).sum() / 2 <= 1.5 * LOUD * (L + 1)
    silent = random(fresh, 4) | {"leaf": jnp.tile(fresh["leaf"][:1], (states, 1))}
    np.testing.assert_allclose(law(silent), apart, atol=2e-5)
    if states > 1:
        assert np.abs(law(random(fresh, 4)) - apart).max() > 0.1  # and circuits do say something


def test_only_the_circuit_trains_and_the_loss_is_weighted_by_the_number_of_masks():
    data, rows = batch(), jnp.arange(4)
    fresh = OBJECTIVE.init(KEY)
    params = {"network": random(api.abstract(NETWORK), 0, 0.4), "circuit": WEIGHTS}
    assert jax.tree.map(jnp.shape, fresh) == jax.tree.map(jnp.shape, params)

    @jax.jit
    def both(params):
        return jax.value_and_grad(lambda w: OBJECTIVE.loss(w, data, KEY, rows, 4).objective())(params)

    value, found = both(params)
    assert np.isfinite(value) and not any(np.any(leaf) for leaf in jax.tree.leaves(found["network"]))
    assert all(np.any(leaf) for leaf in jax.tree.leaves(found["circuit"]))
    parts = jax.jit(lambda w: OBJECTIVE.loss(w, data, KEY, rows, 4))(params)
    draw = OBJECTIVE.masks(data, KEY, rows, OBJECTIVE._unit_levels(KEY, rows, 4))
    noisy = OBJECTIVE.masked(data["tokens"], draw.masked)
    prediction = jax.jit(lambda w: OBJECTIVE.said(w, data, noisy, draw, KEY, rows))(params)
    marginals = np.exp(np.asarray(jax.nn.log_softmax(prediction.logits().at[..., ID].set(-jnp.inf)), np.float64))
    for row in range(4):
        masked = np.asarray(draw.masked)[row]
        nats = -enumerated(WEIGHTS, marginals[row], np.asarray(data["tokens"])[row], masked,
                           np.asarray(data["attention_mask"])[row])
        each = np.asarray(data["noise_mask"])[row].sum() / masked.sum()
        np.testing.assert_allclose(parts.terms["circuit"][row], each * nats, atol=1e-4)


def test_long_rows_and_sharp_laws_stay_finite():
    """Marginals that are nearly certain of what the circuit holds impossible, 400 positions of them."""
    length, rng = 400, np.random.default_rng(0)
    params = jax.tree.map(lambda leaf: 40.0 * leaf, WEIGHTS)
    logits = jnp.asarray(60.0 * rng.standard_normal((2, length, V + 1)), jnp.float32)
    tokens = jnp.asarray(rng.integers(0, V, (2, length)), jnp.int32)
    everywhere = jnp.ones((2, length), bool)

    def loss(params):
        return OBJECTIVE.log_prob(params, Prediction.from_logits(logits), tokens, everywhere, everywhere).sum()

    value, grads = jax.jit(jax.value_and_grad(loss))(params)
    assert np.isfinite(value) and all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(grads))


def test_flops_are_a_forward_and_the_circuit_with_its_gradient():
    tokens = 4 * L
    alone = flops.forward_flops(NETWORK, tokens, L, tokens)
    assert OBJECTIVE.train_flops(4, L) == alone + 4 * tokens * S * (V + 1) + 12 * tokens * S * S


@pytest.mark.parametrize(("make", "said"), [
    (lambda: CoDDObjective(NETWORK, Process(6, 5, 0.5)), "mixing=0.5: CoDDObjective knows no noise but the mask"),
    (lambda: CoDDObjective(NETWORK, PROCESS, states=0), "states=0: must be at least 1"),
    (lambda: CoDDObjective(dataclasses.replace(NETWORK, conditioning="none", attention="causal"), PROCESS),
     "network.attention='causal': whole rows are joined by the circuit"),
])
def test_mistakes_are_named(make, said):
    with pytest.raises(ValueError, match=said):
        make()
