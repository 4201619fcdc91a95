"""What each oracle language is for: ties far apart, drift with time, exactness at length 1024; and their names."""

import decimal
import itertools
import math
import subprocess
import sys

import numpy as np
import pytest

from mdlm_jax.config import ConfigError
from mdlm_jax.data.languages.base import entropy_of
from mdlm_jax.data.languages.chain import log_matmul, stationary
from mdlm_jax.data.languages.copy import Copy
from mdlm_jax.data.languages.drift import Drift
from mdlm_jax.data.languages.enumerated import Enumerated
from mdlm_jax.data.languages.hidden_markov import HiddenMarkov
from mdlm_jax.data.languages.markov import MarkovChain
from mdlm_jax.data.languages.registry import make

PINNED = {"copy": 321.901269, "drift": 522.385853, "hmm": -989.533975}


def enumerate_law(language, length):
    rows = np.array(list(itertools.product(range(language.vocab_size), repeat=length)))
    return rows, np.exp(language.log_prob(rows))


def mutual_information(language, length):
    """I(x_i; x_j) in nats for every pair of positions, by enumeration, [length, length]."""
    rows, law = enumerate_law(language, length)
    one_hot = np.eye(language.vocab_size)[rows]
    joint = np.einsum("n,niu,njv->ijuv", law, one_hot, one_hot)
    single = np.einsum("n,niu->iu", law, one_hot)
    with np.errstate(divide="ignore", invalid="ignore"):
        terms = joint * np.log(joint / (single[:, None, :, None] * single[None, :, None, :]))
    return np.nansum(terms, axis=(2, 3))


def test_copy_of_a_uniform_source_ties_only_the_pairs_half_a_row_apart():
    vocab, noise, length = 3, 0.1, 8
    source = MarkovChain(np.full(vocab, 1 / vocab), np.full((vocab, vocab), 1 / vocab))
    information = mutual_information(Copy(source, [1, 2, 0], noise), length)
    channel = -(1 - noise) * np.log(1 - noise) - noise * np.log(noise / (vocab - 1))
    i, j = np.triu_indices(length, 1)
    expected = np.where(j - i == length // 2, np.log(vocab) - channel, 0.0)
    np.testing.assert_allclose(information[i, j], expected, atol=1e-12)
    assert np.log(vocab) - channel > 0.5


def test_copy_of_a_chain_ties_pairs_half_a_row_apart_more_than_any_others():
    information = mutual_information(Copy.random(3, noise=0.05, seed=0), 8)
    i, j = np.triu_indices(8, 1)
    tied = j - i == 4
    assert information[i, j][tied].min() > 0.5
    assert information[i, j][tied].min() > 2 * information[i, j][~tied & (j - i > 1)].max()


def test_the_default_hidden_markov_language_needs_more_context_than_a_bigram():
    language, length = make("hmm"), 256
    tokens = language.sample(np.random.default_rng(0), 2000, length)
    pairs = np.einsum("s,su,st,tv->uv", language.initial, language.emission, language.transition, language.emission)
    bigram = -np.sum(pairs * np.log(pairs / pairs.sum(1, keepdims=True)))
    assert bigram - (-language.log_prob(tokens).mean() / length) > 0.3


def decimal_log_prob(language, row):
    """The forward algorithm in 40-digit decimals, unscaled."""
    with decimal.localcontext(prec=40, Emin=-999999):
        initial, transition, emission = (
            [[decimal.Decimal(float(x)) for x in line] for line in np.atleast_2d(table)]
            for table in (language.initial, language.transition, language.emission)
        )
        states = range(len(language.initial))
        alpha = [initial[0][s] * emission[s][row[0]] for s in states]
        for x in row[1:]:
            alpha = [sum(alpha[r] * transition[r][s] for r in states) * emission[s][x] for s in states]
        return float(sum(alpha).ln())


def test_hidden_markov_is_exact_at_length_1024():
    language = HiddenMarkov.random(4, 8, seed=3)
    tokens = language.sample(np.random.default_rng(1), 2, 1024)
    tokens[1] = np.random.default_rng(2).integers(0, 8, 1024)  # a row the language would hardly ever make
    expected = [decimal_log_prob(language, row.tolist()) for row in tokens]
    np.testing.assert_allclose(language.log_prob(tokens), expected, rtol=1e-12)


def test_a_hypothesis_far_behind_is_not_lost_to_underflow():
    """Two states that never meet: after 600 zeros the second is e^4100 behind, after 600 ones they are level."""
    eps, half = 1e-3, 600
    language = HiddenMarkov([0.5, 0.5], np.eye(2), [[1 - eps, eps], [eps, 1 - eps]])
    row = np.repeat([[0, 1]], half, axis=1)
    np.testing.assert_allclose(language.log_prob(row), half * (np.log(eps) + np.log1p(-eps)), rtol=1e-12)
    hidden = np.concatenate([row, [[0]]], axis=1)
    visible = np.arange(2 * half + 1)[None] < 2 * half
    got = language.conditional_log_probs(hidden, visible)
    np.testing.assert_allclose(np.exp(got[0, -1]), [0.5, 0.5], rtol=1e-9)


NAMED = {name: make(name) for name in ("hmm", "copy", "copy:noise=0")} | {"drift": Drift.random(tau=0.3)}
NAMES = pytest.mark.parametrize("name", NAMED)


@NAMES
@pytest.mark.parametrize("length", [2, 63, 200])
def test_conditionals_revealed_in_any_order_multiply_to_the_row(name, length):
    """The chain rule: the sum of log p(x_i | those before in the order) over any order is log p(row)."""
    language, rng = NAMED[name], np.random.default_rng(length)
    row, rank = language.sample(rng, 1, length), rng.permutation(length)
    got = language.conditional_log_probs(np.repeat(row, length, 0), rank[None] < rank[:, None])
    terms = got[np.arange(length), np.arange(length), row[0]]
    np.testing.assert_allclose(terms.sum(), language.log_prob(row)[0], rtol=1e-11, atol=1e-11)


@NAMES
def test_conditionals_of_one_hidden_token_at_length_1024(name):
    """p(x_i = v | the rest) is p(row with v at i), normalised over v."""
    language, length = NAMED[name], 1024
    row = language.sample(np.random.default_rng(0), 1, length)
    for i in (0, 1, 511, 512, 700, 1023):
        variants = np.repeat(row, language.vocab_size, 0)
        variants[:, i] = np.arange(language.vocab_size)
        scores = language.log_prob(variants)
        expected = np.exp(scores - scores.max())
        got = language.conditional_log_probs(row, np.arange(length)[None] != i)
        assert np.isfinite(scores).any()
        np.testing.assert_allclose(np.exp(got[0, i]), expected / expected.sum(), rtol=1e-8, atol=1e-15)


def total_correlation(language, length):
    """sum_i H(x_i) - H(x) in nats, from the conditionals given nothing."""
    nothing = language.conditional_log_probs(np.zeros((1, length), np.int64), np.zeros((1, length), bool))[0]
    return entropy_of(np.exp(nothing)).sum() - language.entropy(length).value


@pytest.mark.parametrize(("name", "expected"), [
    ("shuffle", 6 * math.log(6) - math.log(720)), ("shuffle:size=3", 3 * math.log(3) - math.log(6)),
    ("replace", 7 * math.log(8 / 7)), ("replace:size=500", 1.0),
    ("parity", math.log(2)), ("parity:size=2", math.log(2)),
    ("latin", 16 * math.log(4) - math.log(576)), ("sudoku", 16 * math.log(4) - math.log(288)),
])
def test_what_tokens_drawn_at_once_lose(name, expected):
    language = make(name)
    assert total_correlation(language, language.length) == pytest.approx(expected, rel=2e-3 if "500" in name else 1e-9)


def test_squares_obey_their_rules_and_are_all_of_them():
    """Counts known from the literature; the rules are asked again, in another way: sums of powers of two."""
    for name, count in (("latin", 576), ("sudoku", 288)):
        squares = make(name).rows.reshape(-1, 4, 4)
        assert len(squares) == count
        for axis in (1, 2):
            assert ((1 << squares).sum(axis) == 15).all()
        boxes = (1 << squares).reshape(-1, 2, 2, 2, 2).sum((2, 4))
        assert (boxes == 15).all() == (name == "sudoku")


def test_a_language_of_one_length_has_no_other():
    with pytest.raises(ConfigError, match="length=7: rows of this language have 6 tokens"):
        make("shuffle").sample(np.random.default_rng(0), 2, 7)
    with pytest.raises(ValueError, match="tokens: are rows of 7; those of this language must have 6"):
        make("shuffle").log_prob(np.zeros((1, 7), np.int64))
    with pytest.raises(ValueError, match="must be distinct"):
        Enumerated([[0, 1], [0, 1]], [0.5, 0.5], 2)


def test_the_ring_is_known_from_one_token():
    """Its entropy a step, in closed form: the step itself and the symbol."""
    language, length = make("ring"), 12
    step = -0.05 * math.log(0.05) - 0.95 * math.log(0.95)
    expected = math.log(4) + length * math.log(2) + (length - 1) * step
    found = language.entropy(length)
    assert abs(found.value - expected) < 5 * found.stderr


def test_drift_moves_between_its_ends():
    language = Drift.random(vocab=3, seed=1)
    for tau, end in ((0.0, language.start), (1.0, language.end)):
        rows, law = enumerate_law(end, 4)
        np.testing.assert_allclose(np.exp(language.at(tau).log_prob(rows)), law, rtol=1e-12)
    entropies = [language.at(tau).entropy(64).value for tau in (0.0, 0.3, 0.6, 1.0)]
    assert min(abs(a - b) for a, b in itertools.combinations(entropies, 2)) > 0.1
    costs = [language.kl(language.at(tau), 64) for tau in (0.0, 0.1, 0.5, 1.0)]
    assert costs[0] == 0 and 0 < costs[1] < costs[2] < costs[3]


def test_drift_kl_is_that_of_enumeration():
    first, second = Drift.random(tau=0.2, vocab=3, seed=2), Drift.random(tau=0.9, vocab=3, seed=2)
    p, q = enumerate_law(first, 5)[1], enumerate_law(second, 5)[1]
    np.testing.assert_allclose(first.kl(second, 5), np.sum(p * np.log(p / q)), rtol=1e-12)
    certain = MarkovChain([1.0, 0.0], np.eye(2))
    assert MarkovChain([0.5, 0.5], np.eye(2)).kl(certain, 3) == np.inf
    np.testing.assert_allclose(certain.kl(MarkovChain([0.5, 0.5], np.eye(2)), 3), np.log(2))


def test_log_matmul_at_any_ratio():
    rng = np.random.default_rng(0)
    weights, matrix = rng.random((5, 3)), rng.random((3, 4))
    np.testing.assert_allclose(log_matmul(np.log(weights), matrix), np.log(weights @ matrix), rtol=1e-12)
    far = np.array([[0.0, -2000.0], [-np.inf, -np.inf], [-5000.0, -5001.0]])
    got = log_matmul(far, np.array([[1.0, 0.0], [0.5, 0.5]]))
    expected = [[0, -2000 - np.log(2)], [-np.inf, -np.inf], [np.log1p(0.5 / np.e) - 5000, -5001 - np.log(2)]]
    np.testing.assert_allclose(got, expected, rtol=1e-14)


def test_random_languages_are_stationary():
    for language in (make("hmm"), make("drift").at(0.0).chain, make("copy").source):
        np.testing.assert_allclose(language.initial @ language.transition, language.initial, atol=1e-12)
    np.testing.assert_allclose(stationary(np.array([[0.5, 0.5], [0.25, 0.75]])), [1 / 3, 2 / 3], rtol=1e-12)


def test_names_make_what_they_say():
    language = make("hmm:states=5,vocab=7,seed=3")
    assert language.vocab_size == 7 and language.transition.shape == (5, 5)
    assert make("copy:noise=0.25").noise == 0.25
    stream = make("drift:first=0.25,last=0.5,rows=9,vocab=5")
    assert (stream.first, stream.last, stream.num_rows, stream.vocab_size) == (0.25, 0.5, 9, 5)
    assert make("replace:size=9").length == 9 and make("pairs:noise=0.2").noise == 0.2
    for name in ("hmm", "copy"):
        rows = make(name).sample(np.random.default_rng(0), 4, 32)
        np.testing.assert_array_equal(make(name).log_prob(rows), make(name).log_prob(rows))
        assert (make(name).log_prob(rows) > make(f"{name}:seed=1").log_prob(rows)).all()


def test_a_name_means_the_same_law_on_every_machine():
    """Values written down once: a change of numpy's generators would change every language and must not pass unseen."""
    np.testing.assert_allclose(make("copy").entropy(256).value, PINNED["copy"], rtol=1e-6)
    np.testing.assert_allclose(make("drift").at(0.5).entropy(256).value, PINNED["drift"], rtol=1e-6)
    np.testing.assert_allclose(make("hmm").log_prob(np.arange(256)[None] % 16)[0], PINNED["hmm"], rtol=1e-6)


@pytest.mark.parametrize(
    "name,message",
    [
        ("greek", "'greek': is unknown; choose one of hmm, copy, drift"),
        ("shuffle:size=9", "size=9: must lie in [2, 8]"),
        ("parity:size=1", "size=1: must lie in [2, 16]"),
        ("pairs:vocab=1", "vocab=1: needs at least 2 symbols"),
        ("ring:stay=1", "stay=1.0: needs at least 2 states"),
        ("", "choose one of hmm, copy, drift"),
        ("hmm:symbols=3", "'symbols=3' is not a setting of hmm; its settings are states=16, vocab=16"),
        ("hmm:states=8,states=9", "states is given twice"),
        ("hmm:states=eight", "states='eight' must be a whole number"),
        ("hmm:states=2.5", "states='2.5' must be a whole number"),
        ("hmm:states", "states='' must be a whole number"),
        ("copy:noise=nan", "noise='nan' must be a finite number"),
        ("copy:noise=2", "noise=2.0: must lie in"),
        ("drift:tau=0.5", "'tau=0.5' is not a setting of drift; its settings are first=0.0, last=1.0, rows=0"),
        ("drift:first=-1", "first=-1.0: is a time and must lie in"),
        ("drift:last=1.5", "last=1.5: is a time"),
        ("drift:rows=1", "rows=1: must be at least 2, or 0"),
        ("drift:rows=-3", "rows=-3: must be at least 2, or 0"),
        ("drift:vocab=1", "vocab=1: a language needs at least 2 symbols"),
        ("hmm:vocab=1", "states=16, vocab=1: needs"),
        ("hmm:jump=0", "jump=0.0: must lie in"),
        ("hmm:concentration=0", "needs concentration > 0"),
        ("copy:seed=-1", "needs concentration > 0 and seed >= 0"),
    ],
)
def test_names_that_mean_nothing_are_refused(name, message):
    with pytest.raises(ConfigError) as error:
        make(name)
    assert message in str(error.value) and repr(name) in str(error.value).replace("language ''", "''")


def test_languages_import_no_jax():
    code = "import sys, mdlm_jax.data.languages.registry; sys.exit('jax' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], timeout=60).returncode == 0
