"""What a configuration accepts and what it refuses, with the field, the value and the remedy in the message."""

import dataclasses

import pytest

from mdlm_jax import config
from mdlm_jax.config import ConfigError, RunConfig, freeze
from mdlm_jax.core import levels, schedules, weights


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


@pytest.mark.parametrize(("registry", "make"), [
    (config.SCHEDULES, lambda spec: schedules.from_spec(spec, 1e-3)),
    (config.LEVEL_LAWS, levels.from_spec),
    (config.WEIGHTINGS, weights.from_spec),
])
def test_names_and_their_numbers_are_those_that_core_takes(registry, make):
    for name, choice in registry.items():
        assert config.parse_spec("field", choice.example, registry)[0] == name
        assert choice.form.count(",") == choice.example.count(",") and (":" in choice.form) == (":" in choice.example)
        make(choice.example)
        for wrong in (f"{name}:1,2,3", f"{name}:", f"{name}:x"):
            with pytest.raises(ConfigError):
                config.parse_spec("field", wrong, registry)
            with pytest.raises(ValueError):
                make(wrong)


@pytest.mark.parametrize(("sample", "message"), [
    ({"top_k": -1}, "sample.top_k=-1: must not be negative; 0 draws from all"),
    ({"guidance": -0.5}, "sample.guidance=-0.5: must not be negative"),
    ({"guidance": 0.5}, "sample.guidance=0.5: guides towards a prompt.* leave it to launch.sample"),
])
def test_samples_that_cannot_be(sample, message):
    with pytest.raises(ConfigError, match=message):
        with_fields(sample=sample)


def test_every_coupling_has_its_name():
    assert set(config.TIME_SAMPLINGS) == {"auto", *levels.COUPLINGS}
