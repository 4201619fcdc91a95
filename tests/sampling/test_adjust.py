"""ADJUST against a plain Python twin, by enumeration, and at its edges."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mdlm_jax.models import api, joint
from mdlm_jax.models.config import TransformerConfig
from mdlm_jax.models.denoise import Denoiser
from mdlm_jax.sampling.adjust import Adjust
from mdlm_jax.sampling.canvas import Canvas, canvas
from mdlm_jax.sampling.entropy_bound import EntropyBound
from mdlm_jax.sampling.loop import decode
from tests.marks import slow_unless

V, MASK, LENGTH = 3, 3, 5
NETWORK = TransformerConfig(V + 1, V, layers=1, d_model=16, heads=2, kv_heads=1, d_ff=24,
                            learned_positions=16)  # so that rows of masks alone have no ties
NEVER = float("inf")


def weights(tree, seed):
    """Far from their beginnings: laws that depend on the context, a layer that says something."""
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda leaf: jnp.asarray(0.6 * rng.standard_normal(leaf.shape), jnp.float32), tree)


PARAMS = weights(api.abstract(NETWORK), 0)
LAYER = weights(joint.abstract(NETWORK), 1)
ZERO = LAYER | {"gain": jnp.zeros(16)}


def rule(tokens, layer=LAYER, network=NETWORK, params=PARAMS, scope="row", most=8, **fields):
    sampler = joint.JointSampler(layer, params["embedding"], network, most, scope)
    return Adjust(sampler, MASK, tokens, **fields)


def masks(rows, length=LENGTH) -> Canvas:
    tokens = np.full((rows, length), MASK, np.int32)
    return canvas(tokens, tokens == MASK)


def scores(decoder, rows, given=None, **options):
    given = masks(*rows.shape) if given is None else given
    steps = given.shape[1] if decoder.reads_steps else None
    return np.asarray(decode(Denoiser(NETWORK), PARAMS, given, decoder, steps=steps, forced=jnp.asarray(rows), **options
                             ).log_prob)


EVERYTHING = np.array(list(itertools.product(range(V), repeat=LENGTH)), np.int32)


def log_law(hidden, temperature=1.0):
    """[L, V] of one row's hidden states."""
    logits = np.asarray(hidden @ PARAMS["head"], np.float64) / temperature
    return logits - np.logaddexp.reduce(logits, -1, keepdims=True)


def twin(row, tokens, layer, temperature=1.0, max_entropy=NEVER, budget=NEVER, block_length=LENGTH):
    """log q(row), and how many forwards it takes, in plain Python; the layer sees the whole row, also in blocks."""
    state, total, forwards = np.full(len(row), MASK, np.int32), 0.0, 0
    while (state == MASK).any():
        hidden = api.apply(NETWORK, PARAMS, jnp.array(state[None])).hidden
        forwards, spent = forwards + 1, 0.0
        block = np.arange(len(row)) // block_length == (state == MASK).argmax() // block_length
        for number in range(tokens):
            law = log_law(hidden[0], temperature)
            entropy = np.where((state == MASK) & block, -(np.exp(law) * law).sum(-1), np.inf)
            place = entropy.argmin()
            if number:
                spent += entropy[place]
            if np.isinf(entropy[place]) or number and (entropy[place] > max_entropy or spent > budget):
                break
            total, state[place] = total + law[place, row[place]], row[place]
            hidden = joint.step(NETWORK, layer, PARAMS["embedding"], jnp.array(state[None]), hidden)
    return total, forwards


@pytest.mark.parametrize(("tokens", "layer", "fields"), slow_unless(
    [(1, LAYER, {}), (2, LAYER, {}), (3, LAYER, {}), (5, LAYER, {}), (3, ZERO, {}), (3, LAYER, {"temperature": 0.7}),
     (5, LAYER, {"max_entropy": 0.6}), (5, LAYER, {"budget": 0.9}), (3, LAYER, {"block_length": 2})],
    "two", "zero", "temperature", "max_entropy", "budget", "blocks",
    ids=["one", "two", "three", "five", "zero", "temperature", "max_entropy", "budget", "blocks"]))
def test_scores_are_those_of_the_plain_twin(tokens, layer, fields):
    rows, blocks = np.random.default_rng(2).permutation(EVERYTHING)[:6], {"block_length"} & fields.keys()
    own, call = ({key: value for key, value in fields.items() if (key in blocks) == of} for of in (False, True))
    with jax.default_matmul_precision("highest"):
        found = decode(Denoiser(NETWORK), PARAMS, masks(6), rule(tokens, layer, **own), forced=jnp.array(rows), **call)
        expected = [twin(row, tokens, layer, **fields) for row in rows]
    np.testing.assert_allclose(found.log_prob, [nats for nats, _ in expected], rtol=1e-4, atol=1e-4)
    np.testing.assert_array_equal(found.forwards, [forwards for _, forwards in expected])


@pytest.mark.parametrize("tokens", slow_unless([1, 2, 3, 5], 2, 5))
def test_probabilities_of_all_rows_sum_to_one(tokens):
    for layer in (LAYER, ZERO):
        assert np.exp(scores(rule(tokens, layer), EVERYTHING)).sum() == pytest.approx(1, abs=1e-4)


def test_one_token_is_the_network_s_own_decoding_and_the_untrained_layer_draws_from_marginals():
    alone = scores(EntropyBound(MASK, temperature=1.0, gamma=0.0), EVERYTHING)
    np.testing.assert_allclose(scores(rule(1), EVERYTHING), alone, atol=1e-4)
    np.testing.assert_allclose(scores(Adjust(mask_id=MASK, tokens=1), EVERYTHING), alone, atol=1e-4)
    law = log_law(api.apply(NETWORK, PARAMS, jnp.full((1, LENGTH), MASK)).hidden[0])
    apart = law[np.arange(LENGTH), EVERYTHING].sum(1)
    np.testing.assert_allclose(scores(rule(LENGTH, ZERO), EVERYTHING), apart, atol=1e-4)
    assert np.abs(scores(rule(LENGTH), EVERYTHING) - apart).max() > 0.1  # and the layer does say something


def test_draws_follow_the_scores():
    """Chi-square of 20,000 rows against the law that the scores give; cells expected less than 5 times are pooled."""
    from scipy.stats import chi2

    law = np.exp(scores(rule(3), EVERYTHING).astype(np.float64))
    drawn = np.asarray(decode(Denoiser(NETWORK), PARAMS, masks(20_000), rule(3), seed=4).tokens)
    counts = np.bincount(np.ravel_multi_index(tuple(drawn.T), (V,) * LENGTH), minlength=len(law))
    expected, rare = 20_000 * law / law.sum(), 20_000 * law < 5
    seen = np.append(counts[~rare], counts[rare].sum())
    wanted = np.append(expected[~rare], expected[rare].sum())
    assert chi2.sf(((seen - wanted) ** 2 / wanted).sum(), len(seen) - 1) > 1e-3


def test_prompts_padding_and_the_batch_change_nothing():
    """A row with a prompt and padding is written as it is alone, without the padding."""
    prompt = np.array([2, 0], np.int32)
    tokens = np.full((3, 8), MASK, np.int32)
    tokens[0, :2] = prompt
    editable = tokens == MASK
    editable[0, 6:] = False
    segment = np.where(np.arange(8) < np.array([[6], [8], [8]]), 1, 0)
    together = Canvas(jnp.asarray(tokens), jnp.asarray(editable), jnp.arange(3), jnp.array([2, 0, 0]),
                      jnp.asarray(segment))
    found = decode(Denoiser(NETWORK), PARAMS, together, rule(3), seed=7)
    np.testing.assert_array_equal(found.tokens[0, :2], prompt)
    alone = Canvas(jnp.asarray(tokens[:1, :6]), jnp.asarray(editable[:1, :6]), jnp.arange(1), jnp.array([2]))
    np.testing.assert_array_equal(decode(Denoiser(NETWORK), PARAMS, alone, rule(3), seed=7).tokens[0],
                                  found.tokens[0, :6])
    assert (np.asarray(found.tokens)[editable] != MASK).all()


def test_tokens_that_are_forbidden_are_never_written():
    bias = jnp.array([0.0, -jnp.inf, 0.0])
    found = decode(Denoiser(NETWORK), PARAMS, masks(64), rule(5), bias=bias, seed=1)
    assert not (np.asarray(found.tokens) == 1).any() and (np.asarray(found.forwards) == 1).all()


def test_blocks_beside_a_cache_are_those_without():
    network = TransformerConfig(V + 1, V, layers=2, d_model=16, heads=2, kv_heads=1, d_ff=24, attention="block_causal",
                                block_length=4)
    params = weights(api.abstract(network), 3)
    tokens = np.full((4, 14), MASK, np.int32)  # the last block is half beyond the end
    tokens[:, :3] = [[0, 1, 2], [2, 1, 0], [1, 1, 1], [2, 2, 0]]
    given = canvas(tokens, tokens == MASK)
    decoder = rule(3, network=network, params=params, scope="block")
    with jax.default_matmul_precision("highest"):
        plain, cached = (decode(Denoiser(network), params, given, decoder, block_length=4, cache=cache, seed=5)
                         for cache in ("none", "block"))
    np.testing.assert_array_equal(plain.tokens, cached.tokens)
    np.testing.assert_array_equal(plain.order, cached.order)
    assert (np.asarray(plain.forwards) < 11).all()


@pytest.mark.parametrize("tokens", [1, 2])
def test_a_shifted_network_of_blocks_writes_the_first_token_before_the_window(tokens):
    """The probabilities of all rows behind a prompt sum to one, and so do forwards to those that it takes: one for a
    block's first token, then one for each that is left or for two together."""
    network = TransformerConfig(V + 1, V, layers=1, d_model=16, heads=2, kv_heads=1, d_ff=24, attention="block_causal",
                                block_length=3, logit_shift=True, learned_positions=16)
    params = weights(api.abstract(network), 3)
    rows = np.array([(1, *row) for row in itertools.product(range(V), repeat=5)], np.int32)
    given = canvas(np.where(np.arange(6) < 1, rows, MASK), np.broadcast_to(np.arange(6) > 0, rows.shape))
    found = decode(Denoiser(network), params, given, rule(tokens, network=network, params=params, scope="block"),
                   block_length=3, cache="block", forced=jnp.array(rows))
    assert np.exp(np.asarray(found.log_prob, np.float64)).sum() == pytest.approx(1, abs=1e-4)
    order = np.asarray(found.order)
    assert (order[:, 3:4] < order[:, 4:]).all()  # the second block's first token is its first
    assert (np.asarray(found.forwards) == (5 if tokens == 1 else 3)).all()  # the prompt begins the first block


@pytest.mark.parametrize(("fields", "options", "said"), [
    ({"most": 3}, {}, r"tokens=4: the joint layer was trained for at most 3 tokens a forward.*beyond=True"),
    ({"tokens": -1}, {}, "tokens=-1: must be at least 1"),
    ({"max_entropy": -1.0}, {}, "max_entropy=-1.0: must be 0 or positive"),
    ({}, {"guidance": 1.0}, "guidance=1.0: "),
    ({}, {"steps": 5}, "steps=5: Adjust takes as many as it needs"),
])
def test_mistakes_are_named(fields, options, said):
    with pytest.raises(ValueError, match=said):
        decode(Denoiser(NETWORK), PARAMS, masks(1), rule(**({"tokens": 4} | fields)), **options)
    for tokens, thing in ((0, "joint=None"), (4, "tokens=4")):
        with pytest.raises(ValueError, match=f"{thing}: Adjust needs a joint layer that was trained for this"):
            Adjust(mask_id=MASK, tokens=tokens)


def test_a_layer_of_whole_rows_goes_with_no_cache_and_more_than_it_learned_must_be_asked_for():
    assert rule(4, most=3, beyond=True).tokens == 4
    prefix = Canvas(*(jnp.asarray(x) for x in (np.full((1, 10), MASK), np.ones((1, 10), bool), [0], [0])))
    with pytest.raises(ValueError, match="cache='prefix': "):
        decode(Denoiser(NETWORK), PARAMS, prefix, rule(2), block_length=5, cache="prefix")
