"""The chain of a learned schedule, through the sampling loop: its law against enumeration, and what it leaves alone."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mdlm_jax.core.genmd4 import ScheduledPrediction, VectorSchedule
from mdlm_jax.core.prediction import Head
from mdlm_jax.core.process import Process
from mdlm_jax.models import api
from mdlm_jax.models.config import TransformerConfig
from mdlm_jax.models.denoise import Denoiser, ScheduledDenoiser
from mdlm_jax.sampling.ancestral import Ancestral, LearnedScheduleAncestral
from mdlm_jax.sampling.canvas import blank
from mdlm_jax.sampling.loop import decode
from tests.core import genmd4_toy as toy
from tests.core.support import assert_law

DECODER = LearnedScheduleAncestral(Process(toy.SIZE, toy.MASK))


@dataclasses.dataclass(frozen=True)
class Tabulated:
    """The toy's denoiser at each of the times of ``steps`` steps, with the powers of its parameters."""

    steps: int

    def __call__(self, params, tokens, time):
        step = jnp.round((1 - time) * self.steps).astype(jnp.int32)
        logits = params["tables"][step, tokens @ jnp.asarray(toy.CODE)]
        return ScheduledPrediction(logits, Head(), VectorSchedule().powers(params["schedule"]))


def parameters(steps):
    tables = np.stack([toy.imperfect(t) for _, t in toy.grid(steps)])
    return {"tables": jnp.asarray(np.log(tables + 1e-30), jnp.float32), "schedule": jnp.asarray(toy.RAW)}


@pytest.mark.parametrize("steps", [1, 3])
def test_samples_follow_the_enumerated_law(steps):
    """30 000 rows of two tokens, chi-square against products of transition matrices."""
    law = toy.chain_law(toy.imperfect, steps)
    canvas = blank(toy.MASK, 30_000, 2)
    found = decode(Tabulated(steps), parameters(steps), canvas, DECODER, steps=steps, seed=1)
    assert_law(np.asarray(found.tokens) @ toy.CODE, np.where(law < 1e-15, 0.0, law))


def test_ids_of_a_small_power_come_late_and_prompts_stay():
    """Two even chances at every position; the id whose power is 8 shows itself while the other is still masked."""
    params = {"tables": jnp.zeros((64, 16, 2, 4)).at[..., 2].set(-1e9),
              "schedule": jnp.log(jnp.expm1(jnp.asarray([8.0, 0.2, 1.0, 1.0])))}

    @dataclasses.dataclass(frozen=True)
    class Even(Tabulated):
        def __call__(self, params, tokens, time):
            logits = jnp.broadcast_to(params["tables"][0, 0, 0], (*tokens.shape, 4))
            return ScheduledPrediction(logits, Head(), VectorSchedule().powers(params["schedule"]))

    canvas = blank(toy.MASK, 512, 12, np.asarray([2, 0, 1]))
    trace = decode(Even(64), params, canvas, DECODER, steps=64, seed=0, trace=True).trace
    assert (trace[:, :, :3] == [2, 0, 1]).all() and (trace[-1] != toy.MASK).all()
    shown = trace[:-1] != toy.MASK
    np.testing.assert_array_equal(trace[1:][shown], trace[:-1][shown])
    half = trace[32][:, 3:]
    assert (half == 0).mean() > 0.4 > 0.15 > (half == 1).mean()


@pytest.mark.slow
def test_with_every_power_one_it_is_the_plain_chain_in_law_and_reads_the_schedule():
    network = TransformerConfig(toy.SIZE, toy.SIZE, 1, 16, 2, 2, 32)
    weights = {"network": api.init(network, jax.random.key(0)), "schedule": jnp.full((4,), 0.541325)}
    canvas = blank(toy.MASK, 20_000, 2)
    learned = decode(ScheduledDenoiser(network), weights, canvas, DECODER, steps=2).tokens
    plain = decode(Denoiser(network), weights["network"], canvas, Ancestral(DECODER.process), steps=2, seed=1).tokens
    first, second = (np.bincount(np.asarray(x) @ toy.CODE, minlength=16) for x in (learned, plain))
    used = first + second > 0
    statistic = ((first - second)[used] ** 2 / (first + second)[used]).sum()  # two samples of the same size
    assert statistic < used.sum() + 6 * np.sqrt(2 * used.sum())


def test_mixed_noise_has_no_learned_schedule():
    with pytest.raises(ValueError, match="mixing=0.3: a learned schedule needs the masked process"):
        LearnedScheduleAncestral(Process(4, 3, 0.3))
