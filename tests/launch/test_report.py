"""What a run says of itself at its end, apart from running it."""

import dataclasses

import pytest

from launch import _report
from mdlm_jax.config import RunConfig, TrainConfig


@pytest.mark.parametrize(
    ("train", "expected"),
    [
        ({}, ""),
        ({"level_law": "cosine"}, ""),
        ({"level_law": "band:0,1"}, ""),
        ({"weighting": "power:1"}, "weighting power:1"),
        ({"weighting": "constant", "level_law": "fixed:0.15"}, "weighting constant, levels fixed:0.15"),
        ({"weighting": "clipped:9", "level_law": "band:0.3,0.8"}, "weighting clipped:9, levels band:0.3,0.8"),
    ],
)
def test_why_a_training_loss_is_no_bound(train, expected):
    assert _report._own_scale(dataclasses.replace(RunConfig(), train=TrainConfig(**train))) == expected
