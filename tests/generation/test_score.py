"""LanguageModel.score: the law of infill, against enumeration and against what evaluation.scoring finds by hand."""

import dataclasses
import itertools

import numpy as np
import pytest

from mdlm_jax.errors import ConfigError
from mdlm_jax.evaluation.mixture import one_step_log_prob
from mdlm_jax.evaluation.scoring import forced_log_prob
from mdlm_jax.models.denoise import Denoiser
from mdlm_jax.sampling.canvas import blank
from mdlm_jax.sampling.margin import Margin
from tests.errors.form import faults
from tests.generation.models import MASK, bytes_model, tokens_model

PAIRS = [list(pair) for pair in itertools.product(range(MASK), repeat=2)]
HOW = {"decoder": "margin", "temperature": 1.0}


@pytest.fixture(scope="module")
def model():
    return tokens_model()


@pytest.fixture(scope="module")
def mixture():
    return tokens_model(latent=4)


@pytest.mark.parametrize("more", [{"steps": 1}, {"batch_size": 50}])
def test_all_fillings_together_have_probability_one(model, more):
    rows = [[3, first, 1, second] for first, second in PAIRS]
    found = model.score([3, MASK, 1, MASK], rows, **HOW | more)
    assert found.dtype == np.float64 and found.shape == (len(PAIRS),) and len(set(found.round(6))) > 50
    np.testing.assert_allclose(np.exp(found).sum(), 1.0, atol=1e-5)


def test_it_is_what_is_found_by_hand(model):
    rows = [[1, 2, 3], [4, 4, 5, 6], [7, 8, 9]]
    texts = [[1, MASK, MASK], [4, MASK, MASK, MASK], [7, MASK, MASK]]  # without a token all masks would be alike
    found = model.score(texts, rows, suppress=[0], **HOW)
    bias = np.where(np.arange(12) == 0, -np.inf, 0.0).astype(np.float32)
    rule = Margin(MASK, temperature=1.0)
    for row, text, one in zip(rows, texts, found, strict=True):
        canvas = blank(MASK, 1, len(text), text[:1])  # of masks alone all are alike, and rounding chooses among them
        by_hand = forced_log_prob(Denoiser(model.config, 12), model.params, canvas, [row], rule,
                                  steps=text.count(MASK), bias=bias)
        np.testing.assert_allclose(one, by_hand[0], atol=1e-5)
    alone = model.score(texts[0], rows[0], suppress=[0], **HOW)
    assert isinstance(alone, float) and abs(alone - found[0]) < 1e-5
    assert model.score(texts[0], [1, 0, 2], suppress=[0], **HOW) == -np.inf


def test_what_infill_wrote_and_text(model):
    found = model.infill([[3, MASK, 1, MASK], [MASK] * 5], **HOW)
    assert np.isfinite(model.score([[3, MASK, 1, MASK], [MASK] * 5], [one.row for one in found], **HOW)).all()
    letters = bytes_model({"a": 0.0, "b": float(np.log(3.0))})
    scores = letters.score("x<mask>y<mask>", ["xayb", "xbyb"], **HOW)
    np.testing.assert_allclose(np.exp(scores), [3 / 16, 9 / 16], atol=1e-5)


def test_a_network_of_any_order_is_read_as_assd_reads_it():
    model = tokens_model("permutation")
    rows = [[3, first, 1, second] for first, second in PAIRS]
    found = model.score([3, MASK, 1, MASK], rows, drafts=1, temperature=1.0)
    np.testing.assert_allclose(np.exp(found).sum(), 1.0, atol=1e-5)


def test_one_step_of_a_mixture(mixture):
    found = mixture.score([MASK, MASK], PAIRS, steps=1, latents=32)
    by_hand = one_step_log_prob(Denoiser(mixture.config, 12), mixture.params, blank(MASK, 1, 2), np.array(PAIRS),
                                mask_id=MASK, latents=32)
    np.testing.assert_allclose(found, by_hand, atol=1e-6)
    np.testing.assert_allclose(np.exp(found).sum(), 1.0, atol=1e-5)
    rows = [[3, 1], [4, 1], [2, 6]]
    apart = mixture.score([[3, MASK], [MASK, 1], [2, MASK]], rows, steps=1, latents=8)
    alone = [mixture.score(text, row, latents=8) for text, row in zip([[3, MASK], [MASK, 1], [2, MASK]], rows,
                                                                     strict=True)]
    np.testing.assert_allclose(apart, alone, atol=1e-6)


@pytest.mark.parametrize(("texts", "rows", "options", "message"), [
    ([MASK, 1], [2, 1], {}, "decoder: Ancestral chooses positions at random, .*; its log-probability .* take another"),
    ([MASK, 1], [[2, 1, 3]], HOW, r"rows\[0\]: has 3 tokens, and its text 2; give token ids"),
    ([MASK, 1], [2, 3], HOW, "row: has the id 3 at place 1, where its text has no hole but 1; give a filling"),
    ([MASK, 1], [MASK, 1], HOW, "row: holds the mask, 11; call infill"),
    ([MASK, 1], [99, 1], HOW, "row: holds the id 99"),
    ([[MASK, 1]] * 2, [[2, 1]], HOW, "rows: 1 for 2 texts; give one for each, or one text"),
    ([MASK, 1], [], HOW, "rows: 0 for 0 texts; give one for each"),
    ([2, 1], [2, 1], HOW, r"texts\[0\]: has no hole"),
    ([MASK, 1], [2, 1], HOW | {"latents": 8}, "latents=8: is for networks that read a latent; leave it out"),
    ([MASK, 1], "x", HOW, "row: is text, and the model's files hold no tokenizer.json"),
])
def test_mistakes(model, texts, rows, options, message):
    with pytest.raises(ConfigError, match=message) as caught:
        model.score(texts, rows, **options)
    assert not faults(str(caught.value))


@pytest.mark.parametrize(("options", "message"), [
    ({}, "steps=None: the network reads a latent that every step draws, .*; set steps=1 and no block_length"),
    ({"steps": 1, "latents": 0}, "latents=0: must be a whole number of at least 1"),
    ({"steps": 1, "decoder": "margin"}, "decoder: Margin is not scored on a network that reads a latent; take an"),
    ({"steps": 1, "temperature": 0.5}, "temperature=0.5: of a network that reads a latent the law is known at 1.0"),
])
def test_mistakes_with_mixtures(mixture, options, message):
    with pytest.raises(ConfigError, match=message) as caught:
        mixture.score([MASK, MASK], [1, 2], **options)
    assert not faults(str(caught.value))


def test_a_mixture_that_reads_the_time_scores_holes_alone():
    timed = tokens_model(latent=4, conditioning="time")
    assert timed.score([MASK, MASK], [1, 2], steps=1, latents=8) < 0
    with pytest.raises(ConfigError, match=r"texts\[0\]: has given tokens, and the network reads a noise level; give"):
        timed.score([3, MASK], [3, 2], steps=1)


@pytest.mark.parametrize("field", ["fused", "circuit"])
def test_a_likelihood_of_another_law_is_refused(model, field):
    learned = dataclasses.replace(model, **{field: object()})
    said = f"{field}: what a run of .* take score with decoder=.*, {field}=None"
    with pytest.raises(ConfigError, match=said) as caught:
        learned.log_likelihood([1], [2, 3])
    assert not faults(str(caught.value))
    assert np.isfinite(dataclasses.replace(learned, **{field: None}).log_likelihood([1], [2]).nats)
