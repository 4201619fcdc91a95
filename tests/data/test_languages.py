"""Every oracle language against enumeration: an independent plain-Python law of each, summed over all short rows."""

import itertools
import math

import numpy as np
import pytest
from scipy.stats import chi2

from mdlm_jax.data.languages.copy import Copy
from mdlm_jax.data.languages.drift import Drift
from mdlm_jax.data.languages.enumerated import Enumerated
from mdlm_jax.data.languages.hidden_markov import HiddenMarkov
from mdlm_jax.data.languages.markov import MarkovChain

ZEROS = MarkovChain([0.5, 0.5, 0.0], [[0.0, 0.7, 0.3], [0.25, 0.75, 0.0], [0.0, 0.0, 1.0]])
HMM_ZEROS = HiddenMarkov([0.0, 1.0], [[0.2, 0.8], [1.0, 0.0]], [[0.5, 0.5, 0.0], [0.1, 0.0, 0.9]])
CASES = {
    "hmm": (HiddenMarkov.random(3, 3, seed=1, concentration=0.5, jump=0.3), 4),
    "hmm-one-state": (HiddenMarkov.random(1, 3), 3),
    "hmm-zeros": (HMM_ZEROS, 4),
    "markov-zeros": (ZEROS, 4),
    "copy-even": (Copy.random(3, noise=0.2, seed=2), 4),
    "copy-odd": (Copy.random(2, noise=0.1, seed=3), 5),
    "copy-exact": (Copy(MarkovChain.random(3, 4), [2, 0, 1], 0.0), 5),
    "copy-never": (Copy(ZEROS, [1, 0, 2], 1.0), 4),
    "copy-shortest": (Copy.random(3, noise=0.3), 2),
    "drift": (Drift.random(tau=0.4, vocab=3, seed=5), 4),
    "drift-end": (Drift(ZEROS, MarkovChain.random(3, 6), 0.0), 4),
    "ring": (HiddenMarkov.ring(3, 1, stay=0.2), 5),
    "pairs": (Copy.pairs(3, noise=0.1), 4),
    "shuffle": (Enumerated.shuffle(4), 4),
    "replace": (Enumerated.replace(6), 6),
    "parity": (Enumerated.parity(5), 5),
    "unlike": (Enumerated([[0, 1, 2], [2, 1, 0], [2, 2, 2]], [0.5, 0.3, 0.2], 3), 3),
}
cases = pytest.mark.parametrize("language,length", CASES.values(), ids=CASES.keys())


def all_rows(language, length):
    return np.array(list(itertools.product(range(language.vocab_size), repeat=length)))


def chain_prob(initial, transition, row):
    return math.prod([initial[row[0]]] + [transition[a][b] for a, b in itertools.pairwise(row)])


def slow_prob(language, row):
    """p(row) by the definition alone, in plain Python."""
    if isinstance(language, MarkovChain):
        return chain_prob(language.initial, language.transition, row)
    if isinstance(language, Drift):
        a, b, t = language.start, language.end, language.tau
        transition = (1 - t) * a.transition + t * b.transition
        return chain_prob((1 - t) * a.initial + t * b.initial, transition, row)
    if isinstance(language, Enumerated):
        return sum(p for known, p in zip(language.rows, language.law, strict=True) if known.tolist() == row)
    if isinstance(language, HiddenMarkov):
        paths = itertools.product(range(len(language.initial)), repeat=len(row))
        return sum(
            chain_prob(language.initial, language.transition, path)
            * math.prod(language.emission[s][x] for s, x in zip(path, row, strict=True))
            for path in paths
        )
    half = len(row) - len(row) // 2
    p = chain_prob(language.source.initial, language.source.transition, row[:half])
    for source, seen in zip(row, row[half:], strict=False):
        hit = language.permutation[source] == seen
        p *= 1 - language.noise if hit else language.noise / (language.vocab_size - 1)
    return p


def slow_law(language, length):
    return np.array([slow_prob(language, row.tolist()) for row in all_rows(language, length)])


@cases
def test_probabilities_are_the_definition_and_sum_to_one(language, length):
    exact = slow_law(language, length)
    got = language.log_prob(all_rows(language, length))
    assert got.dtype == np.float64
    np.testing.assert_allclose(np.exp(got), exact, rtol=1e-12, atol=0)
    np.testing.assert_allclose(np.exp(got).sum(), 1.0, rtol=0, atol=1e-10)
    np.testing.assert_array_equal(np.isneginf(got), exact == 0)


@cases
def test_conditionals_are_bayes_for_every_row_and_every_visible_set(language, length):
    rows, exact = all_rows(language, length), slow_law(language, length)
    one_hot = np.eye(language.vocab_size)[rows]
    for pattern in itertools.product([False, True], repeat=length):
        visible = np.array(pattern)
        agrees = (rows[:, None, visible] == rows[None, :, visible]).all(-1)
        total = agrees @ exact
        possible = total > 0
        expected = np.einsum("nm,m,mlv->nlv", agrees[possible], exact, one_hot) / total[possible, None, None]
        shown = np.where(visible, rows, 999)[possible]  # hidden ids are not looked at
        got = language.conditional_log_probs(shown, np.broadcast_to(visible, shown.shape))
        np.testing.assert_allclose(np.exp(got), expected, rtol=1e-10, atol=1e-13)
        np.testing.assert_array_equal(np.isneginf(got[:, visible]), ~(one_hot[possible][:, visible] > 0))


@cases
def test_entropy_is_that_of_enumeration(language, length):
    exact = slow_law(language, length)
    nats = -np.log(np.where(exact > 0, exact, 1.0))
    entropy, got = float(exact @ nats), language.entropy(length)
    if isinstance(language, HiddenMarkov):
        stderr = math.sqrt(exact @ (nats - entropy) ** 2 / 4096)
        np.testing.assert_allclose(got.stderr, stderr, rtol=0.1)
        assert abs(got.value - entropy) < 4 * stderr
    else:
        assert got.stderr == 0
        np.testing.assert_allclose(got.value, entropy, rtol=1e-12, atol=1e-12)


@cases
def test_samples_follow_the_law(language, length):
    """Pearson's chi-square over all rows, cells expected less than 5 times pooled; fixed seed, p must exceed 1e-3."""
    exact, num = slow_law(language, length), 60_000
    tokens = language.sample(np.random.default_rng(0), num, length)
    assert tokens.dtype == np.int32 and tokens.shape == (num, length)
    index = np.ravel_multi_index(tuple(tokens.T), (language.vocab_size,) * length)
    counts = np.bincount(index, minlength=len(exact))
    assert not counts[exact == 0].any()
    rare = exact * num < 5
    seen, expected = counts[~rare].tolist(), (exact[~rare] * num).tolist()
    if exact[rare].sum() > 0:
        seen, expected = seen + [counts[rare].sum()], expected + [exact[rare].sum() * num]
    statistic = sum((s - e) ** 2 / e for s, e in zip(seen, expected, strict=True))
    assert chi2.sf(statistic, len(seen) - 1) > 1e-3


@cases
def test_the_wrong_ids_shapes_and_masks_are_refused(language, length):
    rows = language.sample(np.random.default_rng(0), 2, length)
    visible = np.ones_like(rows, bool)
    for bad in (-1, language.vocab_size):
        wrong = rows.copy()
        wrong[1, -1] = bad
        with pytest.raises(ValueError, match=f"hold the id {bad}; ids must lie in 0..{language.vocab_size - 1}"):
            language.log_prob(wrong)
        with pytest.raises(ValueError, match="ids must lie in"):
            language.conditional_log_probs(wrong, visible)
    with pytest.raises(ValueError, match="must be integers"):
        language.log_prob(rows.astype(float))
    with pytest.raises(ValueError, match="must be integers"):
        language.log_prob(rows[0])
    with pytest.raises(ValueError, match="visible: .* it must be bool"):
        language.conditional_log_probs(rows, visible[:, :-1])
    with pytest.raises(ValueError, match="length=0"):
        language.sample(np.random.default_rng(0), 2, 0)


def test_conditioning_on_the_impossible_is_refused():
    rows = np.array([[1, 2, 1, 2]])
    for language in (ZEROS, HMM_ZEROS, Copy(ZEROS, [0, 1, 2], 0.0)):
        assert np.isneginf(language.log_prob(rows)).all()
        with pytest.raises(ValueError, match="probability zero"):
            language.conditional_log_probs(rows, np.ones_like(rows, bool))


def test_tables_that_are_no_laws_are_refused():
    half = np.full((2, 2), 0.5)
    with pytest.raises(ValueError, match="transition: must hold probabilities"):
        MarkovChain([0.5, 0.5], half * 1.1)
    with pytest.raises(ValueError, match="initial: must hold probabilities"):
        HiddenMarkov([1.5, -0.5], half, half)
    with pytest.raises(ValueError, match="emission: must hold probabilities"):
        HiddenMarkov([0.5, 0.5], half, [[np.nan, 0.5], [0.5, 0.5]])
    with pytest.raises(ValueError, match=r"transition: has shape \[3, 3\]"):
        MarkovChain([0.5, 0.5], np.eye(3))
    with pytest.raises(ValueError, match="each of 0..1 once"):
        Copy(MarkovChain([0.5, 0.5], half), [0, 0], 0.1)
    with pytest.raises(ValueError, match="give them the same"):
        Drift(MarkovChain([0.5, 0.5], half), ZEROS, 0.5)
