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


# Objectives and the fields they read ----------------------------------------------------------------------------------

CAUSAL = {"attention": "causal", "logit_shift": True}
BLOCKS = {"attention": "block_causal", "block_length": 4}
PERMUTED = {"attention": "permutation"}
EXPERTS = {"moe_experts": 4, "moe_per_token": 2, "moe_d_ff": 8}


@pytest.mark.parametrize(("objective", "model", "train"), [
    ("autoregressive", CAUSAL, {}),
    ("any_order", PERMUTED, {}),
    ("any_subset:0,0", PERMUTED, {}),
    ("any_subset:0.01,0.1", PERMUTED, {}),
    ("block", BLOCKS, {"level_law": "band:0.3,0.8", "weighting": "constant", "each_twice": True, "confidence": 1.0}),
    ("block", BLOCKS, {"block_schedule": "1:10,256:20,4"}),
    ("block", BLOCKS | {"block_length": 256}, {}),
    ("block", BLOCKS | EXPERTS | {"moe_block": 2, "moe_block_pool": 3, "moe_selection_bias": True},
     {"router_bias_rate": 1e-3}),
    ("draft_edit:0.1,1,2", {}, {"weighting": "constant"}),
    ("count", {}, {"each_twice": True, "confidence": 0.5}),
    ("dparallel:32,2,0.5", {}, {"half_head": False, "init_from": "run", "lora_rank": 4}),
    ("dmax:1,1,0", {}, {"level_law": "fixed:0.75", "weighting": "constant"}),
    ("dmax:0,1,1", BLOCKS, {"block_schedule": "1:10,4"}),
])
def test_objectives_with_what_they_take(objective, model, train):
    assert with_fields(model=model, train=train | {"objective": objective}).train.objective == objective


@pytest.mark.parametrize(("objective", "sections", "message"), [
    ("autoregressive", {}, "model.attention='bidirectional': .*trains a causal network; set model.attention=causal"),
    ("autoregressive", {"model": {"attention": "causal"}}, "model.logit_shift=False: .*must score token i\\+1"),
    ("autoregressive", {"model": CAUSAL, "process": {"mixing": 0.1}}, "process.mixing=0.1: .*knows no noise but"),
    ("autoregressive", {"model": CAUSAL, "process": {"schedule": "cosine"}}, "process.schedule='cosine': .*not read"),
    ("autoregressive", {"model": CAUSAL, "train": {"half_head": False}}, "train.half_head=False: .*not read it"),
    ("autoregressive", {"model": CAUSAL, "train": {"weighting": "constant"}}, "train.weighting='constant': .*not read"),
    ("autoregressive", {"model": CAUSAL, "eval": {"draws": 2}}, "eval.draws=2: .*autoregressive does not read it"),
    ("autoregressive", {"model": CAUSAL, "eval": {"draws": 2}, "sample": {"steps": 9}, "process": {"eps": 0.01}},
     "process.eps=0.01, eval.draws=2, sample.steps=9: .*autoregressive does not read them; leave them out"),
    ("autoregressive", {"model": CAUSAL, "sample": {"steps": 9}}, "sample.steps=9: .*does not read it"),
    ("autoregressive", {"model": CAUSAL | {"conditioning": "time"}}, "model.conditioning='time'"),
    ("autoregressive", {"model": CAUSAL | EXPERTS | {"moe_block": 2, "moe_block_pool": 3}}, "model.moe_block=2: lets"),
    ("any_order", {"model": CAUSAL}, "trains a permutation network"),
    ("any_order", {"model": PERMUTED, "train": {"level_law": "cosine"}}, "train.level_law='cosine': .*not read"),
    ("any_subset:0.1,0.5", {"model": CAUSAL}, "trains a permutation network"),
    ("any_subset:0.1,0.5", {"model": PERMUTED, "process": {"eps": 0.1}}, "process.eps=0.1: .*not read"),
    ("any_subset:0.1,0.5", {"model": PERMUTED, "process": {"mixing": 0.1}}, "process.mixing=0.1: .*knows no noise but"),
    ("any_subset:0.1,0.5", {"model": PERMUTED | EXPERTS | {"moe_block": 2, "moe_block_pool": 3}}, "moe_block=2: lets"),
    ("any_subset:0.5,0.1", {"model": PERMUTED}, "LOW and HIGH are shares of a row"),
    ("any_subset:0.5,1.5", {"model": PERMUTED}, "LOW and HIGH are shares of a row"),
    ("any_subset:0.5", {"model": PERMUTED}, "takes 2 number"),
    ("block", {"model": {"attention": "two_stream", "block_length": 4}}, "trains a block_causal network"),
    ("block", {"model": BLOCKS | {"block_length": 3}}, "model.block_length=3: 3 must divide data.length=256"),
    ("block", {"model": BLOCKS | {"conditioning": "time"}}, "model.conditioning='time'"),
    ("block", {"model": BLOCKS, "process": {"mixing": 0.1}}, "process.mixing=0.1"),
    ("block", {"model": BLOCKS, "train": {"complementary": True}}, "train.complementary=True"),
    ("block", {"model": BLOCKS, "train": {"block_schedule": "1:10,8"}}, "must end with model.block_length=4"),
    ("block", {"model": BLOCKS, "train": {"block_schedule": "3:10,4"}}, "block_schedule='3:10,4': 3 must divide"),
    ("block", {"model": BLOCKS, "train": {"block_schedule": "1:1000,4"}}, "takes 1000 steps before its last size"),
    ("block", {"model": BLOCKS | {"block_length": 1}, "eval": {"draws": 8}}, "eval.draws=8: .*blocks of one token"),
    ("block", {"model": BLOCKS | EXPERTS | {"moe_block": 8, "moe_block_pool": 3}}, "must divide the block length 4"),
    ("count", {"model": PERMUTED}, "model.attention='permutation': needs inputs"),
    ("count", {"model": {"attention": "two_stream"}}, "model.attention='two_stream': needs inputs"),
    ("count", {"train": {"block_schedule": "1:10,4"}}, "is read by train.objective=block and levenshtein only"),
    ("count", {"train": {"each_twice": True, "complementary": True}}, "train.each_twice=True: already pairs"),
    ("continuous", {"train": {"each_twice": True}}, "train.each_twice=True: needs process.mixing=0 and"),
    ("nelbo", {"train": {"confidence": 1.0}, "process": {"mixing": 0.5}}, "train.confidence=1.0: needs process.mixing"),
    ("nelbo", {"train": {"confidence": -1.0}}, "train.confidence=-1.0: must not be negative"),
    ("nelbo", {"train": {"router_bias_rate": 0.1}}, "train.router_bias_rate=0.1: moves a bias"),
    ("genmd4:1", {"model": EXPERTS | {"moe_selection_bias": True}, "train": {"router_bias_rate": 0.1}}, "genmd4 does"),
    ("draft_edit:0.1,1,2", {"process": {"mixing": 0.1}}, "process.mixing=0.1"),
    ("draft_edit:1.1,1,2", {}, "RATE must lie in"),
    ("draft_edit:0.1,1,0", {}, "TURNS must be a positive integer"),
    ("draft_edit:0.1,1,1.5", {}, "TURNS must be a positive integer"),
    ("dparallel:0.5,2,0.5", {}, "BLOCK must be a positive integer"),
    ("dparallel:8,2,0", {}, "T must be positive"),
    ("dparallel:8,2", {}, r"takes 3 number\(s\), as in 'dparallel:32,2,0.5'"),
    ("dparallel:8,2,1", {"model": BLOCKS}, "model.attention='block_causal': .*fill in masks: bidirectional"),
    ("dparallel:8,2,1", {"model": {"conditioning": "time"}}, "model.conditioning='time'"),
    ("dparallel:8,2,1", {"train": {"weighting": "constant"}}, "train.weighting='constant': .*does not read it"),
    ("dparallel:8,2,1", {"train": {"each_twice": True}}, "train.each_twice=True: needs"),
    ("dparallel:8,2,1", {"train": {"confidence": 1.0}}, "train.confidence=1.0: needs"),
    ("dparallel:8,2,1", {"process": {"mixing": 0.1}}, "process.mixing=0.1: .*no noise but the mask"),
    ("dmax:0,0,0", {}, "of MASKED and OWN one must be positive"),
    ("dmax:1,1,-1", {}, "MASKED, OWN and T must not be negative"),
    ("dmax:1,1,0", {"model": CAUSAL}, "fill in masks: bidirectional or block_causal"),
    ("dmax:1,1,0", {"model": BLOCKS | {"block_length": 3}}, "3 must divide data.length=256"),
    ("dmax:1,1,0", {"model": BLOCKS | {"conditioning": "time"}}, "model.conditioning='time'"),
    ("dmax:1,1,0", {"train": {"block_schedule": "1:10,4"}}, "and by dmax with blocks"),
    ("dmax:1,1,0", {"sample": {"steps": 9}}, "sample.steps=9: train.objective=dmax does not read it"),
    ("count", {"data": {"source": "trajectories:there"}}, "are for train.objective=joint:3, dparallel:32,2,0.5 and"),
    ("joint:3", {"train": {"init_from": "run"}}, "set data.source=trajectories:DIR"),
])
def test_objectives_with_what_they_cannot_take_or_would_ignore(objective, sections, message):
    sections = sections | {"train": sections.get("train", {}) | {"objective": objective}}
    with pytest.raises(ConfigError, match=message):
        with_fields(**sections)


@pytest.mark.parametrize("spec", ["1", "1:10", "1:10,", "1:0,4", "x:1,4", "0:5,4", "1:10,4:10", "4,1:10"])
def test_block_schedules_that_cannot_be_read(spec):
    if spec == "1":
        assert config.parse_block_schedule(spec) == ((1, 0),)
    else:
        with pytest.raises(ConfigError, match="train.block_schedule=.*SIZE:STEPS"):
            config.parse_block_schedule(spec)


def test_a_block_schedule():
    assert config.parse_block_schedule("1:10,4:5,32") == ((1, 10), (4, 5), (32, 0))
    assert config.parse_block_schedule("") == ()
