"""Unigram entropy against a hand-counted truth."""

import collections
import math

import numpy as np
import pytest

from mdlm_jax.evaluation.entropy import unigram_entropy


def test_known_sequences():
    tokens = np.array([[3, 3, 3, 3], [0, 1, 2, 3], [0, 0, 1, 1]], np.int32)
    np.testing.assert_allclose(unigram_entropy(tokens, 4), [0.0, math.log(4), math.log(2)], atol=1e-15)
    assert unigram_entropy(tokens[1], 4).shape == ()


def test_random_rows_against_a_counter():
    tokens = np.random.default_rng(0).zipf(1.3, size=(2, 3, 500)) % 1000
    entropies = unigram_entropy(tokens, 1000)
    assert entropies.shape == (2, 3) and entropies.dtype == np.float64
    for index in np.ndindex(2, 3):
        counts = collections.Counter(tokens[index].tolist()).values()
        expected = -sum(n / 500 * math.log(n / 500) for n in counts)
        np.testing.assert_allclose(entropies[index], expected, rtol=1e-12)


def test_bad_input_is_refused():
    with pytest.raises(ValueError, match="vocab_size=4"):
        unigram_entropy(np.array([0, 4]), 4)
    with pytest.raises(ValueError, match="they must lie in"):
        unigram_entropy(np.array([-1, 2]), 4)
    with pytest.raises(ValueError, match="at least one token"):
        unigram_entropy(np.zeros((3, 0), np.int32), 4)
    with pytest.raises(TypeError, match="float"):
        unigram_entropy(np.array([0.0, 1.0]), 4)
