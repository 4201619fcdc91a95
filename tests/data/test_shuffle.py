"""The index-by-index permutation."""

import numpy as np
import pytest
from scipy import stats

from mdlm_jax.data.shuffle import permute


@pytest.mark.parametrize("size", [1, 2, 3, 4, 5, 16, 17, 100, 4096, 4097])
def test_each_epoch_is_a_permutation(size):
    for epoch in (0, 1, 10**12):
        order = permute(np.arange(size), np.full(size, epoch), size, seed=3)
        np.testing.assert_array_equal(np.sort(order), np.arange(size))


def test_epochs_and_seeds_differ():
    index = np.arange(50)
    orders = {tuple(permute(index, np.full(50, epoch), 50, seed)) for epoch in range(20) for seed in range(-5, 15)}
    assert len(orders) == 400


def test_one_index_at_a_time_is_the_same():
    index, epoch = np.arange(100) % 37, np.arange(100) // 37
    together = permute(index, epoch, 37, seed=1)
    alone = [permute(index[i : i + 1], epoch[i : i + 1], 37, seed=1)[0] for i in range(100)]
    np.testing.assert_array_equal(together, alone)


def test_arguments_are_left_as_they_are():
    index, epoch = np.arange(5, dtype=np.uint64), np.zeros(5, np.uint64)
    permute(index, epoch, 5, seed=0)
    np.testing.assert_array_equal(index, np.arange(5))
    np.testing.assert_array_equal(epoch, np.zeros(5))


@pytest.mark.parametrize("size", [4, 6, 10])
def test_orders_look_uniform(size):
    """Over 20000 epochs each item is equally often at each place, and each ordered pair at the first two places."""
    epochs = 20_000
    first, second = (permute(np.full(epochs, i), np.arange(epochs), size, seed=0) for i in (0, 1))
    for place in range(size):
        counts = np.bincount(permute(np.full(epochs, place), np.arange(epochs), size, seed=7), minlength=size)
        assert stats.chisquare(counts).pvalue > 1e-4
    pairs = np.bincount(first * size + second, minlength=size * size).reshape(size, size)
    assert not pairs.diagonal().any()
    assert stats.chisquare(pairs[~np.eye(size, dtype=bool)]).pvalue > 1e-4


def test_neighbours_are_scattered():
    """Successive rows of an epoch are uncorrelated: |r| of 1e5 independent pairs exceeds 0.013 once in 25000 runs."""
    order = permute(np.arange(100_001), np.zeros(100_001), 100_001, seed=0).astype(float)
    assert abs(np.corrcoef(order[:-1], order[1:])[0, 1]) < 0.013
    assert abs(np.corrcoef(order, np.arange(100_001))[0, 1]) < 0.013
