"""MAUVE against what its definition gives on paper, and against the package that its authors publish."""

import numpy as np
import pytest
from scipy import integrate, special

from mdlm_jax.config import ConfigError
from mdlm_jax.evaluation.mauve import area, ceiling, frontier_integral, mauve

pytest.importorskip("sklearn")


def normal(seed, num=1500, shift=0.0, size=16):
    return np.random.default_rng(seed).normal(size=(num, size)) + np.r_[shift, np.zeros(size - 1)]


def test_the_area_of_equal_and_of_disjoint_laws():
    p = np.array([0.5, 0.2, 0.3, 0.0, 0.0])
    assert area(p, p) == pytest.approx(1, abs=1e-12)
    exact = 5 * special.beta(5, 6)
    assert exact == pytest.approx(1 / 252)
    assert area(p, np.array([0, 0, 0, 0.3, 0.7]), points=5000) == pytest.approx(exact, rel=1e-4)
    assert area(np.array([1.0, 0]), np.array([0, 1.0])) == pytest.approx(0.00407, abs=5e-6)


def test_the_area_is_the_integral_along_the_curve():
    """x dy along w by quadrature of the closed form, for laws whose curve is smooth."""
    rng = np.random.default_rng(0)
    p, q = rng.dirichlet(np.ones(7), 2)

    def point(w, law):
        return np.exp(-3 * np.sum(law * np.log(law / (w * p + (1 - w) * q))))

    def slope(w):  # d y / d w, by hand: d KL(p | r) / d w = -sum p (p - q) / r
        return point(w, p) * 3 * np.sum(p * (p - q) / (w * p + (1 - w) * q))

    inside = integrate.quad(lambda w: point(w, q) * slope(w), 0, 1)[0]
    expected = inside + point(0, p)  # the edge from (1, 0) to the curve's beginning at x = 1
    assert area(p, q, scale=3, points=4001) == pytest.approx(expected, rel=1e-5)
    assert area(p, q) == pytest.approx(area(q, p), rel=1e-12)


def test_the_frontier_integral_is_that_over_all_mixtures():
    """Liu et al.: FI = 2 int_0^1 [w KL(p | r) + (1 - w) KL(q | r)] dw, with r = w p + (1 - w) q."""
    p, q = np.array([0.5, 0.25, 0.25, 0.0]), np.array([0.1, 0.25, 0.6, 0.05])

    def cost(w):
        r = w * p + (1 - w) * q
        return sum(share * np.sum(special.xlogy(law, law / r)) for share, law in ((w, p), (1 - w, q)))

    assert frontier_integral(p, q) == pytest.approx(2 * integrate.quad(cost, 0, 1)[0], rel=1e-6)
    assert frontier_integral(p, p) == 0 and frontier_integral(np.eye(2)[0], np.eye(2)[1]) == 1


@pytest.mark.parametrize(("shift", "expected"), [(0, 0.957), (1, 0.724), (2, 0.256)])
def test_normal_vectors(shift, expected):
    """16 dimensions, 1500 vectors each; figures of another program written from the definition, 0.03 apart at most."""
    found = mauve(normal(1), normal(2, shift=shift))
    assert found.clusters == 150 and found.value == pytest.approx(expected, abs=0.03)
    assert found.smoothed >= found.value  # half a text in every cluster brings any two laws nearer


def test_what_it_does_not_depend_on():
    p, q = normal(1, 300), normal(2, 300, shift=1)
    rotation = np.linalg.qr(np.random.default_rng(5).normal(size=(16, 16)))[0]
    plain = mauve(p, q, clusters=12).value
    lengths = np.random.default_rng(6).uniform(0.1, 9, size=(300, 1))
    assert mauve(p * lengths, q, clusters=12).value == pytest.approx(plain, abs=1e-9)
    assert mauve(p @ rotation, q @ rotation, clusters=12).value == pytest.approx(plain, abs=0.05)  # other beginnings
    assert mauve(p, q, clusters=12) == mauve(p, q, clusters=12)


def test_the_ceiling_is_below_one_and_rises_with_the_number():
    few, more = (ceiling(normal(3, num), clusters=20)[0] for num in (200, 2000))
    assert few < more < 1
    between = [mauve(normal(seed, 1000), normal(seed + 50, 1000), clusters=20).value for seed in range(3)]
    assert more == pytest.approx(np.mean(between), abs=0.02)


@pytest.mark.parametrize(("p", "q", "how", "said"), [
    (normal(0, 3), normal(1, 9), {}, r"p has shape \(3, 16\)"),
    (normal(0, 9), normal(1, 9)[0], {}, r"q has shape \(16,\)"),
    (normal(0, 9), normal(1, 9, size=8), {}, "vectors of 16 and of 8 numbers"),
    (normal(0, 9) * np.nan, normal(1, 9), {}, "not finite"),
    (normal(0, 9), normal(1, 9), {"clusters": 1}, r"clusters=1: must lie in \[2, 18\]"),
    (normal(0, 9), normal(1, 9), {"clusters": 19}, "clusters=19"),
])
def test_mistakes_are_named(p, q, how, said):
    with pytest.raises(ConfigError, match=said):
        mauve(p, q, **how)


@pytest.mark.slow
def test_the_authors_package():
    """mauve-text on the same vectors: the same figures where the clusters are beyond doubt."""
    published = pytest.importorskip("mauve")
    rng = np.random.default_rng(0)
    centres = 10 * rng.normal(size=(4, 16))
    p, q = (centres[rng.choice(4, 400, p=law)] + 0.1 * rng.normal(size=(400, 16))
            for law in ([0.5, 0.3, 0.2, 0.0], [0.1, 0.3, 0.3, 0.3]))
    theirs = published.compute_mauve(p_features=p, q_features=q, num_buckets=4, verbose=False)
    ours = mauve(p, q, clusters=4)
    assert ours.value == pytest.approx(theirs.mauve, abs=1e-9)
    assert ours.smoothed == pytest.approx(theirs.mauve_star, abs=1e-9)
    assert ours.frontier_integral == pytest.approx(theirs.frontier_integral, abs=1e-9)
