"""Orders of the stream: mixtures in their shares, every source's epochs exact, any seek and any host alike."""

import numpy as np
import pytest

from mdlm_jax.config import ConfigError
from mdlm_jax.data.orders import PARTS, InOrder, Mixed, Shuffled

MIXTURES = [((0.7, 0.3), (50, 9)), ((1.0, 1.0, 1.0), (7, 7, 7)), ((5.0, 0.001), (100, 3)),
            ((0.5, 0.2, 0.1, 0.1, 0.06, 0.04), (30, 11, 5, 1, 2, 64))]


def mixed(weights, sizes, batch_size=8, seed=3):
    return Mixed(sizes, weights, batch_size, seed)


def test_the_plain_orders_show_every_row_once_an_epoch():
    positions = np.arange(39)
    np.testing.assert_array_equal(InOrder(13)(positions), np.tile(np.arange(13), 3))
    stream = Shuffled(13, 5)(positions).reshape(3, 13)
    np.testing.assert_array_equal(np.sort(stream, axis=1), np.tile(np.arange(13), (3, 1)))
    assert (stream[0] != stream[1]).any()


@pytest.mark.parametrize(("weights", "sizes"), MIXTURES)
@pytest.mark.parametrize("batch_size", [1, 8, 48])
def test_shares_are_held_to_within_a_row_at_every_batch(weights, sizes, batch_size):
    """The bound 1 - 1/(2K - 2) of Tijdeman, and ten-thousandths off the weights as written."""
    order = mixed(weights, sizes, batch_size)
    steps = 2 * PARTS // batch_size
    source, _ = order.sources(np.arange(steps * batch_size))
    taken = np.cumsum(np.eye(len(sizes))[source], axis=0)[batch_size - 1 :: batch_size]
    due = (1 + np.arange(steps))[:, None] * batch_size * np.array(order.counts) / PARTS
    assert np.abs(taken - due).max() <= 1 - 1 / (2 * len(sizes) - 2) + 1e-9
    assert np.abs(np.array(order.counts) / PARTS - np.array(weights) / sum(weights)).max() < 1 / PARTS


@pytest.mark.parametrize(("weights", "sizes"), MIXTURES)
def test_each_source_runs_through_its_own_epochs(weights, sizes):
    order = mixed(weights, sizes)
    stream = order(np.arange(2 * PARTS))
    starts = np.cumsum((0, *sizes))
    for k, size in enumerate(sizes):
        own = stream[(stream >= starts[k]) & (stream < starts[k + 1])] - starts[k]
        whole = own[: len(own) // size * size].reshape(-1, size)
        if k == 0:
            assert len(whole) >= 2
        np.testing.assert_array_equal(np.sort(whole, axis=1), np.tile(np.arange(size), (len(whole), 1)))
        assert len(np.unique(own[len(whole) * size :])) == len(own) % size  # the epoch that is not over


def test_any_position_is_reached_at_once_and_by_any_slice():
    order = mixed(*MIXTURES[0])
    far = np.arange(8) + 8 * 10**12
    np.testing.assert_array_equal(np.concatenate([order(far[:3]), order(far[3:])]), order(far))
    np.testing.assert_array_equal(mixed(*MIXTURES[0])(far), order(far))
    assert (mixed(*MIXTURES[0], seed=4)(np.arange(800)) != order(np.arange(800))).any()


def test_places_within_a_batch_do_not_favour_a_source():
    """Equal weights alternate; shuffled, each place of a batch of 8 has either source half of the time."""
    source, _ = mixed((1.0, 1.0), (1000, 1000)).sources(np.arange(8 * 2000))
    share = source.reshape(2000, 8).mean(axis=0)
    assert np.abs(share - 0.5).max() < 5 * 0.5 / 2000**0.5


def test_decimals_of_four_places_are_exact():
    assert mixed((0.7, 0.2, 0.0999, 0.0001), (1, 1, 1, 1)).counts == (7000, 2000, 999, 1)
    assert mixed((1.0, 1.0, 1.0), (1, 1, 1)).counts == (3334, 3333, 3333)


def test_a_weight_too_small_for_a_place_is_refused():
    with pytest.raises(ConfigError, match="weight 1e-06 .* less than 1 part in 10000"):
        _ = mixed((1.0, 1e-6), (5, 5)).counts
