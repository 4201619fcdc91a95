"""Losses as named terms: what adds up over microbatches, and what only trains."""

import jax
import jax.numpy as jnp
import numpy as np

from mdlm_jax.core.loss_parts import LossParts, LossTotals


def parts(seed=0, rows=4):
    rng = np.random.default_rng(seed)
    mask = rng.random((rows, 5)) < 0.7
    terms = {name: jnp.asarray(rng.normal(size=(rows, 5)), jnp.float32) for name in ("diffusion", "prior")}
    return LossParts.of(jnp.asarray(mask), **terms), mask, terms


def test_terms_outside_the_mask_count_nothing():
    """Also where they are not finite."""
    found, mask, terms = parts()
    for name, term in terms.items():
        np.testing.assert_array_equal(found.terms[name], np.where(mask, term, 0.0))
    infinite = jnp.where(jnp.asarray(mask), 1.0, jnp.inf)
    np.testing.assert_allclose(LossParts.of(jnp.asarray(mask), diffusion=infinite).objective(), mask.sum())


def test_rows_totals_and_mean():
    found, mask, terms = parts()
    counted = sum(np.where(mask, term, 0.0) for term in terms.values())
    np.testing.assert_allclose(found.per_row(), counted.sum(-1), rtol=1e-5)
    totals = found.totals()
    assert set(totals.sums) == {"diffusion", "prior"} and float(totals.count) == mask.sum()
    np.testing.assert_allclose(totals.mean(), counted.sum() / mask.sum(), rtol=1e-5)
    np.testing.assert_allclose(found.objective(), counted.sum(), rtol=1e-5)


def test_totals_add_where_means_do_not():
    """Two microbatches with unequal numbers of tokens give the totals of the whole batch."""
    whole, mask, terms = parts(rows=6)
    halves = [
        LossParts.of(jnp.asarray(mask[rows]), **{name: term[rows] for name, term in terms.items()}).totals()
        for rows in (slice(0, 2), slice(2, 6))
    ]
    added = halves[0] + halves[1]
    assert isinstance(added, LossTotals) and float(added.count) == float(whole.totals().count)
    np.testing.assert_allclose(added.mean(), whole.totals().mean(), rtol=1e-5)
    assert abs(float(halves[0].mean() + halves[1].mean()) / 2 - float(added.mean())) > 1e-3


def test_the_surrogate_trains_and_is_not_reported():
    mask, x = jnp.ones((1, 2), bool), jnp.asarray(3.0)

    def objective(x):
        return LossParts.of(mask, surrogate=x**2, diffusion=jnp.ones((1, 2)) * x).objective()

    value, slope = jax.value_and_grad(objective)(x)
    assert float(value) == 2 * 3.0 + 9.0 and float(slope) == 2.0 + 6.0
    reported = LossParts.of(mask, surrogate=x**2, diffusion=jnp.ones((1, 2)) * x)
    assert float(reported.totals().mean()) == 3.0


def test_it_is_a_tree():
    """So that it can leave a compiled function, accumulate in a scan and be sharded."""
    found = jax.jit(lambda: parts()[0])()
    assert set(found.terms) == {"diffusion", "prior"} and found.surrogate is None
    carry, _ = jax.lax.scan(lambda carry, _: (carry + found.totals(), None), found.totals(), length=2)
    np.testing.assert_allclose(carry.count, 3 * found.totals().count)
