"""Discrete copula diffusion: its law by enumeration against whole forwards in numpy, and what it refuses."""

import functools
import itertools
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mdlm_jax.core.process import Process
from mdlm_jax.evaluation.scoring import forced_log_prob
from mdlm_jax.models.denoise import Denoiser
from mdlm_jax.models.twin import LeftReading, Twin
from mdlm_jax.sampling.canvas import blank, canvas
from mdlm_jax.sampling.copula import Copula
from mdlm_jax.sampling.loop import decode
from tests.marks import slow_unless
from tests.sampling import joined
from tests.sampling.joined import CAUSAL, EVERY, LENGTH, MASK, NET, NETWORK, PROCESS, TEXT, TWIN

MODEL = Denoiser(NETWORK)
PREFIX = Copula(PROCESS, TWIN, CAUSAL, keeps="prefix")
RANDOM = Copula(PROCESS, TWIN, CAUSAL)
scored = functools.partial(forced_log_prob, MODEL, NET, batch=len(EVERY))


def by_hand(rows, where, steps, exponent=1.0):
    """log q of rows whose masks ``where`` [L] are shared by the steps, the first ones first."""
    places, found = np.flatnonzero(where), np.zeros(len(rows))
    canvases = np.where(where, MASK, rows)
    for part in np.array_split(places, steps):  # the remainder first
        found += joined.at(joined.copula_law(canvases, rows, exponent), rows)[:, part].sum(1)
        canvases[:, part] = rows[:, part]
    return found


@pytest.mark.parametrize(("steps", "exponent", "where"), slow_unless([
    (1, 1.0, (1, 1, 1, 1)), (2, 1.0, (1, 1, 1, 1)), (3, 0.7, (1, 1, 1, 1)), (1, 1.0, (0, 1, 0, 1)),
    (2, 2.0, (1, 0, 1, 1))], (1, 1.0, (1, 1, 1, 1)), (2, 2.0, (1, 0, 1, 1))))
def test_rows_have_the_law_of_whole_forwards(steps, exponent, where):
    """The scan beside a cache is full causal forwards; all probabilities add up to one for every filling."""
    where = np.array(where, bool)
    found = scored(joined.partly(EVERY, where), EVERY, replace(PREFIX, exponent=exponent), steps=steps)
    np.testing.assert_allclose(found, by_hand(EVERY, where, steps, exponent), atol=2e-5)
    assert np.exp(found).sum() == pytest.approx(TEXT ** (~where).sum(), rel=1e-5)


@pytest.mark.slow
def test_without_the_masked_network_s_odds_it_is_the_twin_after_the_first_token():
    found = scored(blank(MASK, len(EVERY), LENGTH), EVERY, replace(PREFIX, exponent=0.0), steps=1)
    expected = joined.at(joined.twin_law(EVERY), EVERY)
    expected[:, 0] = joined.at(joined.masked_law(np.full_like(EVERY, MASK)), EVERY)[:, 0]
    np.testing.assert_allclose(found, expected.sum(1), atol=2e-5)


def test_what_is_kept_at_random_has_the_law_of_the_chain():
    """Two steps: all masks are drawn jointly, each draw stays with probability 1/2, the rest is drawn anew."""
    number = 4000
    found = decode(MODEL, NET, blank(MASK, number, LENGTH), RANDOM, steps=2, seed=3)
    law = np.zeros(len(EVERY))
    first = np.exp(by_hand(EVERY, np.ones(LENGTH, bool), 1))
    half, whole = (float(PROCESS.schedule.complement(t)) for t in (0.5, 1.0))
    stay = 1 - half / whole
    for shown in itertools.product((False, True), repeat=LENGTH):
        shown = np.array(shown)
        chance = np.prod(np.where(shown, stay, 1 - stay))
        later = np.exp(by_hand(EVERY, ~shown, 1)) if not shown.all() else np.ones(len(EVERY))
        key = (EVERY * shown) @ (TEXT + 1) ** np.arange(LENGTH)  # rows that agree where something is shown
        marginal = np.array([first[key == one].sum() for one in key])
        law += chance * marginal * later
    assert law.sum() == pytest.approx(1.0, rel=1e-5)
    counts = np.bincount(np.asarray(found.tokens) @ TEXT ** np.arange(LENGTH)[::-1], minlength=len(EVERY))
    spread = np.abs(counts / number - law) / np.sqrt(law * (1 - law) / number)
    assert spread.max() < 4.5 and found.calls == 2
    joint = scored(blank(MASK, len(EVERY), LENGTH), EVERY, PREFIX, steps=1)
    assert 0.5 * np.abs(np.exp(joint) - law).sum() > 0.02  # the second step does matter


@pytest.mark.slow
def test_one_step_of_both_is_the_same():
    runs = [decode(MODEL, NET, blank(MASK, 64, LENGTH), rule, steps=1, seed=9) for rule in (RANDOM, PREFIX)]
    np.testing.assert_array_equal(runs[0].tokens, runs[1].tokens)


@pytest.mark.parametrize("keep", slow_unless(["random", "prefix"], "prefix"))
def test_rows_neither_see_the_batch_nor_their_padding(keep):
    """Prompts of other lengths, holes, and padding on either side."""
    tokens = np.full((4, 6), MASK, np.int32)
    tokens[0, :3], tokens[1, [0, 4]], tokens[2, 1] = [0, 2, 1], [2, 1], 0
    segment = np.ones((4, 6), np.int32)
    segment[0, 4:] = segment[3, :2] = 0
    together, rule = canvas(tokens, (tokens == MASK) & (segment > 0), segment=segment), replace(RANDOM, keeps=keep)
    found = decode(MODEL, NET, together, rule, steps=2, seed=4)
    assert (np.asarray(found.tokens)[np.asarray(together.editable)] != MASK).all()
    for row in (0, 3):
        here = segment[row] > 0
        alone = canvas(tokens[row : row + 1, here], tokens[row : row + 1, here] == MASK, first_row=row)
        again = decode(MODEL, NET, alone, rule, steps=2, seed=4).tokens
        np.testing.assert_array_equal(again[0], np.asarray(found.tokens)[row, here])


def test_what_a_call_adds_to_logits_is_added_to_the_law():
    bias = jnp.array([-jnp.inf, 0.5, 0.0, 0.0])
    found = scored(blank(MASK, len(EVERY), LENGTH), EVERY, PREFIX, steps=1, bias=bias)
    law = joined.copula_law(np.full_like(EVERY, MASK), EVERY) + np.asarray(bias)
    expected = joined.at(joined.log_softmax(law), EVERY).sum(1)
    np.testing.assert_allclose(found, expected, atol=2e-5)
    assert np.isneginf(found[(EVERY == 0).any(1)]).all()


@pytest.mark.slow
def test_ids_without_a_column_of_the_twin_are_never_drawn():
    narrow = replace(joined.TWIN_NETWORK, head_size=2)
    twin = Twin(joined.LEFT_NET | {"head": joined.LEFT_NET["head"][:, :2]}, narrow, MASK)
    found = decode(MODEL, NET, blank(MASK, 64, LENGTH), replace(RANDOM, twin=twin), steps=2).tokens
    assert (np.asarray(found)[:, 1:] < 2).all() and (np.asarray(found)[:, 0] == 2).any()


def test_numbers_are_leaves_and_blocks_may_be_given():
    assert jax.tree.structure(RANDOM) == jax.tree.structure(replace(RANDOM, exponent=0.5, top_p=0.9))
    found = scored(blank(MASK, len(EVERY), LENGTH), EVERY, PREFIX, steps=2, block_length=2)
    np.testing.assert_allclose(found, by_hand(EVERY, np.ones(LENGTH, bool), 2), atol=2e-5)


@pytest.mark.parametrize(("make", "message"), [
    (lambda: Copula(PROCESS), "twin=None: Copula needs an autoregressive model"),
    (lambda: Copula(Process(4, 3, 0.2), TWIN, CAUSAL), "mixing=0.2: Copula draws masks alone"),
    (lambda: Copula(PROCESS, TWIN, CAUSAL, keeps="all"), "keeps='all': choose one of random, prefix"),
    (lambda: Copula(PROCESS, TWIN, CAUSAL, exponent=-1.0), "exponent=-1.0: must be 0 or positive"),
    (lambda: Twin({}, NETWORK, MASK), "twin: attention='bidirectional', logit_shift=False; must be causal"),
    (lambda: Twin({}, replace(joined.TWIN_NETWORK, conditioning="time", condition_dim=8), MASK),
     "twin: reads a noise level or a class"),
])
def test_what_is_wrong_is_named(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_calls_that_do_not_fit_are_named():
    short = Twin({}, replace(joined.TWIN_NETWORK, learned_positions=2), MASK)
    causal = Denoiser(joined.TWIN_NETWORK)
    for rule, model, options, message in (
        (RANDOM, MODEL, {"guidance": 1.0}, "guidance=1.0: "),
        (RANDOM, MODEL, {"block_length": 2, "cache": "dual"}, "cache='dual': Copula looks beyond the block"),
        (RANDOM, MODEL, {"forced": jnp.zeros((2, LENGTH), jnp.int32)}, "forced: Copula chooses positions at random"),
        (RANDOM, causal, {}, "contract='causal': Copula joins a network that sees both"),
        (replace(RANDOM, twin=short), MODEL, {}, f"twin: learned 2 positions, and the row has {LENGTH}"),
        (PREFIX, MODEL, {"grid": "cosine"}, "grid='cosine': Copula does not go by times"),
    ):
        with pytest.raises(ValueError, match=message):
            decode(model, NET, blank(MASK, 2, LENGTH, np.array([1])), rule, **{"steps": 2} | options)


@pytest.mark.slow
def test_a_network_that_reads_the_time_is_told_the_same_in_both_readings():
    timed = replace(NETWORK, conditioning="time", condition_dim=8)
    params = joined.weights(joined.api.abstract(timed), 5)
    rule, model = replace(PREFIX, causal=LeftReading(params, timed)), Denoiser(timed, process=PROCESS)
    where = np.array([False, True, True, True])
    found = forced_log_prob(model, params, joined.partly(EVERY, where), EVERY, rule, steps=1, batch=len(EVERY))
    canvases, time = jnp.asarray(np.where(where, MASK, EVERY)), jnp.ones(len(EVERY)) * PROCESS.masked_time(1.0)
    laws = [joined.log_softmax(joined.api.apply(replace(timed, attention=how), params, canvases,
                                                time=time).logits()) for how in ("bidirectional", "causal")]
    with np.errstate(invalid="ignore"):  # at the mask
        law = joined.log_softmax(joined.twin_law(EVERY) + laws[0] - laws[1])
    np.testing.assert_allclose(found, joined.at(law, EVERY)[:, 1:].sum(1), atol=2e-5)
