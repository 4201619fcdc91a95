"""launch/_samples.py: the chain that a run's weights ask for."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest

from launch import _samples
from mdlm_jax.config import SampleConfig
from mdlm_jax.core.genmd4 import VectorSchedule
from mdlm_jax.data.packing import make_batch
from mdlm_jax.data.prompts import answer_rows
from mdlm_jax.data.sources import Document
from mdlm_jax.data.tokenizers import ByteTokenizer
from mdlm_jax.models.denoise import ScheduledDenoiser
from mdlm_jax.sampling.ancestral import LearnedScheduleAncestral
from mdlm_jax.sampling.canvas import blank
from mdlm_jax.sampling.loop import decode
from mdlm_jax.training.objectives.count import CountObjective
from mdlm_jax.training.objectives.genmd4 import GenMD4Objective
from tests.marks import slow_unless
from tests.training import tiny

OPTIONS = SampleConfig(num=4, steps=6, seed=3)
PROMPT = np.array([2, 7], np.int32)


def drawn(weights, **changed):
    options = dataclasses.replace(OPTIONS, **changed)
    return _samples.draw(tiny.process(), tiny.TIMED, weights, options, 16, PROMPT, trace=True)


def test_a_learned_schedule_samples_with_its_own_powers():
    weights = tiny.weights(GenMD4Objective(tiny.TIMED, tiny.process()))
    tokens, frames = drawn(weights)
    canvas = blank(tiny.MASK, 4, 16, PROMPT)
    direct = decode(ScheduledDenoiser(tiny.TIMED), weights, canvas, LearnedScheduleAncestral(tiny.process()), steps=6,
                    seed=3)
    np.testing.assert_array_equal(tokens, np.asarray(direct.tokens))
    assert frames.shape == (7, 16) and (tokens[:, :2] == PROMPT).all() and (tokens < tiny.MASK).all()
    frames = [drawn(weights | {"schedule": VectorSchedule().init(tiny.VOCAB, power)})[1] for power in (0.05, 20.0)]
    shown = [(trace[min(3, len(trace) - 1)] != tiny.MASK).mean() for trace in frames]
    assert shown[0] < 0.4 and shown[1] == 1.0  # half way: 1 - (1/2)^w of the other positions


@pytest.mark.parametrize("guidance", slow_unless([0.0, 1.0], 1.0))
def test_plain_weights_sample_with_the_process(guidance):
    weights = tiny.weights(CountObjective(tiny.TIMED, tiny.process()))
    tokens, frames = drawn(weights, guidance=guidance)
    assert set(weights) == {"network"} and (tokens < tiny.MASK).all() and (frames[0, 2:] == tiny.MASK).all()
    learned, _ = drawn(weights | {"schedule": jnp.full((tiny.VOCAB,), 0.541325)}, guidance=guidance)
    assert learned.shape == tokens.shape and (learned < tiny.MASK).all()


def test_prompts_of_held_out_rows_are_answered_and_told_with_theirs():
    tokenizer = ByteTokenizer()
    pairs = [Document("", "4", prompt="2+2="), Document("", "seven", prompt="3+4?")]
    rows = make_batch(answer_rows(pairs, tokenizer, 12, 6), "prompts", tokenizer.eos_id, tokenizer.pad_id)
    canvas, first = _samples.prompted(rows, tokenizer.mask_id, 3)
    assert first.tolist() == [4, 4, 4]
    tokens = np.asarray(canvas.tokens)
    assert [bytes(row[:4].tolist()).decode() for row in tokens] == ["2+2=", "3+4?", "2+2="]
    assert (tokens[:, 4:] == tokenizer.mask_id).all() and np.asarray(canvas.editable)[:, 4:].all()
    assert not np.asarray(canvas.editable)[:, :4].any()
    drawn = np.concatenate([tokens[0, :4], tokenizer.encode("5 "), [tokenizer.eos_id] * 6])
    assert _samples.pair_text(tokenizer, drawn, 4, rows["tokens"][0]) == "prompt: 2+2=\nanswer: 5 \nof the data: 4"
    endless = np.concatenate([tokens[0, :4], tokenizer.encode("12345678")])
    assert "answer: 12345678\n" in _samples.pair_text(tokenizer, endless, 4, rows["tokens"][0])
