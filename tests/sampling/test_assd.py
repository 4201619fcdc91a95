"""ASSD: the law is that of one token a forward, which is the network's own, in at most as many forwards as tokens."""

import dataclasses
import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mdlm_jax.core import lattice
from mdlm_jax.models import api
from mdlm_jax.models.config import TransformerConfig
from mdlm_jax.models.denoise import Call, Denoiser
from mdlm_jax.sampling.assd import ASSD
from mdlm_jax.sampling.canvas import canvas
from mdlm_jax.sampling.loop import decode
from tests.core.support import assert_law
from tests.generation.models import MASK as MODEL_MASK
from tests.generation.models import tokens_model
from tests.marks import slow_unless
from tests.sampling.test_adjust import weights

V, MASK, ROWS = 3, 3, 10_000
NETWORK = TransformerConfig(V + 1, V + 1, layers=2, d_model=16, heads=2, kv_heads=1, d_ff=24, attention="permutation")
PARAMS = weights(api.abstract(NETWORK), 0)
GIVEN = np.array([MASK, 2, MASK, MASK, 0, MASK, MASK], np.int32)  # five holes
HOLES = np.flatnonzero(GIVEN == MASK)
EVERYTHING = np.array(list(itertools.product(range(V), repeat=len(HOLES))), np.int32)


def rows_of(number, given=GIVEN):
    return canvas(np.tile(given, (number, 1)), np.tile(given == MASK, (number, 1)))


def finished(tokens=EVERYTHING):
    rows = np.tile(GIVEN, (len(tokens), 1))
    rows[:, HOLES] = tokens
    return rows


def run(rule, rows, **options):
    return decode(Denoiser(NETWORK), PARAMS, rows, rule, **options)


def scores(rule, **options):
    rows = finished()
    return np.asarray(run(rule, rows_of(len(rows)), forced=jnp.asarray(rows), **options).log_prob, np.float64)


@functools.cache
def chain() -> np.ndarray:
    """[3^5, 5, 3] logits of each hole given what is left of it and the tokens given: a plain forward for every one."""
    found, rows = [], finished()
    for number in range(len(HOLES)):
        shown, order = rows.copy(), np.zeros(len(GIVEN), np.int32)
        shown[:, HOLES[number:]], order[HOLES] = MASK, np.arange(1, len(HOLES) + 1)
        logits = api.apply(NETWORK, PARAMS, jnp.asarray(shown), order=jnp.asarray(np.tile(order, (len(rows), 1)))
                           ).logits()
        found.append(np.asarray(logits[:, HOLES[number], :V], np.float64))
    return np.stack(found, axis=1)


def law(temperature=1.0, top_p=1.0, top_k=0) -> np.ndarray:
    """[3^5]: the chain rule in plain numpy."""
    logits = chain() / temperature
    probs = np.exp(logits - np.logaddexp.reduce(logits, -1, keepdims=True))
    if top_k:
        probs = np.where(np.argsort(np.argsort(-probs, -1), -1) < top_k, probs, 0.0)
    if top_p < 1:
        order = np.argsort(-probs, -1)
        ordered = np.take_along_axis(probs, order, -1) / probs.sum(-1, keepdims=True)
        kept = np.cumsum(ordered, -1) - ordered < top_p
        probs = np.where(np.take_along_axis(kept, np.argsort(order, -1), -1), probs, 0.0)
    probs = probs / probs.sum(-1, keepdims=True)
    return np.take_along_axis(probs, EVERYTHING[..., None], -1)[..., 0].prod(-1)


LAWS = [{}, {"temperature": 0.7}, {"top_p": 0.8}, {"top_k": 2, "temperature": 1.3}]


@pytest.mark.parametrize("fields", slow_unless(LAWS, "plain", "top_p", ids=["plain", "cold", "top_p", "top_k"]))
def test_one_token_a_forward_is_the_chain_rule_of_the_permutation_contract(fields):
    with jax.default_matmul_precision("highest"):
        found = np.exp(scores(ASSD(MASK, 1, **fields)))
    np.testing.assert_allclose(found, law(**fields), atol=2e-5)
    assert found.sum() == pytest.approx(1, abs=1e-4)


@pytest.mark.parametrize(("rule", "options"), slow_unless(
    [(ASSD(MASK, 2), {}), (ASSD(MASK, 3), {}), (ASSD(MASK, 8), {}), (ASSD(MASK, 3, fresh=False), {}),
     (ASSD(MASK, 5, fresh=False), {}), *((ASSD(MASK, 3, **fields), {}) for fields in LAWS[1:]),
     (ASSD(MASK, 3), {"block_length": 4})],
    "three", "stale",
    ids=["two", "three", "eight", "stale", "stale_five", "cold", "top_p", "top_k", "blocks"]))
def test_the_law_is_that_of_one_token_a_forward(rule, options):
    expected = law(rule.temperature, rule.top_p, rule.top_k)
    found = run(rule, rows_of(ROWS), seed=11, **options)
    drawn, forwards = np.asarray(found.tokens), np.asarray(found.forwards)
    assert (drawn[:, GIVEN != MASK] == GIVEN[GIVEN != MASK]).all()
    assert_law(np.ravel_multi_index(tuple(drawn[:, HOLES].T), (V,) * len(HOLES)), expected / expected.sum(), 1e-3)
    assert forwards.max() <= len(HOLES) and forwards.mean() < len(HOLES) - 0.3
    assert forwards.min() >= 1 + -(-(len(HOLES) - 1) // rule.drafts)


@pytest.mark.parametrize("rule", slow_unless([ASSD(MASK, 4), ASSD(MASK, 3, False)], ids=["fresh", "stale"]))
def test_at_temperature_0_rows_are_the_greedy_ones(rule):
    rng = np.random.default_rng(3)
    tokens = np.where(rng.random((64, 9)) < 0.7, MASK, rng.integers(0, V, (64, 9)))
    tokens[:, 0] = MASK
    rows = canvas(tokens, tokens == MASK)
    greedy, found = (run(dataclasses.replace(one, temperature=0.0), rows) for one in (rule.one_by_one(), rule))
    np.testing.assert_array_equal(found.tokens, greedy.tokens)
    holes, forwards = (tokens == MASK).sum(1), np.asarray(found.forwards)
    np.testing.assert_array_equal(greedy.forwards, holes)
    assert (forwards <= holes).all() and forwards.sum() < 0.9 * holes.sum()


def laws_of(shown, holes, written, order):
    """[N, V] log laws of shadows at ``holes`` of one row ``shown``, which see what is ``written``."""
    number = len(holes)
    call = Call(jnp.asarray([[*shown, *[MASK] * number]]), jnp.zeros(1), shadow=jnp.asarray([holes]),
                segment=jnp.asarray([[*written, *[1] * number]], jnp.int32), order=jnp.asarray(order[None]))
    hidden = Denoiser(NETWORK).run(PARAMS, call)[0].logits()[0, len(shown) :, :V]
    return np.asarray(jax.nn.log_softmax(hidden))


def test_drafts_and_checks_agree_on_the_first_hole_and_differ_behind_it():
    order = np.asarray(lattice.order(jnp.asarray(GIVEN[None] == MASK)))[0]
    row = finished()[77]
    drafted = laws_of(GIVEN, HOLES, GIVEN != MASK, order)
    checked = laws_of(row, HOLES, np.ones(len(GIVEN)), order)
    np.testing.assert_allclose(drafted[0], checked[0], atol=1e-5)
    assert np.abs(drafted - checked)[1:].max(1).min() > 1e-3
    expected = chain()[77] - np.logaddexp.reduce(chain()[77], -1, keepdims=True)
    np.testing.assert_allclose(checked, expected, atol=1e-5)


def test_masks_behind_the_row_are_those_of_two_streams():
    """The forward that the objective trains, to which the decoder's is equal where all is written."""
    rows = finished()[::50]
    streams = dataclasses.replace(NETWORK, attention="two_stream")
    order = jnp.tile(lattice.order(jnp.asarray(np.tile(GIVEN, (len(rows), 1)) == MASK)), (1, 2))
    masks = np.where(GIVEN == MASK, MASK, rows)
    trained = api.apply(streams, PARAMS, jnp.asarray(np.concatenate([masks, rows], axis=1)), order=order).logits()
    for row, expected in zip(rows, np.asarray(jax.nn.log_softmax(trained[:, HOLES, :V])), strict=True):
        found = laws_of(row, HOLES, np.ones(len(row)), np.asarray(order[0, : len(row)]))
        np.testing.assert_allclose(found, expected, atol=1e-5)


@pytest.mark.parametrize("rule", slow_unless([ASSD(MASK, 3, temperature=3.0), ASSD(MASK, 20), ASSD(MASK, 3, False)],
                                             "many", ids=["hot", "many", "stale"]))
def test_every_row_goes_at_its_own_pace_and_none_takes_more_forwards_than_tokens(rule):
    rng = np.random.default_rng(5)
    editable = rng.random((200, 12)) < 0.8
    editable[:, 5] = True
    tokens = np.where(editable, MASK, rng.integers(0, V, editable.shape))
    found = run(rule, canvas(tokens, editable), seed=2)
    forwards, order = np.asarray(found.forwards), np.asarray(found.order)
    assert (np.asarray(found.tokens) != MASK).all() and (forwards <= editable.sum(1)).all()
    assert len(np.unique(forwards)) > 2
    for row, holes in zip(order, editable, strict=True):
        steps = row[holes]
        assert (np.diff(steps) >= 0).all() and set(steps) == set(range(steps.max() + 1))
        assert np.bincount(steps)[0] == 1 and np.bincount(steps).max() <= rule.drafts


@pytest.mark.slow
def test_guidance_towards_a_class():
    model = tokens_model("permutation", conditioning="constant", classes=3)
    how = {"new_tokens": 16, "label": [0, 1, 2, -1], "guidance": 1.5, "temperature": 0.0, "stop_id": None}
    serial, found = (model.generate([[1, 2]] * 4, decoder="assd", drafts=k, **how) for k in (1, 4))
    for one, other in zip(serial, found, strict=True):
        np.testing.assert_array_equal(one.tokens, other.tokens)
        assert one.forwards == 32 and other.forwards < 32


# Through LanguageModel ------------------------------------------------------------------------------------------------


def test_holes_anywhere_and_prompts_of_all_lengths():
    model, hole = tokens_model("permutation"), MODEL_MASK
    texts = [[3, hole, hole, 5, hole, 7], [hole, 1], [hole] * 9 + [2, 4]]
    found = model.infill(texts, decoder="assd", drafts=3, seed=4)
    for one, text in zip(found, texts, strict=True):
        row, text = np.asarray(one.row), np.asarray(text)
        assert (row[text != hole] == text[text != hole]).all() and hole not in row
        assert one.forwards <= (text == hole).sum()
    alone = model.infill(texts[2], decoder="assd", drafts=3, seed=4, row_ids=[2])
    np.testing.assert_array_equal(alone.row, found[2].row)
    right = [model.infill([3, hole, last], decoder="assd", temperature=0.0).row for last in range(10)]
    assert len({row[1] for row in right}) > 1  # what stands right of a hole is seen


def test_blocks_end_rows_at_the_end_token_and_what_is_suppressed_is_not_written():
    model = tokens_model("permutation")
    found = model.generate([[1], [2, 3]] * 8, new_tokens=16, decoder="assd", block_length=4, suppress=[0, 1, 2, 3, 4])
    assert min(one.forwards for one in found) < 6 and {one.finish for one in found} >= {"eos"}
    for one in found:
        assert one.forwards <= 16 and not set(one.tokens) & {0, 1, 2, 3, 4, MODEL_MASK}
        assert one.finish == "length" or 10 not in one.tokens


@pytest.mark.parametrize(("make", "options", "said"), [
    (lambda: ASSD(MASK, 0), {}, "drafts=0: must be a whole number of at least 1"),
    (lambda: ASSD(MASK, 2.5), {}, "drafts=2.5: must be a whole number"),
    (lambda: ASSD(MASK, top_p=0.0), {}, "top_p=0.0: must lie in"),
    (lambda: ASSD(MASK), {"forced": jnp.zeros((1, 7), jnp.int32)}, "forced: ASSD"),
    (lambda: ASSD(MASK), {"steps": 4}, "steps=4: ASSD takes as many as it needs"),
    (lambda: ASSD(MASK), {"cache": "block", "block_length": 1}, "cache='block': is for .*this one is permutation"),
    (lambda: ASSD(MASK), {"network": {"attention": "bidirectional"}}, "asks a network for a token given any others, "
     "and this one is bidirectional; train one with train.objective=any_subset:0.01,0.1"),
    (lambda: ASSD(MASK), {"network": {"attention": "causal"}}, "and this one is causal"),
    (lambda: ASSD(MASK), {"network": {"logit_shift": True}}, "set model.logit_shift=False"),
    (lambda: ASSD(MASK), {"network": {"backend": "splash"}}, "attends by backend='splash' cannot have"),
])
def test_mistakes_are_named(make, options, said):
    network = dataclasses.replace(NETWORK, **options.pop("network", {}))
    with pytest.raises(ValueError, match=said):
        decode(Denoiser(network), PARAMS, rows_of(1), make(), **options)


def test_infill_asks_networks_of_any_order_by_assd():
    model = tokens_model("permutation")
    found, asked = (model.infill([1, MODEL_MASK, 2, MODEL_MASK], seed=3, **how) for how in ({}, {"decoder": "assd"}))
    assert found.row.tolist() == asked.row.tolist() and found.row[[0, 2]].tolist() == [1, 2] and found.forwards <= 2


def test_holes_of_networks_that_read_to_the_right_say_what_would_help():
    with pytest.raises(ValueError, match="a permutation network does not see what stands right.*decoder='assd'"):
        tokens_model("permutation").infill([1, MODEL_MASK], decoder="margin")
    with pytest.raises(ValueError, match="a causal network does not see.*generate from a prompt instead"):
        tokens_model("causal").infill([1, MODEL_MASK], decoder="assd")
    with pytest.raises(ValueError, match="ASSD asks a network .* this one is bidirectional"):
        tokens_model().generate([1], new_tokens=4, decoder="assd")
