"""The held-out bound of a learned schedule against enumeration: rows of two tokens and their exact denoiser."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mdlm_jax.core.prediction import Prediction
from mdlm_jax.core.process import Process
from mdlm_jax.evaluation.likelihood import held_out_bound, padded_batches
from mdlm_jax.models import api
from mdlm_jax.models.config import TransformerConfig
from mdlm_jax.training.build import build_bound
from tests.core import genmd4_toy as toy
from tests.training import tiny

NETWORK = TransformerConfig(toy.SIZE, toy.SIZE, 1, 16, 2, 2, 32, conditioning="time")
ENTROPY = -toy.JOINT @ np.log(toy.JOINT)
TRAINABLE = {"network": {}, "schedule": jnp.asarray(toy.RAW)}


def exact_network(blur):
    """The law of each token given the noisy row and the powers, as a stand-in for `api.apply`."""
    states, log_joint = jnp.asarray(toy.STATES[toy.CLEAN]), jnp.log(jnp.asarray(toy.JOINT, jnp.float32))

    def apply(network, params, tokens, *, time, **options):
        log_share = jnp.asarray(toy.POWERS, jnp.float32)[states] * jnp.log(time)[:, None, None]  # [B, 9, L]
        log_keep = jnp.log(-jnp.expm1(jnp.minimum(log_share, -1e-30)) + 1e-30)
        seen = tokens[:, None, :]
        each = jnp.where(seen == toy.MASK, log_share, jnp.where(seen == states, log_keep, -1e9))
        weights = jax.nn.softmax(log_joint + each.sum(-1), axis=1)
        probs = jnp.einsum("bs,slv->blv", weights, jax.nn.one_hot(states, toy.SIZE))
        return Prediction.from_logits(jnp.log((1 - blur) * probs + blur / 3 + 1e-12))

    return apply


@functools.cache
def bound(blur):
    """One objective a case: the measurement is compiled for it, with the network that it then meets."""
    del blur
    return build_bound(tiny.run_config(train={"objective": "genmd4:1"}), NETWORK, Process(toy.SIZE, toy.MASK), 1)


@pytest.fixture
def measure(monkeypatch):
    def run(count, blur=0.0):
        tokens = toy.STATES[toy.CLEAN][np.random.default_rng(0).choice(len(toy.JOINT), count, p=toy.JOINT)]
        ones = np.ones(tokens.shape, np.int32)
        batch = {"tokens": tokens.astype(np.int32), "attention_mask": ones, "noise_mask": ones == 1,
                 "loss_mask": ones == 1, "positions": np.broadcast_to(np.arange(2, dtype=np.int32), tokens.shape)}
        monkeypatch.setattr(api, "apply", exact_network(blur))
        made = bound(blur)
        found = held_out_bound(made.loss_at, TRAINABLE, padded_batches(batch, 1000), np.zeros_like, draws=8,
                               end_terms=made.end_terms)
        return found, np.bincount(tokens @ toy.CODE, minlength=16)[toy.CLEAN] / count

    return run


def test_the_exact_denoiser_reaches_the_entropy(measure):
    """Diffusion and reconstruction add up to it; the prior is zero and not listed."""
    found, _ = measure(8000)
    assert abs(found.nats_per_token - ENTROPY / toy.LENGTH) < 4 * found.nats_stderr + 2e-3 and found.nats_stderr < 0.02
    assert set(found.terms) == {"diffusion", "reconstruction"}


def test_a_worse_denoiser_is_charged_for_it(measure):
    """And what it pays for the tokens still masked at time_min is their -log mu there."""
    found, drawn = measure(8000, blur=0.5)
    assert found.nats_per_token > ENTROPY / toy.LENGTH + 8 * found.nats_stderr
    guess = np.append(np.full(3, 1 / 3), 0.0)
    price = toy.price(lambda t: 0.5 * toy.exact(t) + 0.5 * guess, 1e-3)
    assert found.terms["reconstruction"] == pytest.approx(drawn @ price / toy.LENGTH, rel=0.1)


def test_the_wrong_schedule_is_charged_for_it(measure, monkeypatch):
    """The same rows and denoiser under powers that were not learned with it."""
    monkeypatch.setitem(TRAINABLE, "schedule", jnp.full((toy.SIZE,), 0.541325))
    found, _ = measure(8000)
    assert found.nats_per_token > ENTROPY / toy.LENGTH + 4 * found.nats_stderr
