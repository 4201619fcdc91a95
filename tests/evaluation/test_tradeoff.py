"""Records of several models, grouped and told."""

import numpy as np
import pytest
from matplotlib.image import imread

from mdlm_jax.config import ConfigError
from mdlm_jax.evaluation import tradeoff


def record(mixing, nats, cross, counts=("4", "16"), **more):
    part = {"settings": {}, "rows": 8, "entropy": [2.0, 0.1], "cross_entropy": {"oracle": [cross, 0.2]}}
    config = {"process": {"mixing": mixing}, "train": {"weighting": "elbo"} | more, "eval": {"rows": cross}}
    return {"model": {"config": config},
            "likelihood": {"held-out": {"bound": {"nats": [nats, 0.3]}, "published": {"nats": [nats - 0.1, 0.3]}}},
            "generation": {name: part for name in ("held-out", *counts)}}


RECORDS = [record(0.1, 2.0, 3.0), record(0.0, 1.5, 4.0), record(0.0, 1.7, 4.4), record(0.0, 1.6, 4.2)]


def test_seeds_are_one_group_and_their_spread_its_error():
    masked, mixed = tradeoff.grouped(RECORDS, ["process.mixing"])
    assert (masked.label, mixed.label) == ("0", "0.1")
    error = np.std([1.5, 1.7, 1.6], ddof=1) / np.sqrt(3)
    assert masked.likelihood("held-out") == pytest.approx((1.6, error))
    assert masked.likelihood("held-out", "published") == pytest.approx((1.5, error))
    assert masked.cross_entropy("4", "oracle") == pytest.approx((4.2, np.std([4.0, 4.4, 4.2], ddof=1) / np.sqrt(3)))
    assert mixed.likelihood("held-out") == (2.0, 0.3)  # of one run its own


def test_other_fields_tell_recipes_apart():
    found = tradeoff.grouped([record(0.0, 1, 2), record(0.0, 1, 2, weighting="constant")],
                             ["train.weighting", "process.mixing"])
    assert [group.label for group in found] == ["constant, 0", "elbo, 0"]


def test_models_that_differ_in_more_than_their_seed_are_no_group():
    seeds = [record(0.0, 1, 2, seed=seed) for seed in (0, 1)]
    assert len(tradeoff.grouped(seeds, ["process.mixing"])) == 1
    with pytest.raises(ConfigError, match="group 0.0: its models differ in train.steps, 10 and 20"):
        tradeoff.grouped([record(0.0, 1, 2, steps=10), record(0.0, 1, 2, steps=20)], ["process.mixing"])


def test_what_one_seed_lacks_is_not_told_of_the_others():
    (group,) = tradeoff.grouped([record(0.0, 1, 2), record(0.0, 1, 2, counts=("4",))], ["process.mixing"])
    assert group.entropy("16") is None and group.entropy("4") == (2.0, 0.0)
    assert tradeoff.step_counts([group]) == ["4", "16"]


def test_the_table_says_it_all(tmp_path):
    groups = tradeoff.grouped(RECORDS, ["process.mixing"])
    text = tradeoff.table(groups, "mixing")
    assert "| mixing | runs | held-out, bound | held-out, published convention |" in text
    assert "| 0 | 3 | 1.600 +- 0.058 | 1.500 +- 0.058 |" in text and "under oracle by steps" in text
    tradeoff.draw(groups, "mixing", tmp_path / "f.png", few="16")
    assert imread(tmp_path / "f.png").std() > 0.01
