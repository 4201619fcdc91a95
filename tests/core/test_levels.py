"""Laws of the noise level and the couplings between rows, against numerical integrals, counts and each other."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from mdlm_jax.core import levels
from mdlm_jax.core.levels import Cosine, Fixed, Uniform, unit_levels

LAWS = [Uniform(), Cosine(), Uniform(0.3, 0.8), Uniform(0.25, 1.0)]


@functools.partial(jax.jit, static_argnums=(1, 2, 3))
def _many(seed, total_rows, coupling, draws):
    keys = jax.random.split(jax.random.key(seed), draws)
    return jax.vmap(lambda key: unit_levels(key, total_rows, coupling))(keys)


def many(seed, total_rows, coupling, draws):
    """[draws, total_rows] levels under as many keys."""
    return np.asarray(_many(seed, total_rows, coupling, draws), np.float64)


# Laws -----------------------------------------------------------------------------------------------------------------


def cdf(law, level):
    """The inverse of the quantile, written down independently, in float64."""
    if isinstance(law, Cosine):
        return 2 / np.pi * np.arcsin(level)
    return np.clip((level - law.low) / (law.high - law.low), 0, 1)


@pytest.mark.parametrize("law", LAWS, ids=str)
def test_quantile_and_density_belong_together(law):
    u = np.linspace(0, 1, 2001)
    level = np.asarray(law.quantile(jnp.asarray(u, jnp.float32)), np.float64)
    np.testing.assert_allclose(cdf(law, level)[:-20], u[:-20], atol=1e-5)
    inner = level[20:-100]
    slope = (cdf(law, inner + 1e-6) - cdf(law, inner - 1e-6)) / 2e-6
    np.testing.assert_allclose(np.asarray(law.density(jnp.asarray(inner, jnp.float32))), slope, rtol=1e-4)


@pytest.mark.parametrize("size", [1, 3, 100, 4096])
@pytest.mark.parametrize("law", LAWS, ids=str)
def test_bin_probability_is_the_share_of_u_in_the_bin(law, size):
    """A plain difference of float32 cdfs would be wrong by 1e-4 at 4096 positions."""
    number = jnp.arange(1, size + 1, dtype=jnp.float32)
    found = np.asarray(law.bin_probability(number, jnp.float32(size)), np.float64)
    np.testing.assert_allclose(found, np.diff(cdf(law, np.arange(size + 1) / size)), rtol=2e-6, atol=1e-7)
    assert found.sum() == pytest.approx(1.0, abs=1e-6)


def test_bins_of_the_whole_interval_are_exact():
    """1 / (n P(n)) is L / n to the last bit for the uniform law, whatever the length."""
    for size in (3, 100, 1000, 4097):
        number = jnp.arange(1, size + 1, dtype=jnp.float32)
        np.testing.assert_array_equal(np.asarray(Uniform().bin_probability(number, jnp.float32(size))),
                                      np.full(size, np.float32(1) / np.float32(size)))


@pytest.mark.parametrize("law", [*LAWS, Fixed(0.15)], ids=str)
def test_pair_share_is_the_most_a_pair_can_mask(law):
    u = jnp.linspace(0, 1, 10001)
    total = np.asarray(law.quantile(u) + law.quantile(1 - u))
    assert total.max() == pytest.approx(law.pair_share, rel=1e-6)


@pytest.mark.parametrize("law", [Uniform(), Cosine(), Uniform(0.0, 0.5)], ids=str)
def test_times_and_weights_integrate_over_time(law):
    """The mean of weight * f(t) over u is the integral of f over the times the law reaches."""
    u = (jnp.arange(20000) + 0.5) / 20000
    t, weight = levels.times(law, u, 1e-3)
    t, weight = np.asarray(t, np.float64), np.asarray(weight, np.float64)
    low, high = 1e-3, 1e-3 + (1 - 1e-3) * float(law.quantile(jnp.float32(1)))
    assert (weight * t**2).mean() == pytest.approx((high**3 - low**3) / 3, rel=1e-3)
    assert (weight / t).mean() == pytest.approx(np.log(high / low), rel=1e-2)


def test_a_fixed_level_has_one_time_and_no_density():
    t, weight = levels.times(Fixed(0.15), jnp.asarray([0.1, 0.9]), 0.0)
    np.testing.assert_allclose(np.asarray(t), 0.15, rtol=1e-6)
    np.testing.assert_array_equal(np.asarray(weight), 1.0)


def test_specs():
    named = {"uniform": Uniform(), "cosine": Cosine(), "band:0.3,0.8": Uniform(0.3, 0.8), "fixed:0.15": Fixed(0.15)}
    assert {spec: levels.from_spec(spec) for spec in named} == named
    assert [law.covers_all for law in named.values()] == [True, True, False, False]
    with pytest.raises(ValueError, match="'triangle': choose one of uniform, cosine, band, fixed"):
        levels.from_spec("triangle")
    for spec in ("uniform:0.1", "band:0.3", "fixed:0.1,0.2", "cosine:1"):
        with pytest.raises(ValueError, match=f"level law '{spec}': .* takes"):
            levels.from_spec(spec)


@pytest.mark.parametrize("make", [lambda: Uniform(0.5, 0.5), lambda: Uniform(-0.1, 1.0), lambda: Uniform(0.2, 1.5),
                                  lambda: Fixed(0.0), lambda: Fixed(1.1)])
def test_impossible_laws_are_refused(make):
    with pytest.raises(ValueError, match="(low|level)="):
        make()


# Couplings ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("coupling", levels.COUPLINGS)
def test_every_coupling_is_uniform_over_the_batch(coupling):
    u = many(0, 2, coupling, 4000)
    assert (u > 0).all() and (u < 1).all()
    assert stats.kstest(u.ravel(), "uniform").pvalue > 1e-3
    assert abs(u.mean(1).mean() - 0.5) < 4 * u.mean(1).std() / 4000**0.5 + 1e-7


def test_iid_rows_are_independent():
    u = many(0, 2, "iid", 4000)
    assert abs(np.corrcoef(u.T)[0, 1]) < 4 / 4000**0.5


@pytest.mark.parametrize("total_rows", [1, 7, 512])
def test_stratified_rows_hold_one_stratum_each(total_rows):
    u = many(2, total_rows, "stratified", 40)
    inside = u * total_rows - np.arange(total_rows)
    assert (inside > -1e-4).all() and (inside < 1 + 1e-4).all()  # float32 rounds at the borders of the strata
    assert stats.kstest(inside.ravel(), "uniform").pvalue > 1e-3


@pytest.mark.parametrize("total_rows", [2, 8, 512])
def test_antithetic_pairs_mirror_each_other(total_rows):
    u = many(3, total_rows, "antithetic", 60).astype(np.float32)
    first, second = u[:, ::2], u[:, 1::2]
    np.testing.assert_array_equal(second, np.float32(1) - first)
    np.testing.assert_array_equal(first, np.float32(1) - second)
    np.testing.assert_array_equal(first.astype(np.float64) + second, 1.0)  # also without rounding
    inside = np.sort(u.astype(np.float64), axis=1) * total_rows - np.arange(total_rows)
    assert (inside > -1e-4).all() and (inside < 1 + 1e-4).all()


def test_antithetic_rows_alone_are_uniform():
    """A fair coin says which row of the pair is the lower one, so with two rows each of them is uniform."""
    u = many(0, 2, "antithetic", 4000)
    assert stats.kstest(u[:, 0], "uniform").pvalue > 1e-3
    assert stats.kstest(u[:, 1], "uniform").pvalue > 1e-3


@pytest.mark.parametrize("coupling", levels.COUPLINGS)
def test_a_part_of_the_rows_is_a_part_of_the_batch(coupling):
    """Bit for bit, whichever rows a microbatch or a host holds."""
    draw = jax.jit(unit_levels, static_argnums=(1, 2))
    whole = np.asarray(draw(jax.random.key(5), 16, coupling, jnp.arange(16)))
    for rows in ([4, 5, 6, 7], [0, 1, 14, 15]):
        part = draw(jax.random.key(5), 16, coupling, jnp.asarray(rows))
        np.testing.assert_array_equal(np.asarray(part), whole[rows])
    assert (np.asarray(draw(jax.random.key(6), 16, coupling, jnp.arange(16))) != whole).all()


def test_the_mean_of_a_convex_function_spreads_less_and_less():
    """What the couplings are for; for a monotone function antithetic pairs of two rows beat two strata."""
    spread = {c: np.exp(many(0, 2, c, 4000)).mean(1).std() for c in levels.COUPLINGS}
    assert spread["antithetic"] < 0.5 * spread["stratified"] < 0.5 * spread["iid"]


def test_levels_never_leave_the_open_interval(monkeypatch):
    """The extreme draws of a row: the nearest to 0 and to 1, where float32 would round to the ends."""
    for own in (0.5 * 2.0**-23, 1 - 2.0**-24):
        monkeypatch.setattr(levels, "_open_unit", lambda key, own=own: jnp.float32(own))
        for coupling in levels.COUPLINGS:
            for total_rows in (2, 1000):
                make = jax.jit(lambda key, rows=total_rows, coupling=coupling: unit_levels(key, rows, coupling))
                u = np.asarray(make(jax.random.key(0)))
                assert (u > 0).all() and (u < 1).all(), (coupling, total_rows, own)
                if coupling == "antithetic":
                    np.testing.assert_array_equal(u[::2].astype(np.float64) + u[1::2], 1.0)


@pytest.mark.parametrize(("total_rows", "rows", "coupling", "message"), [
    (8, None, "sobol", "coupling='sobol': choose one of iid, stratified, antithetic"),
    (7, None, "antithetic", "7 of 7 rows: antithetic levels come in pairs"),
    (8, [0, 1, 2], "antithetic", "3 of 8 rows"),
])
def test_errors(total_rows, rows, coupling, message):
    rows = None if rows is None else jnp.asarray(rows)
    with pytest.raises(ValueError, match=message):
        unit_levels(jax.random.key(0), total_rows, coupling, rows)
