"""Judges against hand-made sums, and the figures made of what they say."""

import dataclasses
import types

import jax
import numpy as np
import pytest

from mdlm_jax.config import ConfigError
from mdlm_jax.data.languages.registry import make
from mdlm_jax.data.tokenizers import ByteTokenizer, LanguageTokenizer
from mdlm_jax.evaluation.judges import OracleJudge, Scores, causal_judge, quality
from mdlm_jax.models.config import TransformerConfig
from tests.generation import models

ROWS = np.array([[1, 2, 3, 10, 4], [9, 9, 9, 9, 9], [0, 1, 0, 1, 0]])


def by_hand(model, before, tokens):
    """-log p of each token, from the row that the network reads: ``before`` [L] ids, row i scores tokens[i]."""
    scores = np.array(model.logits(before[None], raw=True)[0], np.float64)
    if model.process is not None:
        scores[:, model.process.mask_id] = -np.inf
    log_probs = scores - np.logaddexp.reduce(scores, axis=-1, keepdims=True)
    return -log_probs[np.arange(len(tokens)), tokens]


def test_the_oracle_is_the_languages_own_law():
    language = make("hmm")
    rows = language.sample(np.random.default_rng(0), 5, 16)
    nats, tokens = OracleJudge(language).score(rows)
    np.testing.assert_array_equal(nats, -language.log_prob(rows))
    assert tokens.tolist() == [16] * 5


def test_a_run_of_ours_scores_every_token():
    model = dataclasses.replace(models.tokens_model("causal"), tokenizer=LanguageTokenizer(9))
    nats, tokens = causal_judge("j", model, model.tokenizer).score(ROWS)
    assert tokens.tolist() == [5, 5, 5]
    for row, found in zip(ROWS, nats, strict=True):
        before = np.concatenate([[models.MASK], row[:-1]])
        np.testing.assert_allclose(found, by_hand(model, before, row).sum(), rtol=1e-5)


def test_a_published_model_scores_all_but_the_first_and_reads_no_more_than_it_can():
    model = dataclasses.replace(models.tokens_model("causal", "llama"), tokenizer=LanguageTokenizer(9))
    judge = causal_judge("j", model, model.tokenizer)
    for most, counted in ((64, 4), (3, 2)):
        nats, tokens = dataclasses.replace(judge, most=most, batch=2).score(ROWS)
        assert tokens.tolist() == [counted] * 3
        for row, found in zip(ROWS, nats, strict=True):
            expected = by_hand(model, row, np.roll(row, -1))[:counted].sum()
            np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_what_a_tokenizer_puts_before_a_text_is_read_and_not_scored(monkeypatch):
    """As Llama's files have it; then the first token is scored too."""
    tokenizer = LanguageTokenizer(9)
    monkeypatch.setattr(LanguageTokenizer, "leading", np.array([tokenizer.eos_id], np.int32))
    model = dataclasses.replace(models.tokens_model("causal", "llama"), tokenizer=tokenizer)
    for most, counted in ((0, 5), (4, 3)):
        nats, tokens = dataclasses.replace(causal_judge("j", model, LanguageTokenizer(9)), most=most).score(ROWS)
        assert tokens.tolist() == [counted] * 3
        for row, found in zip(ROWS, nats, strict=True):
            before = np.concatenate([tokenizer.leading, row[:-1]])
            np.testing.assert_allclose(found, by_hand(model, before, row)[:counted].sum(), rtol=1e-5)


def test_text_in_other_tokens_is_encoded_again():
    own, written = ByteTokenizer(), ByteTokenizer()
    written._pieces[ord("x")] = b"ab"  # one id of the judged model is two of the judge
    network = TransformerConfig(own.vocab_size, own.vocab_size, attention="causal", logit_shift=True, layers=1,
                                d_model=16, heads=2, kv_heads=2, d_ff=32)
    small = models.bytes_model()
    model = dataclasses.replace(
        small, params=models.random_weights(network), tokenizer=own,
        description=dataclasses.replace(small.description, config=network))
    rows = np.array([[ord("x"), ord("c"), written.eos_id], [ord("a"), ord("b"), ord("c")]])
    nats, tokens = causal_judge("j", model, written).score(rows)
    assert tokens.tolist() == [3, 3] and nats[0] == pytest.approx(nats[1], rel=1e-6)


def test_what_cannot_judge_is_refused_by_name():
    with pytest.raises(ConfigError, match="judge j: its network is bidirectional"):
        causal_judge("j", models.tokens_model(), None)
    with pytest.raises(ConfigError, match="are not both known"):
        causal_judge("j", models.tokens_model("causal"), ByteTokenizer())


def test_figures_are_a_ratio_of_sums_with_the_error_of_its_resampling():
    """Rows of very unequal numbers of the judge's tokens: a mean of ratios would be another figure."""
    rng = np.random.default_rng(0)
    tokens = rng.integers(1, 40, 400)
    nats = tokens * (1.0 + 3.0 / tokens) + rng.normal(size=400)
    judge = types.SimpleNamespace(name="j", score=lambda rows: Scores(nats, tokens))
    mean, error = quality(np.zeros((400, 4), int), 3, [judge]).cross_entropy["j"]
    chosen = rng.integers(0, 400, (2000, 400))
    drawn = nats[chosen].sum(-1) / tokens[chosen].sum(-1)
    assert mean == pytest.approx(nats.sum() / tokens.sum()) and abs(mean - (nats / tokens).mean()) > 0.1
    assert error == pytest.approx(drawn.std(), rel=0.1)


def test_one_row_tells_no_error():
    language = make("hmm")
    found = quality(language.sample(np.random.default_rng(0), 1, 16), language.vocab_size, [OracleJudge(language)])
    assert np.isnan(found.entropy[1]) and np.isnan(found.cross_entropy["oracle"][1])


def test_rows_as_long_as_the_judge_has_positions_are_scored():
    model = models.tokens_model("causal", learned_positions=5)
    judge = causal_judge("j", dataclasses.replace(model, tokenizer=LanguageTokenizer(9)), LanguageTokenizer(9))
    assert judge.score(ROWS).tokens.tolist() == [5, 5, 5]


def test_a_judge_without_a_token_to_score_says_nan():
    model = dataclasses.replace(models.tokens_model("causal", "llama"), tokenizer=LanguageTokenizer(9))
    with jax.debug_nans(False):
        found = quality(np.array([[1], [2]]), 12, [causal_judge("j", model, model.tokenizer)])
    assert np.isnan(found.cross_entropy["j"]).all() and found.entropy == (0.0, 0.0)
