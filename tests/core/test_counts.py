"""Exact numbers of masks: their law, the chosen subsets, the weights, and what a pair of rows can mask together."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from mdlm_jax.core import counts, levels, schedules
from mdlm_jax.core.keys import row_keys
from mdlm_jax.core.levels import Cosine, Fixed, Uniform
from mdlm_jax.core.weights import Power

ROWS = 20000


def draw(noise_mask, coupling="iid", law=Uniform(), seed=0, **options):  # noqa: B008 (frozen)
    """One draw for every row of ``noise_mask``, as numpy."""

    @jax.jit
    def run(mask):
        rows = jnp.arange(mask.shape[0])
        u = levels.unit_levels(jax.random.key(seed), mask.shape[0], coupling)
        return counts.draw_counts(row_keys(jax.random.key(seed + 1), rows), u, mask, law, **options)

    return jax.tree.map(np.asarray, run(jnp.asarray(noise_mask)))


def assert_subsets_uniform(masked, length):
    """Given its size, every subset of the first ``length`` positions is equally likely."""
    code = masked[:, :length] @ (1 << np.arange(length))
    size = masked.sum(1)
    for n in range(1, length):
        codes = [sum(1 << i for i in subset) for subset in itertools.combinations(range(length), n)]
        observed = [(code[size == n] == c).sum() for c in codes]
        assert sum(observed) == (size == n).sum() > 50 * len(codes)
        assert stats.chisquare(observed).pvalue > 1e-4, (n, observed)


# Draws ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("coupling", "complementary"), [("iid", False), ("antithetic", False), ("antithetic", True)])
def test_counts_and_subsets_are_uniform(coupling, complementary):
    found = draw(np.ones((ROWS, 5), bool), coupling, complementary=complementary)
    np.testing.assert_array_equal(found.masked.sum(1), found.count)
    np.testing.assert_array_equal(found.eligible, 5)
    np.testing.assert_allclose(found.weight, 5 / found.count, rtol=1e-6)
    for rows in (slice(0, None, 2), slice(1, None, 2)):  # each row of a pair on its own
        observed = np.bincount(found.count[rows], minlength=6)[1:]
        assert observed.sum() == ROWS // 2 and stats.chisquare(observed).pvalue > 1e-4
        assert_subsets_uniform(found.masked[rows], 5)


def test_counts_of_another_law():
    law = Cosine()
    found = draw(np.ones((ROWS, 5), bool), law=law)
    share = 2 / np.pi * np.diff(np.arcsin(np.arange(6) / 5))
    assert stats.chisquare(np.bincount(found.count, minlength=6)[1:], share * ROWS).pvalue > 1e-4
    np.testing.assert_allclose(found.weight, 1 / (found.count * share[found.count - 1]), rtol=1e-5)


def test_only_positions_of_the_noise_mask_are_masked():
    mask = np.zeros((ROWS, 6), bool)
    kinds = np.array([[0, 0, 0, 0, 0, 0], [0, 0, 1, 0, 0, 0], [1, 1, 1, 0, 0, 0], [1, 1, 1, 1, 1, 1]], bool)
    mask = kinds[np.arange(ROWS) % 4]
    found = draw(mask)
    assert not (found.masked & ~mask).any()
    np.testing.assert_array_equal(found.masked.sum(1), found.count)
    np.testing.assert_array_equal(found.eligible, mask.sum(1))
    np.testing.assert_array_equal(found.count[0::4], 0)
    np.testing.assert_array_equal(found.weight[0::4], 0.0)
    np.testing.assert_array_equal(found.count[1::4], 1)
    np.testing.assert_array_equal(found.weight[1::4], 1.0)
    assert_subsets_uniform(found.masked[2::4], 3)
    np.testing.assert_allclose(found.weight[2::4], 3 / found.count[2::4], rtol=1e-6)


def test_a_row_depends_on_its_own_key_and_level_only():
    mask = np.random.default_rng(0).random((8, 20)) < 0.7
    keys, u = row_keys(jax.random.key(0), jnp.arange(8)), levels.unit_levels(jax.random.key(1), 8, "iid")
    run = jax.jit(counts.draw_counts)
    whole = run(keys, u, mask)
    part = run(keys[4:6], u[4:6], mask[4:6])
    for one, other in zip(part, whole, strict=True):
        np.testing.assert_array_equal(np.asarray(one), np.asarray(other)[4:6])


def test_complementary_pairs_cover_everything_and_overlap_once_at_most():
    found = draw(np.ones((512, 9), bool), "antithetic", complementary=True)
    first, second = found.masked[::2], found.masked[1::2]
    assert (first | second).all()
    overlap = (first & second).sum(1)
    np.testing.assert_array_equal(overlap, found.count[::2] + found.count[1::2] - 9)
    assert set(overlap) <= {0, 1}


@pytest.mark.parametrize("law", [Uniform(0.3, 0.8), Fixed(0.15)], ids=str)
def test_laws_that_leave_out_levels_have_no_bound(law):
    mask = np.ones((4000, 20), bool)
    with pytest.raises(ValueError, match="leaves out noise levels, so no weight makes it a bound; choose a weigh"):
        draw(mask, law=law)
    found = draw(mask, law=law, weighting=Power(0.0))
    np.testing.assert_array_equal(found.weight, 1.0)
    expected = {3} if isinstance(law, Fixed) else set(range(7, 17))
    assert set(found.count) == expected  # 15 % of 20 is 3, although float32 has 0.15 above 3 / 20


def test_the_weight_is_zero_in_rows_without_noise():
    found = draw(np.zeros((4, 5), bool), law=Fixed(0.15), weighting=Power(0.0))
    np.testing.assert_array_equal(found.weight, 0.0)


@pytest.mark.parametrize("schedule", [schedules.Linear(0.0), schedules.Cosine(0.0)], ids=lambda s: type(s).__name__)
def test_time_given_count_is_beta(schedule):
    cases = [(1, 1), (1, 8), (3, 8), (8, 8)]
    number, size = (jnp.repeat(jnp.asarray(column), 2000) for column in zip(*cases, strict=True))
    made = counts.CountDraw(None, number, size, None)
    run = jax.jit(lambda key: counts.time_given_count(jax.random.split(key, 8000), made, schedule))
    t = np.asarray(run(jax.random.key(0)), np.float64).reshape(4, 2000)
    assert ((t >= 0) & (t <= 1)).all()
    masked_share = t if isinstance(schedule, schedules.Linear) else 1 - np.cos(np.pi / 2 * t)
    for (n, length), found in zip(cases, masked_share, strict=True):
        assert stats.kstest(found, stats.beta(n, length - n + 1).cdf).pvalue > 1e-4


# Pairs ----------------------------------------------------------------------------------------------------------------

LAWS = [Uniform(), Cosine(), Uniform(0.3, 0.8), Uniform(0.2, 1.0), Uniform(0.1, 0.5), Fixed(0.15), Fixed(0.3)]


def critical_pairs(law, length, places):
    """Pairs (u, 1 - u) as `unit_levels` makes them, around every u where a count of either row changes."""
    level = np.asarray(places) / length
    if isinstance(law, Cosine):
        u = 2 / np.pi * np.arcsin(level)
    elif isinstance(law, Uniform):
        u = (level - law.low) / (law.high - law.low)
    else:
        u = level
    u = np.concatenate([u, level, 1 - u])
    u = u[(u > 0) & (u < 1)].astype(np.float32)
    high = np.maximum(u, np.float32(1) - u)
    near = [high + np.float32(k * 2.0**-24) for k in range(-6, 7)]
    high = np.clip(np.unique(np.concatenate(near)), np.float32(0.5), np.float32(1 - 2.0**-24))
    return np.stack([np.float32(1) - high, high], 1)


@pytest.mark.parametrize("law", LAWS, ids=str)
def test_no_pair_masks_more_than_its_slots(law):
    """Every length up to 64 at every u where something changes, and some large lengths, in float32."""
    cases = [(length, range(length + 1)) for length in range(1, 65)]
    rng = np.random.default_rng(0)
    cases += [(length, rng.choice(length + 1, 30)) for length in (100, 200, 255, 1000, 1024, 4096)]
    pairs = [critical_pairs(law, *case) for case in cases]
    lengths = np.repeat([length for length, _ in cases], [len(p) for p in pairs])
    u = jnp.asarray(np.concatenate(pairs).reshape(-1))

    @jax.jit
    def count(u, size):
        """`draw_counts` itself; the order of the positions is not needed and compiled away."""
        one = lambda u, size: counts.draw_counts(  # noqa: E731
            jax.random.split(jax.random.key(0), 1), u[None], (jnp.arange(4096) < size)[None], law, weighting=Power(0.0)
        ).count[0]
        return jax.lax.map(lambda x: one(*x), (u, size), batch_size=256)

    found = np.asarray(count(u, jnp.repeat(jnp.asarray(lengths), 2))).reshape(-1, 2)
    slots = np.array([counts.num_slots(int(length), law) for length in lengths])
    assert (found >= 1).all() and (found <= lengths[:, None]).all()
    assert (found.sum(1) <= slots).all()
    if law == Uniform():
        assert (slots == lengths + 1).all() and (found.sum(1) >= lengths).all()


def test_rows_of_unequal_length_fit_as_well():
    rng = np.random.default_rng(1)
    mask = np.arange(12) < rng.integers(0, 13, 4000)[:, None]
    found = draw(mask, "antithetic")
    assert (found.count[::2] + found.count[1::2]).max() <= counts.num_slots(12, Uniform()) == 13
