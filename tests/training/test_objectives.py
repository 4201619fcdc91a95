"""Objectives: what they corrupt, count and weigh, that they agree with each other, and which of them a run gets."""

import functools
import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mdlm_jax.config import ConfigError
from mdlm_jax.core import levels
from mdlm_jax.core.levels import Cosine, Fixed, Uniform
from mdlm_jax.core.prediction import Prediction
from mdlm_jax.core.weights import Clipped, Custom, Elbo, Power
from mdlm_jax.models import api
from mdlm_jax.training.build import build_bound, build_network, build_objective, build_process
from mdlm_jax.training.objectives.continuous import ContinuousObjective, DiscreteObjective
from mdlm_jax.training.objectives.count import CountObjective
from mdlm_jax.training.objectives.genmd4 import GenMD4Bound, GenMD4Objective
from tests.marks import slow_unless
from tests.training import tiny

KINDS = {
    "count": CountObjective(tiny.TIMED, tiny.process()),
    "complementary": CountObjective(tiny.NETWORK, tiny.process(), complementary=True),
    "continuous": ContinuousObjective(tiny.TIMED, tiny.process()),
    "mixed": ContinuousObjective(tiny.TIMED, tiny.process(0.3)),
    "uniform": ContinuousObjective(tiny.NETWORK, tiny.process(1.0)),
    "discrete": DiscreteObjective(tiny.NETWORK, tiny.process(0.3), num_steps=20),
    "genmd4": GenMD4Objective(tiny.NETWORK, tiny.process()),
}


@functools.partial(jax.jit, static_argnums=0)
def loss(objective, trainable, batch, key):
    rows = batch["tokens"].shape[0]
    return objective.loss(trainable, batch, key, jnp.arange(rows), rows)


def ignorant(noisy):
    """Logits of a network that finds every id equally likely."""
    return jnp.zeros((*noisy.shape, tiny.VOCAB))


def contextual(noisy):
    """Logits that depend on the whole noisy row, and are the more wrong the more of it is masked."""
    table = 1.5 * np.random.default_rng(0).standard_normal((tiny.VOCAB, tiny.VOCAB), np.float32)
    seen = jnp.asarray(table)[noisy] + jnp.asarray(table)[jnp.roll(noisy, 1, axis=1)]
    return 3.0 * seen * (noisy == tiny.MASK).mean(1)[:, None, None]


def observed(monkeypatch, objective, batch, key=0, logits=ignorant):
    """(LossParts, noisy tokens and times the network was given) with ``logits`` for a network."""
    calls = []

    def apply(network, params, tokens, *, time=None, **options):
        calls.append((tokens, time))
        return Prediction.from_logits(logits(tokens))

    monkeypatch.setattr(api, "apply", apply)
    rows = len(batch["tokens"])
    trainable = {"network": {}, "schedule": jnp.full((tiny.VOCAB,), 0.541325)}  # softplus of it is 1

    @jax.jit
    def run(batch):
        calls.clear()
        parts = objective.loss(trainable, batch, jax.random.key(key), jnp.arange(rows), rows)
        return parts, list(calls)

    return jax.tree.map(np.asarray, run(batch))


# What is corrupted and counted ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", KINDS)
def test_masks_decide_what_is_noised_and_what_counts(name, monkeypatch):
    batch = tiny.batch(64)
    batch["loss_mask"] = np.random.default_rng(1).random(batch["loss_mask"].shape) < 0.8  # not a subset of noise_mask
    parts, calls = observed(monkeypatch, KINDS[name], batch)
    assert len(calls) == (2 if name == "genmd4" else 1)
    for noisy, _ in calls:
        np.testing.assert_array_equal(noisy[~batch["noise_mask"]], batch["tokens"][~batch["noise_mask"]])
        changed = (noisy != batch["tokens"])[batch["noise_mask"]].mean()
        assert 0.3 < changed < 0.7
    scored = batch["loss_mask"] & batch["noise_mask"]
    np.testing.assert_array_equal(parts.loss_mask, scored)
    assert float(parts.totals().count) == scored.sum()
    for term in parts.terms.values():
        assert np.isfinite(term).all() and (term[~scored] == 0).all() and (term[scored] != 0).any()


@pytest.mark.parametrize("name", ["count", "complementary", "continuous", "genmd4"])
def test_an_ignorant_network_costs_the_entropy_of_a_uniform_guess(name, monkeypatch):
    """log 12 nats a token, the mask being impossible: for counts in every draw, else in the mean."""
    batch = tiny.batch(2048)
    parts, _ = observed(monkeypatch, KINDS[name], batch)
    mean = parts.terms["diffusion"].sum() / parts.loss_mask.sum()
    spread = (parts.terms["diffusion"].sum(1) - mean * parts.loss_mask.sum(1)).std() * 2048**0.5 / parts.loss_mask.sum()
    if isinstance(KINDS[name], CountObjective):
        assert spread < 1e-6
    assert abs(mean - math.log(12)) < 4 * spread + 2e-3 * math.log(12)


@pytest.mark.parametrize("name", slow_unless(["count", "mixed", "discrete", "genmd4"], "count", "discrete"))
def test_fresh_networks_start_near_a_uniform_guess(name):
    objective = KINDS[name]
    trainable = jax.tree.map(lambda x: 0.02 * x, tiny.weights(objective))
    if name == "genmd4":
        trainable["schedule"] = objective.schedule.init(tiny.VOCAB)
    parts = loss(objective, trainable, tiny.batch(512), jax.random.key(0))
    mean = float(parts.totals().mean())
    assert math.log(12) - 0.3 < mean < math.log(12) + (0.3 if objective.process.masked_only else 1.5)


WEIGHTINGS = {Power(0.0): np.ones_like, Power(0.5): lambda level: level**-0.5, Clipped(3.0): lambda level: 1 / level,
              Custom(jnp.square): np.square}


def named(weighting) -> str:
    """The same in every process: a function's own name tells where it lies in memory."""
    return "custom" if isinstance(weighting, Custom) else str(weighting)


@pytest.mark.parametrize("weighting", slow_unless(WEIGHTINGS, Power(0.5), Clipped(3.0)), ids=named)
@pytest.mark.parametrize(
    "law", slow_unless([Uniform(), Cosine(), Fixed(0.5), Uniform(0.3, 0.8)], Cosine(), Uniform(0.3, 0.8)), ids=str)
@pytest.mark.parametrize("kind", [CountObjective, ContinuousObjective])
def test_a_weighting_multiplies_each_masked_token_s_cross_entropy(kind, law, weighting, monkeypatch):
    objective = kind(tiny.TIMED, tiny.process(), law, weighting=weighting)
    batch = tiny.batch(64)
    parts, ((noisy, time),) = observed(monkeypatch, objective, batch)
    masked = noisy == tiny.MASK
    level = 0.999 * time if kind is ContinuousObjective else masked.sum(1) / batch["noise_mask"].sum(1)
    weight = WEIGHTINGS[weighting](np.maximum(level, 1 / 3 if isinstance(weighting, Clipped) else level))
    np.testing.assert_allclose(parts.terms["diffusion"], masked * weight[:, None] * math.log(12), rtol=1e-4)


@pytest.mark.parametrize("mixing", slow_unless([0.3, 1.0], 0.3))
def test_a_weighting_is_a_factor_of_mixed_losses_too(mixing, monkeypatch):
    batch, found = tiny.batch(64), {}
    for weighting in (Power(0.0), Power(1.0)):
        objective = ContinuousObjective(tiny.TIMED, tiny.process(mixing), weighting=weighting)
        parts, ((_, time),) = observed(monkeypatch, objective, batch)
        found[weighting] = parts.terms["diffusion"]
    np.testing.assert_allclose(found[Power(1.0)], found[Power(0.0)] / (0.999 * time[:, None]), rtol=1e-4)
    assert (found[Power(0.0)][batch["noise_mask"]] > 0).all()


@pytest.mark.parametrize(("make", "message"), [
    (lambda: CountObjective(tiny.NETWORK, tiny.process(), Fixed(0.5)), "law=Fixed.*leaves out noise levels"),
    (lambda: ContinuousObjective(tiny.NETWORK, tiny.process(), Uniform(0.3, 0.8)), "leaves out noise levels"),
    (lambda: DiscreteObjective(tiny.NETWORK, tiny.process(), weighting=Power(0.0)), "DiscreteObjective has only its"),
    (lambda: GenMD4Objective(tiny.NETWORK, tiny.process(), weighting=Power(0.0)), "GenMD4Objective has only its own"),
])
def test_weightings_that_do_not_fit_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize("name", ["count", "continuous", "mixed"])
def test_the_network_is_told_the_time_of_its_noise(name, monkeypatch):
    batch = tiny.batch(4096, prompts=False)
    _, ((noisy, time),) = observed(monkeypatch, KINDS[name], batch)
    changed = (noisy != batch["tokens"]).sum(1) / (1 - KINDS[name].process.mixing / tiny.VOCAB)
    for low in np.arange(0, 1, 0.1):
        inside = (time >= low) & (time < low + 0.1)
        expected = 1 + (tiny.LENGTH - 1) * time if name == "count" else tiny.LENGTH * time  # given the time
        assert abs((changed - expected)[inside].mean()) < 4 * math.sqrt(tiny.LENGTH / 4 / inside.sum()) + 0.02


def test_networks_without_time_get_none(monkeypatch):
    _, ((_, time),) = observed(monkeypatch, KINDS["complementary"], tiny.batch(4))
    assert time is None


# Agreement ------------------------------------------------------------------------------------------------------------


def test_all_masked_objectives_estimate_one_bound(monkeypatch):
    """Counts (half and full head, other laws), continuous time and GenMD4 at power 1: the same mean on 8192 rows."""
    batch, process = tiny.batch(8192), tiny.process(eps=1e-4)
    estimators = {
        "count": CountObjective(tiny.NETWORK, process),
        "cosine": CountObjective(tiny.NETWORK, process, Cosine(), "iid", half_head=False),
        "continuous": ContinuousObjective(tiny.NETWORK, process),
        "continuous cosine": ContinuousObjective(tiny.NETWORK, process, Cosine(), "stratified"),
        "genmd4": GenMD4Objective(tiny.NETWORK, process),
        "genmd4 cosine": GenMD4Objective(tiny.NETWORK, process, Cosine()),
    }
    found = {}
    for name, objective in estimators.items():
        parts, _ = observed(monkeypatch, objective, batch, logits=contextual)
        found[name] = parts.terms["diffusion"].sum(1)
    assert found["count"].mean() / batch["loss_mask"].sum(1).mean() > math.log(12) + 0.5  # worse than guessing
    for name, rows in found.items():
        difference = rows - found["count"]
        assert abs(difference.mean()) < 4 * difference.std() / math.sqrt(8192) + 2e-3 * rows.mean(), name


def test_half_and_full_head_agree_in_loss_and_gradient():
    batch, trainable = tiny.batch(16), tiny.weights(KINDS["count"])

    @functools.partial(jax.jit, static_argnums=0)
    def run(half):
        objective = CountObjective(tiny.TIMED, tiny.process(), half_head=half)
        def total(trainable):
            return objective.loss(trainable, batch, jax.random.key(0), jnp.arange(16), 16).totals().mean()
        return jax.value_and_grad(total)(trainable)

    (full, grads), (half, others) = run(False), run(True)
    np.testing.assert_allclose(float(half), float(full), rtol=1e-6)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(np.asarray(a), np.asarray(b), rtol=1e-4, atol=1e-6),
                 others, grads)


def test_one_discrete_step_is_the_reconstruction_from_pure_mask():
    objective = DiscreteObjective(tiny.NETWORK, tiny.process(eps=0.0), num_steps=1)
    batch, trainable = tiny.batch(8, prompts=False), tiny.weights(objective)
    parts = loss(objective, trainable, batch, jax.random.key(0))
    logits = api.apply(tiny.NETWORK, trainable["network"], jnp.full((8, tiny.LENGTH), tiny.MASK)).logits()
    log_probs = np.asarray(jax.nn.log_softmax(logits[..., :12]))
    expected = -np.take_along_axis(log_probs, batch["tokens"][..., None], -1)[..., 0]
    np.testing.assert_allclose(np.asarray(parts.terms["diffusion"]), expected, rtol=1e-4, atol=1e-5)


ENDS = {"count": CountObjective, "continuous": ContinuousObjective, "discrete": DiscreteObjective}


@pytest.mark.parametrize(
    ("kind", "mixing"), slow_unless(
        [("count", 0.0), *itertools.product(["continuous", "discrete"], [0.0, 0.1, 1.0])],
        ("count", 0.0), ("continuous", 0.0), ("continuous", 0.1), ("continuous", 1.0), ("discrete", 0.1))
)
@pytest.mark.parametrize(
    "schedule", slow_unless(["linear", "cosine", "cosine_mask", "polynomial:2"], "cosine", "polynomial:2"))
def test_without_eps_losses_and_gradients_are_finite_at_extreme_levels(schedule, kind, mixing, monkeypatch):
    """Levels u of 2^-24, 1/2 and 1 - 2^-24, of the cosine law, whose largest level rounds to 1."""
    config = tiny.run_config(process={"schedule": schedule, "mixing": mixing, "eps": 0.0})
    options = {"half_head": False} if kind == "count" else {}
    process = build_process(config, tiny.VOCAB, tiny.MASK)
    objective = ENDS[kind](tiny.TIMED, process, Cosine(), "iid", **options)
    batch, u = tiny.batch(6, prompts=False), jnp.asarray([2.0**-24, 0.5, 1 - 2.0**-24] * 2, jnp.float32)
    logits = np.random.default_rng(0).standard_normal((tiny.LENGTH, tiny.VOCAB), np.float32)
    monkeypatch.setattr(api, "apply", lambda network, params, tokens, *, time, **options: (
        Prediction.from_logits(params * (1 + time[:, None, None]))))

    @jax.jit
    def run(logits):
        def total(logits):
            return objective.loss_at({"network": logits}, batch, jax.random.key(0), jnp.arange(6), u).objective()
        ends = getattr(objective, "end_terms", None)
        rest = ends({"network": logits}, batch, jax.random.key(1), jnp.arange(6)).terms if ends else {}
        return jax.value_and_grad(total)(logits), rest

    found, rest = run(logits)
    for leaf in jax.tree.leaves((found, rest)):
        assert np.isfinite(np.asarray(leaf)).all()
    if kind == "continuous":
        np.testing.assert_allclose(np.asarray(rest["prior"]), 0.0, atol=1e-6)


# Which objective a run gets -------------------------------------------------------------------------------------------


def built(devices=1, process=None, **sections):
    config = tiny.run_config(process=process or {}, **sections)
    made = build_process(config, tiny.VOCAB, tiny.MASK)
    return build_objective(config, build_network(config, tiny.VOCAB), made, devices)


def test_the_default_is_counts_in_antithetic_pairs_with_half_the_head():
    objective, notes = built(train={"batch_size": 32}, devices=4)
    assert isinstance(objective, CountObjective) and objective.half_head and objective.coupling == "antithetic"
    assert notes == [] and objective.data_shards == 4
    assert objective.head_positions(32, 256) == 16 * 257


@pytest.mark.parametrize(("sections", "devices", "kind", "coupling", "fragments"), [
    ({"train": {"batch_size": 8}}, 8, CountObjective, "stratified", ["1 row(s) a device", "full head"]),
    ({"train": {"batch_size": 6, "microbatches": 2}}, 1, CountObjective, "stratified", ["3 row(s)", "full head"]),
    ({"train": {"time_sampling": "iid"}}, 1, CountObjective, "iid", ["is iid"]),
    ({"train": {"half_head": False}}, 1, CountObjective, "antithetic", []),
    ({"process": {"mixing": 0.1}}, 1, ContinuousObjective, "antithetic", ["full head: the continuous"]),
    ({"train": {"objective": "continuous"}}, 1, ContinuousObjective, "antithetic", ["full head: the continuous"]),
    ({"train": {"objective": "discrete:50"}}, 1, DiscreteObjective, "antithetic", ["full head: the discrete"]),
    ({"train": {"objective": "genmd4:2"}}, 1, GenMD4Objective, "antithetic", ["full head: the genmd4"]),
])
def test_what_costs_something_is_said(sections, devices, kind, coupling, fragments):
    objective, notes = built(devices, **sections)
    assert type(objective) is kind and objective.coupling == coupling
    assert len(notes) == len(fragments) and all(f in n for f, n in zip(fragments, notes, strict=True)), notes
    half = kind is CountObjective and objective.half_head
    assert objective.head_positions(4, 8) == (2 * 9 if half else 32)


@pytest.mark.parametrize(("train", "devices", "message"), [
    ({"batch_size": 8, "time_sampling": "antithetic"}, 8, "train.time_sampling=antithetic with 1 row"),
    ({"batch_size": 12}, 8, "train.batch_size=12 in 1 microbatch.* is 12 rows, which 8 devices cannot share"),
    ({"batch_size": 16, "microbatches": 4}, 8, "is 4 rows, which 8 devices"),
    ({"batch_size": 8, "complementary": True}, 8, "train.complementary=True with 1 row"),
    ({"objective": "discrete:10", "weighting": "constant"}, 1, "train.weighting='constant': .*discrete:10"),
    ({"objective": "genmd4:1", "weighting": "power:0.5"}, 1, "train.weighting='power:0.5': .*genmd4:1"),
])
def test_what_cannot_be_is_refused(train, devices, message):
    with pytest.raises(ConfigError, match=message):
        built(devices, train=train)


@pytest.mark.parametrize(("draws", "half"), [(1, False), (3, False), (4, True)])
def test_the_measured_bound_has_no_dropout_and_pairs_only_where_there_are_some(draws, half):
    config = tiny.run_config(model={"dropout": 0.1}, eval={"draws": draws}, train={"level_law": "cosine"})
    process = build_process(config, tiny.VOCAB, tiny.MASK)
    bound = build_bound(config, build_network(config, tiny.VOCAB), process, 1)
    assert bound.network.dropout == 0.0 and bound.half_head == half and bound.law == levels.Uniform()
    mixed = build_bound(config, bound.network, tiny.process(0.1), 1)
    assert bound.end_terms is None and bound.weighting == mixed.weighting == Elbo()
    assert type(mixed) is ContinuousObjective


def test_genmd4_is_measured_by_its_own_bound():
    config = tiny.run_config(model={"dropout": 0.1}, train={"objective": "genmd4:2", "level_law": "cosine"})
    process = build_process(config, tiny.VOCAB, tiny.MASK)
    bound = build_bound(config, build_network(config, tiny.VOCAB), process, 1)
    assert type(bound) is GenMD4Bound and bound.network.dropout == 0.0 and bound.law == levels.Uniform()
    assert bound.schedule.eps == 0.0 < GenMD4Objective(tiny.NETWORK, process).schedule.eps


def test_the_bound_of_genmd4_is_what_it_trains_on_without_the_second_mask(monkeypatch):
    """Diffusion terms agree in the mean; the bound's reconstruction is the denoiser's price, log 12 a masked token."""
    batch, process = tiny.batch(8192), tiny.process()
    trained, _ = observed(monkeypatch, GenMD4Objective(tiny.NETWORK, process), batch, logits=contextual)
    bound = GenMD4Bound(tiny.NETWORK, process)
    measured, calls = observed(monkeypatch, bound, batch, key=1, logits=contextual)
    assert len(calls) == 1 and measured.surrogate is None and set(measured.terms) == {"diffusion"}
    difference = measured.terms["diffusion"].sum(1) - trained.terms["diffusion"].sum(1)
    assert abs(difference.mean()) < 4 * difference.std() / math.sqrt(8192)
    trainable = {"network": {}, "schedule": jnp.full((tiny.VOCAB,), math.log(math.expm1(0.2)))}  # t^0.2 = 0.25
    monkeypatch.setattr(api, "apply", lambda network, params, tokens, **o: (
        Prediction.from_logits(ignorant(tokens))))
    ends = jax.jit(bound.end_terms)(trainable, batch, jax.random.key(0), jnp.arange(8192))
    paid = np.asarray(ends.terms["reconstruction"])
    assert set(ends.terms) == {"reconstruction"} and (paid[~batch["loss_mask"]] == 0).all()
    masked = paid[batch["loss_mask"]] > 0
    np.testing.assert_allclose(paid[paid > 0], math.log(12), rtol=1e-5)
    assert abs(masked.mean() - 1e-3**0.2) < 4 * math.sqrt(0.25 / masked.size)
