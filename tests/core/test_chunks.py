"""Chunks of a length: alike, no longer than asked, and no more turns for it."""

import jax.numpy as jnp
import numpy as np
import pytest

from mdlm_jax.core.chunks import even, over_chunks


@pytest.mark.parametrize(("length", "chunk", "expected"), [
    (1025, 1024, 520), (1024, 1024, 1024), (100, 7, 7), (100, 99, 56), (9, 8, 8), (17, 8, 8), (5, 2, 2), (3, 1, 1),
])
def test_even(length, chunk, expected):
    found = even(length, chunk)
    assert found == expected and -(-length // found) == -(-length // chunk)


@pytest.mark.parametrize("chunk", [1, 8, 24, 25, 40])
def test_every_position_once(chunk):
    x = np.arange(2 * 25, dtype=np.float32).reshape(2, 25)
    sizes = []

    def double(piece):
        sizes.append(piece.shape[1])
        return 2 * piece

    np.testing.assert_array_equal(over_chunks(double, jnp.asarray(x), 25, chunk), 2 * x)
    assert max(sizes) <= min(chunk, 25)
