"""The drifting stream: its exact law at every time, its rows wherever one starts, and a run's splits and references."""

import dataclasses
import itertools
import math

import numpy as np
import pytest
from scipy.stats import chi2

from mdlm_jax.config import ConfigError, DataConfig
from mdlm_jax.data import language_rows
from mdlm_jax.data.languages.drift import Drift, DriftStream
from mdlm_jax.data.languages.markov import MarkovChain
from mdlm_jax.data.languages.registry import make
from mdlm_jax.data.pipeline import Pipeline, build
from mdlm_jax.evaluation.likelihood import held_out_index, held_out_rows

LENGTH = 4
STREAM = DriftStream.random(vocab=3, seed=5)
ROWS = np.array(list(itertools.product(range(3), repeat=LENGTH)))
TIMES = [0.0, 0.1, 0.5, 0.9, 1.0]


def slow_law(tau):
    """p of each of `ROWS` by the definition, in plain Python."""
    def mixed(start, end):
        return [(1 - tau) * a + tau * b for a, b in zip(start, end, strict=True)]

    initial = mixed(STREAM.start.initial, STREAM.end.initial)
    transition = [mixed(a, b) for a, b in zip(STREAM.start.transition, STREAM.end.transition, strict=True)]
    return np.array([
        initial[row[0]] * math.prod(transition[a][b] for a, b in itertools.pairwise(row)) for row in ROWS.tolist()
    ])


def assert_follows(tokens, law):
    """Pearson's chi-square, cells expected less than 5 times pooled; fixed seed."""
    counts = np.bincount(tokens @ 3 ** np.arange(LENGTH)[::-1], minlength=len(law))
    expected, rare = law * len(tokens), law * len(tokens) < 5
    counts, expected = (np.append(x[~rare], x[rare].sum()) for x in (counts, expected))
    statistic = ((counts - expected)[expected > 0] ** 2 / expected[expected > 0]).sum()
    assert chi2.sf(statistic, len(expected) - 1) > 1e-3


# The law --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("tau", TIMES)
def test_probabilities_are_the_definition_and_sum_to_one(tau):
    got = np.exp(STREAM.log_prob(ROWS, np.full(len(ROWS), tau)))
    np.testing.assert_allclose(got, slow_law(tau), rtol=1e-12)
    np.testing.assert_allclose(got.sum(), 1.0, rtol=0, atol=1e-12)
    np.testing.assert_allclose(np.log(got), STREAM.at(tau).log_prob(ROWS), rtol=1e-12)


def test_every_row_has_its_own_time():
    tau = np.linspace(0, 1, len(ROWS))
    expected = [math.log(slow_law(t)[i]) for i, t in enumerate(tau)]
    np.testing.assert_allclose(STREAM.log_prob(ROWS, tau), expected, rtol=1e-12)


def test_what_is_impossible_has_probability_zero():
    sure = MarkovChain([1.0, 0.0], np.eye(2))
    stream = DriftStream(sure, MarkovChain([0.0, 1.0], np.eye(2)))
    np.testing.assert_array_equal(np.exp(stream.log_prob(np.array([[0, 0], [0, 1]]), np.array([0.0, 0.5]))), [1, 0])


def test_entropy_is_the_mean_of_the_exact_ones_and_of_the_rows():
    tau = np.array(TIMES + [0.5])
    each = [STREAM.at(t).entropy(9).value for t in tau]
    np.testing.assert_allclose(STREAM.entropy(tau, 9).value, np.mean(each), rtol=1e-12)
    law = [slow_law(t) for t in TIMES]
    exact = -np.mean([(p * np.log(p)).sum() for p in law])
    np.testing.assert_allclose(STREAM.entropy(np.array(TIMES), LENGTH).value, exact, rtol=1e-12)
    times = STREAM.times(np.arange(20_000), 20_000)
    nats = -STREAM.log_prob(STREAM.rows(0, 20_000, 20_000, LENGTH), times)
    assert abs(nats.mean() - STREAM.entropy(times, LENGTH).value) < 4 * nats.std() / 20_000**0.5
    assert STREAM.entropy(times, LENGTH).stderr == 0.0


def test_a_name_means_the_same_rows_on_every_machine():
    """Written down once: a change of numpy's generator would change every stream and must not pass unseen."""
    np.testing.assert_array_equal(DriftStream.random().rows(7, 2, 100, 12), PINNED)
    np.testing.assert_allclose(DriftStream.random().entropy(np.linspace(0, 1, 11), 64).value, 121.692551, rtol=1e-6)


PINNED = [[7, 3, 9, 4, 1, 0, 10, 10, 4, 9, 15, 14], [14, 7, 7, 13, 0, 5, 13, 0, 5, 11, 15, 10]]


# The rows -------------------------------------------------------------------------------------------------------------


def test_rows_are_the_same_wherever_one_starts():
    whole = STREAM.rows(0, 9000, 9000, 7)  # more than one block, and a length that fills no counter
    assert whole.dtype == np.int32 and len(np.unique(whole, axis=0)) > 300
    for start, count in ((0, 1), (5000, 3), (4095, 2), (8999, 1), (17, 0)):
        np.testing.assert_array_equal(STREAM.rows(start, count, 9000, 7), whole[start : start + count])
    far = STREAM.rows(10**15, 2, 10**16, 7)  # no walk through what comes before
    assert far.shape == (2, 7) and not np.array_equal(far[0], far[1])


def test_rows_follow_the_law_of_their_time():
    """Rows of a stream that stands still at tau, and stretches of one that moves, against the mean of their laws."""
    for tau in (0.0, 0.4, 1.0):
        still = dataclasses.replace(STREAM, first=tau, last=tau)
        assert_follows(still.rows(0, 40_000, 40_000, LENGTH), slow_law(tau))
    moving = STREAM.rows(0, 400_000, 400_000, LENGTH)
    for start in (0, 190_000, 380_000):
        law = np.mean([slow_law((start + 10_000 + i) / 400_000) for i in range(-9_500, 10_000, 1000)], axis=0)
        assert_follows(moving[start : start + 20_000], law)
    with pytest.raises(AssertionError):
        assert_follows(moving[:20_000], slow_law(0.5))


def test_seeds_give_other_rows():
    other = dataclasses.replace(STREAM, seed=6)
    assert (other.rows(0, 50, 100, 20) != STREAM.rows(0, 50, 100, 20)).mean() > 0.3


def test_times():
    np.testing.assert_allclose(STREAM.times(np.array([0, 1, 9]), 10), [0.0, 0.1, 0.9])
    back = dataclasses.replace(STREAM, first=0.8, last=0.3)
    np.testing.assert_allclose(back.times(np.array([0, 5]), 10), [0.8, 0.55])


@pytest.mark.parametrize(("call", "message"), [
    (lambda: STREAM.times(np.array([10]), 10), "index: holds row 10; rows must lie in 0..9"),
    (lambda: STREAM.rows(8, 3, 10, 4), "index: holds row 10; rows must lie in 0..9"),
    (lambda: STREAM.rows(-1, 1, 10, 4), "index: holds row -1; rows must lie in 0..9"),
    (lambda: STREAM.rows(0, 1, 10, 0), "length=0"),
    (lambda: STREAM.log_prob(ROWS, np.array([0.5])), "one time in .0, 1. for each of 81 rows"),
    (lambda: STREAM.log_prob(ROWS[:1], np.array([1.5])), "one time in .0, 1."),
    (lambda: STREAM.log_prob(ROWS[:1], np.array([np.nan])), "one time in .0, 1."),
    (lambda: STREAM.log_prob(ROWS[:1] + 3, np.array([0.5])), "ids must lie in"),
])
def test_rows_and_times_that_do_not_exist(call, message):
    with pytest.raises(ValueError, match=message):
        call()


# As the data of a run -------------------------------------------------------------------------------------------------

CONFIG = DataConfig(source="language:drift:rows=100,vocab=5", length=12, valid_fraction=0.2)


def test_a_run_trains_on_the_past_in_its_order_and_is_measured_on_the_future():
    built, stream = build(CONFIG, 8), DriftStream.random(vocab=5)
    assert (built.train.num_rows, built.valid.num_rows) == (80, 20)
    rows = stream.rows(0, 100, 100, 12)
    for step in (0, 3, 9):
        np.testing.assert_array_equal(built.train.batch(step)["tokens"], rows[8 * step : 8 * step + 8])
    np.testing.assert_array_equal(built.train.batch(10)["tokens"], rows[:8])  # from the beginning again
    np.testing.assert_array_equal(built.train.batch(3, slice(2, 4))["tokens"], rows[26:28])
    np.testing.assert_array_equal(built.valid.sequential(0, 20)["tokens"], rows[80:])
    assert built.info["train"]["tau"] == [0.0, pytest.approx(0.79)] and built.info["train"]["rows"] == 80
    assert built.info["valid"]["tau"] == [pytest.approx(0.8), pytest.approx(0.99)]
    expected = np.mean([stream.at(t).entropy(12).value for t in np.arange(80, 100) / 100]) / 12
    assert built.info["valid"]["nats_per_token"] == pytest.approx(expected)


def test_mixed_times_cover_the_period_in_every_stretch():
    """A golden-ratio sequence of n leaves no gap of more than 2.7 / n; 32 rows anywhere are a batch of the period."""
    stream = make("drift:last=0.5,mixed=1,vocab=5")
    for begin in (0, 1000, 987_654):
        times = np.sort(stream.times(np.arange(begin, begin + 32), 1_000_000))
        assert np.diff(np.concatenate([[0.0], times, [0.5]])).max() < 0.5 * 2.7 / 32
    config = dataclasses.replace(CONFIG, source="language:drift:rows=100,vocab=5,last=0.5,mixed=1")
    built = build(config, 8)
    assert built.info["train"]["tau"][0] < 0.02 and 0.48 < built.info["train"]["tau"][1] < 0.5
    rows = stream.rows(80, 20, 100, 12)
    np.testing.assert_array_equal(built.valid.sequential(0, 20)["tokens"], rows)
    found = language_rows.references(config, rows, np.arange(20), 80)
    assert list(found) == ["the language, time known"]
    known = -stream.log_prob(rows, stream.times(np.arange(80, 100), 100)).mean() / 12
    assert found["the language, time known"] == pytest.approx(known)
    with pytest.raises(ConfigError, match="mixed=2: must be 0"):
        make("drift:mixed=2")


def test_the_order_is_part_of_the_fingerprint():
    built = build(CONFIG, 8)
    shuffled = Pipeline(built.train.sequential(0, 80)["tokens"], batch_size=8, seed=0, packing="concat",
                        tokenizer=built.tokenizer)
    assert shuffled.fingerprint != built.train.fingerprint
    assert not np.array_equal(shuffled.batch(0)["tokens"], built.train.batch(0)["tokens"])


def test_without_a_number_of_rows_the_stream_is_as_long_as_other_languages(monkeypatch):
    monkeypatch.setattr(language_rows, "TOKENS", 1 << 10)
    built = build(DataConfig(source="language:drift", length=16, valid_fraction=0.25), 4)
    assert (built.train.num_rows, built.valid.num_rows) == (48, 16)
    assert "tau" not in build(DataConfig(source="language:copy", length=16), 4).info["valid"]


@pytest.mark.parametrize(("trained", "latest"), [(8, 7), (80, 79), (400, 79)])
def test_references_know_the_time_or_only_the_last_one_trained_on(trained, latest):
    stream, valid = DriftStream.random(vocab=5), build(CONFIG, 8).valid
    index = held_out_index(20, 7)
    tokens = held_out_rows(valid, 7)["tokens"]
    np.testing.assert_array_equal(tokens, valid.sequential(0, 20)["tokens"][index])
    found = language_rows.references(CONFIG, tokens, index, trained)
    known = -np.mean([stream.at((80 + i) / 100).log_prob(row[None])[0] for i, row in zip(index, tokens, strict=True)])
    assert found["the language, time known"] == pytest.approx(known / 12)
    before = -stream.at(latest / 100).log_prob(tokens).mean() / 12
    assert found["the language last trained on"] == pytest.approx(before)


def test_the_past_costs_more_the_further_it_lies_back():
    config = dataclasses.replace(CONFIG, source="language:drift:rows=20000", length=32)
    tokens = build(config, 8).valid.sequential(0, 2000)["tokens"]
    costs = [language_rows.references(config, tokens, np.arange(2000), n) for n in (1, 8000, 16_000)]
    assert costs[0]["the language last trained on"] > costs[1]["the language last trained on"] + 0.05
    assert costs[1]["the language last trained on"] > costs[2]["the language last trained on"] + 0.05
    assert costs[2]["the language last trained on"] > costs[2]["the language, time known"]


def test_lengths_are_checked_without_drawing_the_rows():
    language_rows.check_rows(CONFIG)
    language_rows.check_rows(DataConfig(source="language:copy", length=2))
    with pytest.raises(ConfigError, match="language 'klingon': is unknown"):
        language_rows.check_rows(DataConfig(source="language:klingon"))


def test_both_ends_have_one_alphabet():
    with pytest.raises(ValueError, match="give them the same"):
        DriftStream(MarkovChain.random(3, 0), MarkovChain.random(4, 0)).at(0.5)
    assert isinstance(STREAM.at(0.5), Drift)
