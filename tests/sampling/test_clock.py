"""The time a network is told: by one that scores every token alike and keeps what it was told."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mdlm_jax.core.prediction import Prediction
from mdlm_jax.core.process import Process
from mdlm_jax.core.schedules import Cosine, Linear
from mdlm_jax.models.config import TransformerConfig
from mdlm_jax.models.denoise import Call, Denoiser, Foreign, ScheduledDenoiser
from mdlm_jax.sampling import clock
from mdlm_jax.sampling.ancestral import Ancestral
from mdlm_jax.sampling.canvas import blank
from mdlm_jax.sampling.dream import Dream
from mdlm_jax.sampling.first_hitting import FirstHitting
from mdlm_jax.sampling.loop import decode
from mdlm_jax.sampling.low_confidence import LowConfidence
from mdlm_jax.sampling.p2 import P2
from mdlm_jax.sampling.remdm import ReMDMLoop
from mdlm_jax.sampling.threshold import Threshold
from tests.marks import slow_unless
from tests.sampling.looks import look_of

VOCAB, MASK, LENGTH, PROMPT = 6, 5, 18, np.array([1, 2], np.int32)
NETWORK = TransformerConfig(VOCAB, VOCAB, layers=1, d_model=8, heads=2, kv_heads=2, d_ff=8, conditioning="time",
                            condition_dim=8)
PROCESS = Process(VOCAB, MASK, schedule=Linear(0.0))


@dataclasses.dataclass(frozen=True, eq=False)
class Reporter:
    """Tells (masks it sees, time it is told) of the first row to ``heard``."""

    heard: list
    process: Process | None = None
    contract: str = "bidirectional"
    network = dataclasses.replace(NETWORK, attention="block_causal", block_length=4)
    timed = True
    shifted = False
    learned = False

    def run(self, params, call: Call, cache: None) -> tuple[Prediction, None]:
        jax.debug.callback(lambda masks, time: self.heard.append((int(masks), float(time))),
                           (call.tokens[0] == MASK).sum(), call.time[0], ordered=True)
        return Prediction.from_logits(params[call.tokens]), None


def heard(decoder, process=PROCESS, steps=16, contract="bidirectional", **options) -> np.ndarray:
    """[steps, 2]: masks that the network saw and times it was told, of a row of 16 to be written behind a prompt."""
    model = Reporter([], process, contract)
    found = decode(model, jnp.zeros((VOCAB, VOCAB)).at[:, 0].set(9.0), blank(MASK, 1, LENGTH, PROMPT), decoder,
                   steps=steps, trace=True, **options)
    jax.effects_barrier()
    assert (np.asarray(found.tokens) != MASK).all()
    return np.array(model.heard)


@pytest.mark.parametrize("block_length", slow_unless([None, 4], 4))
def test_without_a_grid_it_is_that_of_the_masks_there_are(block_length):
    """Also over blocks, at any pace, for any schedule, and of hybrid noise."""
    plain = heard(LowConfidence(MASK), steps=8, block_length=block_length)
    np.testing.assert_allclose(plain, [(n, n / 16) for n in range(16, 0, -2)], rtol=1e-6)
    fast = heard(Threshold(MASK, threshold=0.5), block_length=block_length)
    assert len(fast) == (4 if block_length else 1)
    np.testing.assert_allclose(fast[:, 1], fast[:, 0] / 16, rtol=1e-6)
    curved = Process(VOCAB, MASK, 0.0, Cosine(1e-4))
    masks, times = heard(LowConfidence(MASK), curved, 8, block_length=block_length).T
    np.testing.assert_allclose(np.asarray(curved.schedule.complement(times[1:])), masks[1:] / 16, rtol=1e-5)
    mixed = Process(VOCAB, MASK, 0.25, Linear(0.0))
    masks, times = heard(LowConfidence(MASK), mixed, 8, block_length=block_length).T
    share = np.asarray(mixed.noise_mass(mixed.masses(jnp.asarray(times, jnp.float32)), jnp.full((8, 1), MASK)))[:, 0]
    np.testing.assert_allclose(share[masks < 12], masks[masks < 12] / 16, rtol=1e-5)
    assert (times[masks > 13] == 1).all()


def test_a_grid_is_told_as_it_is_without_blocks():
    uniform = 1 - np.arange(8) / 8
    for decoder in (Ancestral(PROCESS), P2(PROCESS, planner="uniform")):
        times = heard(decoder, steps=8)[:, 1]
        np.testing.assert_array_equal(times, uniform[: len(times)])
    cosine = heard(Ancestral(PROCESS), steps=8, grid="cosine")[:, 1]
    np.testing.assert_allclose(cosine, np.cos(np.pi / 16 * np.arange(len(cosine))), rtol=1e-6)
    np.testing.assert_allclose(heard(Dream(MASK, eps=0.2), steps=4)[:, 1], [1.0, 0.8, 0.6, 0.4], rtol=1e-6)


@pytest.mark.parametrize("schedule", slow_unless([Linear(0.0), Cosine(1e-4)], "cosine", ids=["linear", "cosine"]))
def test_over_blocks_later_ones_count_as_noise(schedule):
    """The noise of the row goes from 1 to 0 in all, a quarter a block, and never restarts."""
    process = Process(VOCAB, MASK, schedule=schedule)
    for decoder in (ReMDMLoop(process), Ancestral(process), FirstHitting(process)):
        masks, times = heard(decoder, process, 16, block_length=4).T
        noise = np.asarray(schedule.complement(jnp.asarray(times, jnp.float32)))
        assert noise[0] > 0.7 and noise[-1] < 0.25 and (np.diff(times) < 1e-6).all()
        block = np.ceil(masks / 4)  # a block's noise and that of those behind it
        if isinstance(decoder, ReMDMLoop):
            block = np.repeat([4, 3, 2, 1], 4)  # goes on without masks
        assert (noise <= block / 4 + 1e-6).all() and (noise >= (block - 1) / 4 * (1 - 1e-4) - 1e-6).all()


def test_a_network_of_blocks_is_told_of_its_block():
    times = heard(LowConfidence(MASK), contract="block_causal", steps=20, block_length=4)[:, 1]
    np.testing.assert_allclose(times, [1.0, 0.5] + [1.0, 0.75, 0.5, 0.25] * 3 + [1.0, 0.5])  # whole blocks from 0 on


@pytest.mark.parametrize(("model", "decoder", "options", "message"), [
    (Denoiser(NETWORK), LowConfidence(MASK), {}, r"LowConfidence: has no grid of times, .*Denoiser\(process=...\)"),
    (Denoiser(NETWORK), Dream(MASK), {"block_length": 4}, r"Dream: writes in blocks, .*give Denoiser\(process=...\)"),
    (ScheduledDenoiser(NETWORK), Threshold(MASK), {}, "Threshold: has no grid of times, .*every id has a schedule"),
    (Foreign(len, process=Process(VOCAB, MASK, 1.0)), Threshold(MASK), {}, "mixing=1.0: uniform noise alone makes no"),
    (ScheduledDenoiser(NETWORK), FirstHitting(PROCESS), {}, "FirstHitting: goes by one schedule"),
    (ScheduledDenoiser(NETWORK), ReMDMLoop(PROCESS), {}, "ReMDMLoop: goes by one schedule"),
    (ScheduledDenoiser(NETWORK), P2(PROCESS), {}, "P2: goes by one schedule"),
    (ScheduledDenoiser(NETWORK), Ancestral(PROCESS), {}, "Ancestral: goes by one schedule"),
], ids=lambda value: type(value).__name__)
def test_times_that_cannot_be_told(model, decoder, options, message):
    with pytest.raises(ValueError, match=message):
        decode(model, {}, blank(MASK, 1, 16), decoder, steps=16, **options)


def test_a_plain_function_is_told_the_share_of_masks():
    clock.check(Foreign(len), LowConfidence(MASK), 4)
    look = look_of([[MASK, 1, MASK, 2]], MASK, steps=4, canvas=blank(MASK, 1, 4))
    assert clock.told(Foreign(len), LowConfidence(MASK), look) == 1
