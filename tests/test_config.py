"""What a configuration accepts and what it refuses, with the field, the value and the remedy in the message."""

import dataclasses

import pytest

from mdlm_jax.config import ConfigError, RunConfig, freeze


def with_fields(**sections) -> RunConfig:
    """A `RunConfig` with fields changed: ``with_fields(train={"steps": 5, "warmup_steps": 1})``."""
    return freeze({name: dataclasses.asdict(getattr(RunConfig(), name)) | given for name, given in sections.items()})


@pytest.mark.parametrize("weighting", ["elbo", "constant", "power:1", "power:-0.5", "power:5", "clipped:0.5"])
def test_weightings(weighting):
    assert with_fields(train={"weighting": weighting}).train.weighting == weighting


@pytest.mark.parametrize("law", ["fixed:0.15", "band:0.3,0.8"])
@pytest.mark.parametrize("weighting", ["constant", "power:0.5", "clipped:4"])
def test_partial_laws_take_every_weighting_that_is_no_bound(weighting, law):
    assert with_fields(train={"level_law": law, "weighting": weighting}).train.level_law == law


@pytest.mark.parametrize(("train", "message"), [
    ({"weighting": "sqrt"}, "train.weighting='sqrt': choose one of elbo, constant, power, clipped"),
    ({"weighting": "power"}, r"train.weighting='power': takes 1 number\(s\), as in 'power:0.5'"),
    ({"weighting": "power:1,2"}, "takes 1 number"),
    ({"weighting": "power:x"}, "must be numbers"),
    ({"weighting": "power:nan"}, "must be finite"),
    ({"weighting": "power:-5.5"}, r"the power must lie in \[-5, 5\]"),
    ({"weighting": "clipped:0"}, "train.weighting='clipped:0': the largest weight must be positive"),
    ({"weighting": "constant:1"}, "takes no number"),
    ({"level_law": "fixed:0.15"}, "train.weighting='elbo': .*fixed:0.15.*set train.weighting to constant, power:P"),
    ({"level_law": "band:0.3,0.8"}, "train.weighting='elbo': train.level_law='band:0.3,0.8' leaves out"),
    ({"objective": "discrete:9", "weighting": "power:1"}, "train.weighting='power:1': .*discrete:9 has only its own"),
    ({"objective": "genmd4:1", "weighting": "clipped:9"}, "train.weighting='clipped:9': .*genmd4:1 has only its own"),
])
def test_weightings_that_cannot_be(train, message):
    with pytest.raises(ConfigError, match=message):
        with_fields(train=train)


@pytest.mark.parametrize("eps", [0, 1e-3, 0.49])
def test_eps(eps):
    assert with_fields(process={"eps": eps}).process.eps == eps


@pytest.mark.parametrize(("process", "message"), [
    ({"eps": -1e-9}, r"process.eps=-1e-09: must lie in \[0, 0.5\)"),
    ({"eps": 0.5}, r"process.eps=0.5: must lie in \[0, 0.5\)"),
    ({"eps": 0.0, "schedule": "geometric:1e-3,20"}, "process.eps=0.0: has no meaning with the geometric schedule"),
    ({"schedule": "linear:2"}, "process.schedule='linear:2': takes no number"),
    ({"schedule": "polynomial"}, "process.schedule='polynomial': takes 1 number"),
])
def test_noise_that_cannot_be(process, message):
    with pytest.raises(ConfigError, match=message):
        with_fields(process=process)
