"""The judges of benchmarks/digits.py against independent computations, and its table of what there is."""

import numpy as np
import pytest
from scipy import linalg

from benchmarks import digits
from benchmarks.digits_report import by_mixing, figure, table
from mdlm_jax.data import pipeline

pytest.importorskip("sklearn")


def test_frechet_distance_is_that_of_the_gaussians():
    rng = np.random.default_rng(0)
    first, second = rng.normal(size=(300, 6)), rng.normal(size=(200, 6)) @ rng.normal(size=(6, 6)) + 1
    c, d = np.cov(first.T), np.cov(second.T)
    wanted = ((first.mean(0) - second.mean(0)) ** 2).sum() + np.trace(c + d - 2 * linalg.sqrtm(c @ d).real)
    assert digits.frechet(first, second) == pytest.approx(wanted)
    assert digits.frechet(first, first) == pytest.approx(0, abs=1e-9)


def test_distances_leave_an_image_s_own_out():
    points = np.array([[0.0, 0.0], [3.0, 4.0], [0.0, 1.0]])
    least, mean = digits.distances(points, points)
    pairs = [5.0, 1.0, np.hypot(3, 3)]
    assert (least, mean) == (pytest.approx((1 + pairs[2] + 1) / 3), pytest.approx(np.mean(pairs)))
    assert digits.distances(points[:1], points[1:]) == (1.0, 3.0)


def test_real_images_and_independent_pixels_are_told_apart():
    judge = digits.Judge.of(pipeline.build(digits.config_of(0.0, 0, {}).data, 32))
    found = judge.references()
    assert found["real"]["accuracy"] > 0.97 and found["real"]["nearest"] == pytest.approx(1, abs=0.1)
    assert found["independent"]["nearest"] > 1.4 and found["independent"]["frechet"] > 2 * found["real"]["frechet"]
    labels = np.repeat(np.arange(10), list(map(len, judge.held_out)))
    wrong = judge.measure(np.concatenate(judge.held_out), (labels + 1) % 10)
    assert wrong["accuracy"] < 0.03 and wrong["nearest"] > 1.2


def test_the_table_is_made_of_what_there_is(tmp_path):
    real = dict.fromkeys(("accuracy", "diversity", "nearest", "frechet"), 1.0)
    lines = [{"steps": steps, "guidance": guidance} | real for steps, guidance in digits.SETTINGS]
    results = {f"m{m:g}_s{s}": {"bits": 2.0 + s, "samples": lines} for m, s in ((0, 0), (0, 1), (0.5, 0))}
    results |= {"real": real, "independent": real}
    assert [(mixing, len(runs)) for mixing, runs in by_mixing(results).items()] == [(0.0, 2), (0.5, 1)]
    text = table(results)
    assert "| bound, bits a pixel | 2.500 +- 0.500 | 2.000 |" in text and "(0: 2, 0.5: 1)" in text
    figure(results, tmp_path / "digits.png")
    assert (tmp_path / "digits.png").stat().st_size > 1000
    assert table({"real": real, "independent": real}) == ""
