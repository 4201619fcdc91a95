"""IsoFLOP fits: exact data give the exact laws back, noisy data intervals that cover them."""

import math

import numpy as np
import pytest

from mdlm_jax.evaluation import scaling, scaling_report
from mdlm_jax.evaluation.scaling import Run

BUDGETS = (1e12, 3e12, 1e13, 3e13)


def exact(name, a=-0.06, b=3.9, n=0.63, m=-8.0, factors=(0.2, 0.5, 1.0, 2.0, 5.0), noise=0.0, rng=None):
    """Runs on parabolas of curvature 0.05 around N* = e^m C^n, at the same sizes for all budgets if ``factors`` fit."""
    runs = []
    for flops in BUDGETS:
        best, loss = math.exp(m) * flops**n, math.exp(b) * flops**a
        for factor in factors:
            size = round(best * factor)
            value = loss + 0.05 * math.log(size / best) ** 2 + (noise * rng.standard_normal() if noise else 0.0)
            runs.append(Run(name, flops, size, value, 0.01))
    return runs


def test_laws_that_hold_exactly_are_found():
    family = scaling.fit("masked", exact("masked"))
    for p in family.parabolas:
        assert p.inside and p.residual < 1e-12
        assert p.size == pytest.approx(math.exp(-8.0) * p.flops**0.63, rel=1e-3)
        assert p.loss == pytest.approx(math.exp(3.9) * p.flops**-0.06, rel=1e-6)
    assert family.loss_law.exponent == pytest.approx(-0.06, abs=1e-6)
    assert family.size_law.exponent == pytest.approx(0.63, abs=1e-3)
    assert family.size_law(1e13) == pytest.approx(math.exp(-8.0) * 1e13**0.63, rel=1e-2)


def test_the_gap_between_two_families():
    """log L = a log C + b with one slope: equal losses at budgets e^((b' - b) / -a) apart, and sizes e^(m - m')."""
    pair = [scaling.fit("masked", exact("masked", b=4.0, m=-8.5)), scaling.fit("autoregressive", exact("ar", m=-8.0))]
    found = scaling.estimates(pair, replicates=20)
    assert found["gap at 1e+13"].value == pytest.approx(math.exp(0.1 / 0.06), rel=1e-3)
    assert found["size ratio at 1e+13"].value == pytest.approx(math.exp(-0.5), rel=1e-2)
    assert set(found) == {f"{family}: exponent of {what}" for family in ("masked", "autoregressive")
                          for what in ("L*", "N*")} | {f"{what} at {flops:.2g}" for what in ("gap", "size ratio")
                                                       for flops in BUDGETS}


def test_intervals_cover_the_truth():
    """Of 60 studies with noise of 0.01 nats nearly all 95 % intervals hold both exponents: 57 expected, 51 is 3 errors
    below."""
    rng, held = np.random.default_rng(0), {"L*": 0, "N*": 0}
    for study in range(60):
        family = scaling.fit("masked", exact("masked", noise=0.01, rng=rng))
        found = scaling.estimates([family], replicates=200, seed=study)
        for what, truth in (("L*", -0.06), ("N*", 0.63)):
            one = found[f"masked: exponent of {what}"]
            held[what] += one.low <= truth <= one.high
            assert one.valid > 0.9
    assert min(held.values()) >= 51


def test_optima_that_are_none_or_outside_are_told(tmp_path):
    hill = [Run("masked", 1e12, size, loss, 0.01) for size, loss in ((100, 1.0), (200, 2.0), (400, 1.0))]
    beyond = [Run("masked", 3e12, size, math.log(size / 5000) ** 2, 0.01) for size in (100, 200, 400)]
    few = [Run("masked", 1e13, size, 1.0, 0.01) for size in (100, 200)]
    family = scaling.fit("masked", hill + beyond + few)
    assert [p.opens_upwards for p in family.parabolas] == [False, True] and not family.parabolas[1].inside
    assert family.parabolas[1].size == pytest.approx(5000, rel=1e-3) and family.loss_law is None
    assert family.spread == pytest.approx(0.01)
    text = scaling_report.table([family], scaling.estimates([family], replicates=2))
    scaling_report.draw([scaling.fit("masked", hill)], tmp_path / "none.png")
    assert (tmp_path / "none.png").stat().st_size > 10_000
    assert "no optimum: the parabola opens downwards" in text and "outside the sizes that were trained" in text
    assert "| masked | 1e+12 |  |  | no optimum" in text  # no figures of what there is not


def test_a_vertex_outside_gives_no_law_and_a_gap_beyond_the_budgets_says_so():
    runs = [run for run in exact("masked") if run.flops < 3e13]
    away = [Run("masked", 3e13, size, math.log(size / 10**9) ** 2, 0.01) for size in (100, 200, 400)]
    family = scaling.fit("masked", runs + away)
    assert len(family.parabolas) == 4 and family.size_law.exponent == pytest.approx(0.63, abs=1e-3)
    pair = [scaling.fit("masked", exact("masked", b=4.0)), scaling.fit("autoregressive", exact("autoregressive"))]
    lines = scaling_report.table(pair, scaling.estimates(pair, replicates=2)).splitlines()
    gaps = {line.split("|")[1].strip(): line for line in lines if line.startswith("| gap")}
    assert "extrapolated" not in gaps["gap at 1e+12"]  # 5.3 times as much is within 3e13
    assert "; extrapolated: 5e+13 FLOPs are beyond the largest budget, 3e+13" in gaps["gap at 1e+13"]


def test_the_order_of_the_families_changes_nothing():
    pair = [scaling.fit("masked", exact("masked", b=4.0)), scaling.fit("autoregressive", exact("autoregressive"))]
    found, other = (scaling.estimates(families, replicates=2) for families in (pair, pair[::-1]))
    assert {name: one.value for name, one in found.items()} == {name: one.value for name, one in other.items()}


def test_table_and_figure(tmp_path):
    pair = [scaling.fit("masked", exact("masked", b=4.0)), scaling.fit("autoregressive", exact("autoregressive"))]
    text = scaling_report.table(pair, scaling.estimates(pair, replicates=20))
    assert "| gap at 1e+13 |" in text and "| 16 |" in text and "-0.0642" in text
    scaling_report.draw(pair, tmp_path / "s.png")
    assert (tmp_path / "s.png").stat().st_size > 20_000
