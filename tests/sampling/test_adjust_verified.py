"""Drafts that are checked: the law is that of one token a forward, in fewer forwards."""

import dataclasses
import itertools

import jax.numpy as jnp
import numpy as np
import pytest
from scipy.stats import chi2

from mdlm_jax.models import joint
from mdlm_jax.models.denoise import Denoiser
from mdlm_jax.sampling.adjust_verified import AdjustVerified
from mdlm_jax.sampling.canvas import Canvas
from mdlm_jax.sampling.loop import decode
from tests.marks import slow_unless
from tests.sampling.test_adjust import EVERYTHING, LAYER, LENGTH, MASK, NETWORK, PARAMS, ZERO, V, masks, rule, scores

ROWS = 20_000


def verified(tokens, layer=LAYER, **fields):
    return AdjustVerified(joint.JointSampler(layer, PARAMS["embedding"], NETWORK, 8, "row"), MASK, tokens, **fields)


@pytest.mark.parametrize(("tokens", "layer", "temperature"), slow_unless(
    [(1, LAYER, 1.0), (3, LAYER, 1.0), (3, ZERO, 0.7)], "three", ids=["one", "three", "zero"]))
def test_the_law_is_that_of_one_token_a_forward(tokens, layer, temperature):
    """Chi-square of 20,000 rows against the exact law; cells expected less than 5 times are pooled."""
    law = np.exp(scores(rule(1, temperature=temperature), EVERYTHING).astype(np.float64))
    found = decode(Denoiser(NETWORK), PARAMS, masks(ROWS), verified(tokens, layer, temperature=temperature), seed=11)
    drawn = np.asarray(found.tokens)
    counts = np.bincount(np.ravel_multi_index(tuple(drawn.T), (V,) * LENGTH), minlength=len(law))
    expected, rare = ROWS * law / law.sum(), ROWS * law < 5
    seen = np.append(counts[~rare], counts[rare].sum())
    wanted = np.append(expected[~rare], expected[rare].sum())
    assert chi2.sf(((seen - wanted) ** 2 / wanted).sum(), len(seen) - 1) > 1e-3
    forwards = np.asarray(found.forwards)
    assert -(-LENGTH // (tokens + 1)) <= forwards.min() and forwards.max() <= LENGTH and forwards.mean() < LENGTH - 0.3


@pytest.mark.parametrize("tokens", slow_unless([1, 2, 4], 2))
def test_at_temperature_0_a_row_is_the_greedy_one_whatever_is_drafted(tokens):
    greedy = np.asarray(decode(Denoiser(NETWORK), PARAMS, masks(1), rule(1, temperature=0.0)).tokens)
    found = decode(Denoiser(NETWORK), PARAMS, masks(1), verified(tokens, temperature=0.0))
    np.testing.assert_array_equal(found.tokens, greedy)
    assert int(found.forwards[0]) <= LENGTH


@pytest.mark.parametrize(("row", "length"), slow_unless([(0, 6), (1, 8)], (0, 6)))
def test_prompts_stay_and_a_row_does_not_see_its_batch(row, length):
    tokens = np.full((3, 8), MASK, np.int32)
    tokens[0, :2], tokens[1, :1] = [2, 0], [1]
    segment = np.where(np.arange(8) < np.array([[6], [8], [8]]), 1, 0)
    editable = (tokens == MASK) & (segment > 0)
    together = Canvas(*(jnp.asarray(x) for x in (tokens, editable, np.arange(3), [2, 1, 0], segment)))
    found = np.asarray(decode(Denoiser(NETWORK), PARAMS, together, verified(3), seed=7).tokens)
    assert (found[~editable] == tokens[~editable]).all() and (found[editable] != MASK).all()
    alone = Canvas(*(jnp.asarray(x[row : row + 1, :length]) for x in (tokens, editable)), jnp.array([row]),
                   together.start[row : row + 1])
    np.testing.assert_array_equal(decode(Denoiser(NETWORK), PARAMS, alone, verified(3), seed=7).tokens[0],
                                  found[row, :length])


@pytest.mark.slow
def test_every_token_is_written_by_one_step():
    found = decode(Denoiser(NETWORK), PARAMS, masks(64), verified(3), seed=2, trace=True)
    for before, after in itertools.pairwise(found.trace):
        fresh = (before == MASK) & (after != MASK)
        assert (fresh.sum(1) <= 4).all() and (after[before != MASK] == before[before != MASK]).all()
    assert (np.asarray(found.order) >= 0).all()


@pytest.mark.parametrize(("fields", "options", "said"), [
    ({"tokens": 8}, {}, "tokens=8: the joint layer was trained for at most 7 drafts behind a token"),
    ({"tokens": 2}, {"guidance": 1.0}, "guidance=1.0: "),
    ({"tokens": 2}, {"block_length": 5, "cache": "dual"}, "cache='dual': "),
    ({"tokens": 2}, {"forced": jnp.zeros((1, LENGTH), jnp.int32)}, "forced: AdjustVerified"),
])
def test_mistakes_are_named(fields, options, said):
    with pytest.raises(ValueError, match=said):
        decode(Denoiser(NETWORK), PARAMS, masks(1), verified(**fields), **options)
    with pytest.raises(ValueError, match="joint=None: AdjustVerified needs a joint layer"):
        AdjustVerified(mask_id=MASK)


def test_its_one_by_one_rule_is_the_plain_one():
    plain = verified(3).one_by_one()
    assert type(plain).__name__ == "Adjust" and plain.each == 1


@pytest.mark.parametrize("fields", slow_unless([{"top_p": 0.8, "temperature": 0.8}, {"top_k": 2}, {"max_entropy": 0.3},
                                                {"budget": 0.5}], "top_p", ids=["top_p", "top_k", "max_entropy",
                                                                                "budget"]))
def test_the_law_is_that_of_one_token_a_forward_whatever_is_drawn_from(fields):
    """As above; drafts that are left out change nothing but the number of forwards."""
    plain = {name: value for name, value in fields.items() if name not in ("max_entropy", "budget")}
    law = np.exp(scores(rule(1, **plain), EVERYTHING).astype(np.float64))
    found = decode(Denoiser(NETWORK), PARAMS, masks(ROWS), verified(3, **fields), seed=5)
    counts = np.bincount(np.ravel_multi_index(tuple(np.asarray(found.tokens).T), (V,) * LENGTH), minlength=len(law))
    assert counts[law == 0].sum() == 0
    rare = (ROWS * law < 5) & (law > 0)
    common = ROWS * law >= 5
    seen, wanted = np.append(counts[common], counts[rare].sum()), np.append(ROWS * law[common], ROWS * law[rare].sum())
    seen, wanted = (seen, wanted) if wanted[-1] >= 5 else (seen[:-1], wanted[:-1])
    assert chi2.sf(((seen - wanted) ** 2 / wanted).sum(), len(seen) - 1) > 1e-3


@pytest.mark.parametrize("tokens", [1, 2])
def test_blocks_are_those_the_layer_was_trained_on(tokens):
    network = dataclasses.replace(NETWORK, attention="block_causal", block_length=3)
    rule = AdjustVerified(joint.JointSampler(LAYER, PARAMS["embedding"], network, 4, "block"), MASK, tokens)
    with pytest.raises(ValueError, match="block_length=6: this joint layer was trained on blocks of 3"):
        decode(Denoiser(network), PARAMS, masks(1, 6), rule, block_length=6)


def test_drafts_that_are_left_out_cost_forwards():
    forwards = [float(np.asarray(decode(Denoiser(NETWORK), PARAMS, masks(2000), verified(3, **fields), seed=5).forwards
                                 ).mean()) for fields in ({}, {"max_entropy": 0.3}, {"max_entropy": 0.0})]
    assert forwards[0] < forwards[1] < forwards[2] == LENGTH
