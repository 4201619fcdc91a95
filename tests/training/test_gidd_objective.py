"""GIDD as a run: what its config builds, its loss against numpy, its true bound, and what is refused."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mdlm_jax.config import ConfigError, RunConfig, freeze, to_dict
from mdlm_jax.core.gidd import FLOOR, GiddProcess
from mdlm_jax.core.weights import Clipped, Dynamic, Elbo, Power
from mdlm_jax.training.build import build_bound, build_network, build_objective, build_process
from mdlm_jax.training.objectives.continuous import ContinuousObjective, DiscreteObjective
from mdlm_jax.training.objectives.gidd import GiddObjective
from tests.training import tiny
from tests.training.test_objectives import contextual, observed

PROCESS = GiddProcess(tiny.VOCAB, tiny.MASK, p_uniform=0.3)


def run_config(**sections) -> RunConfig:
    return tiny.run_config(**{"process": {"family": "gidd", "p_uniform": 0.2, "gamma": 0.5}} | sections)


def test_the_config_says_it_and_keeps_it():
    config = run_config(train={"weighting": "dynamic"})
    assert freeze(to_dict(config)) == config and not config.process.masked_only
    assert config.process.title == "GIDD, p_uniform 0.2"
    process = build_process(config, tiny.VOCAB, tiny.MASK)
    assert process == GiddProcess(tiny.VOCAB, tiny.MASK, p_uniform=0.2, gamma=0.5)
    network = build_network(config, tiny.VOCAB)
    objective, _ = build_objective(config, network, process, 1)
    assert type(objective) is GiddObjective and objective.weighting == Dynamic()
    assert (objective.time_min, objective.time_max) == (1e-4, 1 - 1e-4)
    bound = build_bound(config, network, process, 1)
    assert type(bound) is GiddObjective and bound.weighting == Elbo() and bound.time_max == 1.0
    clipped, _ = build_objective(run_config(train={"weighting": "clipped:2"}), network, process, 1)
    assert clipped.weighting == Clipped(2.0)
    steps, _ = build_objective(run_config(train={"objective": "discrete:9"}), network, process, 1)
    assert type(steps) is DiscreteObjective


def test_without_uniform_noise_a_trace_of_it_is_left_as_in_the_reference():
    process = build_process(run_config(process={"family": "gidd", "p_uniform": 0.0}), tiny.VOCAB, tiny.MASK)
    assert process.mixing == FLOOR and not process.masked_only


def numpy_loss(weighting, tokens, noisy, logits, t):
    """[B, L] from whole distributions: w(z) (KL + R - log R - 1), the weights as spelt out in the paper, gamma = 1."""
    size, peak, t = tiny.VOCAB - 1, 2 * 0.3 / 0.7, np.asarray(t, np.float64)[:, None]
    c = peak * np.sqrt(t * (1 - t))
    slope = peak * (1 - 2 * t) / (2 * np.sqrt(t * (1 - t)))
    logits = np.where(np.arange(tiny.VOCAB) == tiny.MASK, -np.inf, np.asarray(logits, np.float64))
    probs = np.exp(logits - logits.max(-1, keepdims=True))
    probs /= probs.sum(-1, keepdims=True)
    noise = np.where(np.arange(tiny.VOCAB) == tiny.MASK, t[..., None], c[..., None] / size)
    true, model = (((1 - t)[..., None] * p + noise) / (1 + c)[..., None] for p in (np.eye(tiny.VOCAB)[tokens], probs))
    ratio = np.take_along_axis(true / model, noisy[..., None], -1)[..., 0]
    divergence = (true * np.log(true / model)).sum(-1) + ratio - np.log(ratio) - 1
    flow = c + (1 - t) * slope
    own = flow / size / ((1 - t) * (1 - t + c / size))
    weight = np.where(noisy == tiny.MASK, 1 / (t * (1 - t)), np.where(noisy == tokens, own, flow / ((1 - t) * c)))
    if isinstance(weighting, Clipped):
        weight = np.minimum(weight, weighting.maximum)
    if isinstance(weighting, Dynamic):
        scale = peak / tiny.VOCAB * np.exp(-np.log((1 - t) / t) / 2)
        weight = np.minimum(2, np.where(noisy == tiny.MASK, 2, np.where(noisy == tokens, scale, 1)))
    return weight * divergence


@pytest.mark.parametrize("weighting", [Elbo(), Clipped(2.0), Dynamic()], ids=["elbo", "clipped", "dynamic"])
def test_the_loss_is_that_of_the_paper(weighting, monkeypatch):
    batch = tiny.batch(512)
    objective = GiddObjective(dataclasses.replace(tiny.NETWORK, conditioning="time"), PROCESS, weighting=weighting)
    parts, ((noisy, time),) = observed(monkeypatch, objective, batch, logits=contextual)
    assert 1e-4 <= time.min() < 0.01 and 0.99 < time.max() <= np.float32(1 - 1e-4)
    for kind in (noisy == tiny.MASK, noisy == batch["tokens"], (noisy != tiny.MASK) & (noisy != batch["tokens"])):
        assert (kind & parts.loss_mask).sum() > 50
    expected = numpy_loss(weighting, batch["tokens"], noisy, contextual(jnp.asarray(noisy)), time)
    expected *= (1 - 2e-4) if weighting == Elbo() else 1.0
    np.testing.assert_allclose(parts.terms["diffusion"], np.where(parts.loss_mask, expected, 0.0), rtol=2e-3, atol=1e-4)


def test_the_true_bound_has_no_prior_and_a_reconstruction(monkeypatch):
    """Integrated up to t = 1, where everything is the mask."""
    bound = GiddObjective(tiny.NETWORK, PROCESS, time_max=1.0, coupling="stratified")
    batch = tiny.batch(64)
    parts, ((_, time),) = observed(monkeypatch, dataclasses.replace(bound, network=tiny.TIMED), batch)
    assert time.max() > 1 - 1 / 64 and np.isfinite(parts.terms["diffusion"]).all()
    trainable = tiny.weights(bound)
    monkeypatch.undo()
    ends = jax.jit(bound.end_terms)(trainable, batch, jax.random.key(0), jnp.arange(64))
    seen = {name: np.asarray(term) for name, term in ends.terms.items()}
    assert (seen["prior"] == 0).all() and (seen["reconstruction"] >= 0).all() and seen["reconstruction"].sum() > 0
    late = jnp.full(64, 1 - 2.0**-24)
    loss = jax.jit(bound.loss_at)(trainable, batch, jax.random.key(0), jnp.arange(64), late)
    assert np.isfinite(loss.terms["diffusion"]).all()


@pytest.mark.parametrize(("sections", "message"), [
    ({"process": {"family": "gid"}}, "process.family='gid': choose one of stationary, gidd"),
    ({"process": {"family": "gidd", "mixing": 0.1}}, "process.mixing=0.1: is not read with process.family=gidd"),
    ({"process": {"family": "gidd", "schedule": "cosine"}}, "process.schedule='cosine': is not read"),
    ({"process": {"family": "gidd", "eps": 0.0}}, "process.eps=0.0: is not read"),
    ({"process": {"p_uniform": 0.2}}, "process.p_uniform=0.2: is not read with process.family=stationary"),
    ({"process": {"gamma": 2.0}}, "process.gamma=2.0: is not read"),
    ({"process": {"family": "gidd", "p_uniform": 1.0}}, "process.p_uniform=1.0: must lie in"),
    ({"process": {"family": "gidd", "gamma": 0.0}}, "process.gamma=0.0: must lie in"),
    ({"train": {"objective": "count"}}, "train.objective='count': is defined for the masked process only, and "
     "process.family=gidd; use"),
    ({"train": {"objective": "draft_edit:0.1,1,2"}}, "process.family='gidd': .*knows no noise but the mask"),
    ({"train": {"complementary": True}}, "train.complementary=True: needs process.mixing=0"),
    ({"train": {"weighting": "constant"}}, "train.weighting='constant': process.family=gidd has elbo, clipped:MAX and"),
    ({"train": {"weighting": "power:1"}}, "train.weighting='power:1': process.family=gidd has"),
    ({"train": {"weighting": "dynamic", "objective": "discrete:9"}}, "train.weighting='dynamic': .*discrete:9 has"),
    ({"process": {"mixing": 0.1}, "train": {"weighting": "dynamic"}}, "train.weighting='dynamic': is of GIDD's noise"),
])
def test_what_cannot_be_is_refused(sections, message):
    with pytest.raises(ConfigError, match=message):
        run_config(**sections)


def test_other_processes_and_weightings_are_refused_in_python():
    with pytest.raises(ValueError, match="must be a GiddProcess"):
        GiddObjective(tiny.NETWORK, tiny.process(0.3))
    with pytest.raises(ValueError, match="choose Elbo, Clipped or Dynamic"):
        GiddObjective(tiny.NETWORK, PROCESS, weighting=Power(0.0))
    assert ContinuousObjective(tiny.NETWORK, PROCESS).time_max == 1.0
