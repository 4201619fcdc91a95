"""CoDD's decoder against sums over rows and paths in plain numpy, and at its edges."""

import dataclasses
import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mdlm_jax.models import api
from mdlm_jax.models.circuit import Circuit, CircuitConfig, init
from mdlm_jax.models.config import TransformerConfig
from mdlm_jax.models.denoise import Denoiser
from mdlm_jax.sampling.canvas import Canvas, canvas
from mdlm_jax.sampling.codd import CoDD
from mdlm_jax.sampling.entropy_bound import EntropyBound
from mdlm_jax.sampling.loop import decode
from tests.core.support import assert_law
from tests.marks import slow_unless
from tests.sampling.registry import loud

V, MASK, LENGTH, STATES = 3, 3, 4, 3
NETWORK = TransformerConfig(V + 1, V, layers=1, d_model=16, heads=2, kv_heads=1, d_ff=24,
                            learned_positions=16)  # so that rows of masks alone have no ties
_RNG = np.random.default_rng(0)
PARAMS = jax.tree.map(lambda leaf: jnp.asarray(0.6 * _RNG.standard_normal(leaf.shape), jnp.float32),
                      api.abstract(NETWORK))
CIRCUIT = loud(STATES, V)
EVERYTHING = np.array(list(itertools.product(range(V), repeat=LENGTH)), np.int32)


def rule(tokens=0, **fields):
    return CoDD(CIRCUIT, MASK, tokens, **fields)


def masks(rows, length=LENGTH) -> Canvas:
    tokens = np.full((rows, length), MASK, np.int32)
    return canvas(tokens, tokens == MASK)


def run(decoder, rows, given=None, **options):
    given = masks(*rows.shape) if given is None else given
    steps = given.shape[1] if decoder.reads_steps else None
    return decode(Denoiser(NETWORK), PARAMS, given, decoder, steps=steps, forced=jnp.asarray(rows), **options)


def scores(*args, **options):
    return np.asarray(run(*args, **options).log_prob, np.float64)


def softmax(x):
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


@functools.cache
def logits():
    """[(V + 1)^L, L, V]: what the network says of every state."""
    states = np.array(list(itertools.product(range(V + 1), repeat=LENGTH)), np.int32)
    with jax.default_matmul_precision("highest"):
        return np.asarray(api.apply(NETWORK, PARAMS, jnp.asarray(states)).logits(), np.float64)


def marginals(state, temperature=1.0, top_k=0):
    law = softmax(logits()[np.ravel_multi_index(tuple(state), (V + 1,) * LENGTH)] / temperature)
    if top_k:
        law = np.where(law >= np.sort(law, -1)[:, -top_k][:, None], law, 0.0)
    return law / law.sum(-1, keepdims=True)


def circuit_weights():
    """[V^L]: sum over paths of every row, by matrix products."""
    p = {name: np.asarray(leaf, np.float64) for name, leaf in CIRCUIT.params.items()}
    start, step, leaf, end = softmax(p["start"]), softmax(p["step"]), softmax(p["leaf"]), np.exp(p["end"])
    found = []
    for row in EVERYTHING:
        now = start * leaf[:, row[0]]
        for token in row[1:]:
            now = now @ step * leaf[:, token]
        found.append(now @ end)
    return np.array(found)


WEIGHTS = circuit_weights()


def product(state, on=True, **law):
    """[V^L]: the joint law of the masks given what stands in the row, of rows of that alone."""
    law = marginals(state, **law)
    fits = ((state == MASK) | (state == EVERYTHING)).all(1)
    each = np.where(state == MASK, law[np.arange(LENGTH), EVERYTHING], 1.0).prod(1)
    found = fits * each * (WEIGHTS if on else 1.0)
    return found / found.sum()


def twin(row, tokens, max_masked=1.0, block_length=LENGTH, **law):
    """log q(row) and its forwards, by sums over all rows: K masks of least entropy of the product's own marginals."""
    state, nats, forwards = np.full(LENGTH, MASK, np.int32), 0.0, 0
    while (state == MASK).any():
        forwards += 1
        joint = product(state, (state == MASK).sum() <= max_masked * LENGTH, **law)
        single = np.array([[joint[EVERYTHING[:, i] == c].sum() for c in range(V)] for i in range(LENGTH)])
        entropy = -np.where(single > 0, single * np.log(np.maximum(single, 1e-300)), 0.0).sum(1)
        block = np.arange(LENGTH) // block_length == (state == MASK).argmax() // block_length
        places = np.flatnonzero((state == MASK) & block)
        chosen = sorted(places, key=lambda i: entropy[i])[: tokens or None]
        chance = joint[(EVERYTHING[:, chosen] == row[chosen]).all(1)].sum()
        nats += np.log(chance) if chance else -np.inf
        state[chosen] = row[chosen]
    return nats, forwards


CASES = {"all": (0, {}), "one": (1, {}), "two": (2, {}), "three": (3, {}), "temperature": (2, {"temperature": 0.6}),
         "top_k": (2, {"top_k": 2}), "late": (1, {"max_masked": 0.6}), "never": (2, {"max_masked": 0.0}),
         "blocks": (0, {"block_length": 3})}


@pytest.mark.parametrize("name", slow_unless(CASES, "two", "top_k", "late", "blocks"))
def test_scores_are_those_of_the_plain_twin(name):
    tokens, fields = CASES[name]
    call = {key: value for key, value in fields.items() if key == "block_length"}
    law = {key: value for key, value in fields.items() if key not in call}
    rows = np.random.default_rng(2).permutation(EVERYTHING)[:12]
    with jax.default_matmul_precision("highest"):
        found = run(rule(tokens, **law), rows, **call)
        expected = [twin(row, tokens, **fields) for row in rows]
    finite = np.array([np.isfinite(nats) for nats, _ in expected])
    np.testing.assert_array_equal(np.isfinite(found.log_prob), finite)
    np.testing.assert_allclose(np.asarray(found.log_prob)[finite], [nats for nats, _ in expected if np.isfinite(nats)],
                               atol=1e-4)
    np.testing.assert_array_equal(found.forwards, [forwards for _, forwards in expected])


@pytest.mark.parametrize("tokens", slow_unless([0, 1, 2, 3], 2))
def test_probabilities_of_all_rows_sum_to_one_and_draws_follow_them(tokens):
    q = np.exp(scores(rule(tokens, temperature=0.8), EVERYTHING))
    assert q.sum() == pytest.approx(1, abs=1e-4)
    drawn = decode(Denoiser(NETWORK), PARAMS, masks(20_000), rule(tokens, temperature=0.8), seed=4).tokens
    assert_law(np.ravel_multi_index(tuple(np.asarray(drawn).T), (V,) * LENGTH), q / q.sum())


def test_a_fresh_circuit_draws_from_marginals_and_one_by_one_is_the_network_s_own():
    fresh = Circuit(init(CircuitConfig(5, V), jax.random.key(1)), CircuitConfig(5, V))
    law = marginals(np.full(LENGTH, MASK, np.int32))
    apart = law[np.arange(LENGTH), EVERYTHING].prod(1)
    assert np.abs(np.exp(scores(CoDD(fresh, MASK), EVERYTHING)) - apart).sum() / 2 < 1e-2
    np.testing.assert_allclose(scores(rule(max_masked=0.9), EVERYTHING), np.log(apart), atol=1e-4)
    alone = scores(EntropyBound(MASK, temperature=1.0, gamma=0.0), EVERYTHING)
    np.testing.assert_allclose(scores(rule(3).one_by_one(), EVERYTHING), alone, atol=1e-4)


def test_a_prompt_is_read_and_a_row_does_not_see_padding_or_its_batch():
    """The law behind a prompt is the product given it; with padding, and beside other rows, the draws are the same."""
    prompt, rows = np.array([2, 0], np.int32), EVERYTHING[(EVERYTHING[:, :2] == [2, 0]).all(1)]
    given = canvas(np.where(np.arange(LENGTH) < 2, rows, MASK), np.broadcast_to(np.arange(LENGTH) > 1, rows.shape))
    expected = product(np.array([2, 0, MASK, MASK], np.int32))
    np.testing.assert_allclose(np.exp(scores(rule(), rows, given)), expected[expected > 0], atol=1e-4)
    tokens = np.full((3, 8), MASK, np.int32)
    tokens[0, :2] = prompt
    editable = tokens == MASK
    editable[0, 6:] = False
    segment = np.where(np.arange(8) < np.array([[6], [8], [8]]), 1, 0)
    together = Canvas(jnp.asarray(tokens), jnp.asarray(editable), jnp.arange(3), jnp.array([2, 0, 0]),
                      jnp.asarray(segment))
    found = decode(Denoiser(NETWORK), PARAMS, together, rule(3), seed=7)
    alone = Canvas(jnp.asarray(tokens[:1, :6]), jnp.asarray(editable[:1, :6]), jnp.arange(1), jnp.array([2]))
    np.testing.assert_array_equal(decode(Denoiser(NETWORK), PARAMS, alone, rule(3), seed=7).tokens[0],
                                  found.tokens[0, :6])
    assert (np.asarray(found.tokens)[editable] != MASK).all()


def test_at_temperature_zero_one_row_is_written_and_has_all_the_probability():
    found = np.asarray(decode(Denoiser(NETWORK), PARAMS, masks(16), rule(2, temperature=0.0), seed=1).tokens)
    assert (found == found[0]).all()
    q = scores(rule(2, temperature=0.0), EVERYTHING)
    assert q[np.ravel_multi_index(tuple(found[0]), (V,) * LENGTH)] == 0.0 and np.isneginf(q).sum() == len(q) - 1


def test_tokens_that_are_forbidden_are_never_written():
    bias = jnp.array([0.0, -jnp.inf, 0.0])
    found = decode(Denoiser(NETWORK), PARAMS, masks(64), rule(), bias=bias, seed=1)
    assert not (np.asarray(found.tokens) == 1).any()
    q = scores(rule(), EVERYTHING, bias=bias)
    assert np.isneginf(q[(EVERYTHING == 1).any(1)]).all() and np.exp(q).sum() == pytest.approx(1, abs=1e-4)


@pytest.mark.parametrize("share", slow_unless([0.5, 0.51, 0.76, 0.99], 0.5))
def test_the_circuit_is_asked_from_a_share_of_masks_on(share):
    """Two tokens a forward of four: of four masks, then of two."""
    marginal, asked = scores(rule(2, max_masked=0.0), EVERYTHING), scores(rule(2), EVERYTHING)
    found = scores(rule(2, max_masked=share), EVERYTHING)
    assert np.abs(found - marginal).max() > 0.05 and np.abs(found - asked).max() > 0.05
    np.testing.assert_allclose(found, scores(rule(2, max_masked=0.6), EVERYTHING), atol=1e-6)


@pytest.mark.parametrize(("make", "options", "said"), [
    (lambda: rule(-1), {}, "tokens=-1: must be at least 1 token a forward, or 0"),
    (lambda: rule(max_masked=1.5), {}, r"max_masked=1.5: must lie in \[0, 1\]"),
    (lambda: rule(temperature=-1.0), {}, "temperature=-1.0: must be 0"),
    (lambda: CoDD(mask_id=MASK), {}, "circuit=None: CoDD needs what train.objective=codd:16 trained"),
    (lambda: CoDD(loud(2, V - 1), MASK), {}, "circuit: emits 2 ids and the network 3"),
    (rule, {"steps": 5}, "steps=5: CoDD takes as many as it needs"),
    (rule, {"block_length": 2, "cache": "prefix"}, "cache='prefix': CoDD looks beyond the block"),
])
def test_mistakes_are_named(make, options, said):
    with pytest.raises(ValueError, match=said):
        decode(Denoiser(NETWORK), PARAMS, masks(1), make(), **options)


def test_a_network_of_blocks_is_refused():
    network = dataclasses.replace(NETWORK, attention="block_causal", block_length=2)
    with pytest.raises(ValueError, match="this one is block_causal; use adjust, or a bidirectional network"):
        decode(Denoiser(network), PARAMS, masks(1), rule(), block_length=2)
