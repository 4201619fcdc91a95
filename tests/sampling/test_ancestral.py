"""The compiled sampling loop and the ancestral decoder: a Python twin, independence of rows, traces, and its law."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mdlm_jax.core import draws
from mdlm_jax.core.prediction import Prediction
from mdlm_jax.core.process import Process
from mdlm_jax.core.schedules import Cosine, CosineMask, Linear, Polynomial
from mdlm_jax.models.sharding import batch_sharding, make_mesh, replicated
from mdlm_jax.sampling import program
from mdlm_jax.sampling.ancestral import Ancestral
from mdlm_jax.sampling.canvas import Canvas, blank
from mdlm_jax.sampling.loop import decode
from tests.core.support import assert_law
from tests.core.toy import GIDD, MASKED, MIXED, Toy
from tests.core.toy import MASK as TOY_MASK
from tests.marks import slow_unless
from tests.sampling import tabulated

VOCAB, MASK, LENGTH = 11, 10, 12
PROMPT = np.array([3, 1, 4], np.int32)
ROWS = 8
DECODERS = {mixing: Ancestral(Process(VOCAB, MASK, mixing, Linear(1e-3))) for mixing in (0.0, 0.3)}
PARAMS = jnp.asarray(1.5 * np.random.default_rng(0).standard_normal((VOCAB, VOCAB), np.float32))


def denoise(params, tokens, time):
    """Logits from the token, its neighbours and the time."""
    seen = params[tokens]
    return Prediction.from_logits(seen + jnp.roll(seen, 1, axis=1) + time[:, None, None] * params[0])


def run(mixing, canvas, steps=9, **options):
    return decode(denoise, PARAMS, canvas, DECODERS[mixing], steps=steps, seed=5, **options)


every_mixing = pytest.mark.parametrize("mixing", DECODERS)


# The loop -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mixing", slow_unless(DECODERS, 0.3))
def test_the_compiled_loop_is_a_python_loop(mixing):
    """A twin of its own: keys, times, draws and steps of the process, without the loop."""
    process, canvas = DECODERS[mixing].process, blank(MASK, ROWS, LENGTH, PROMPT)
    rows = jax.vmap(jax.random.fold_in, in_axes=(None, 0))(jax.random.key(5), canvas.row_ids)
    fold = jax.vmap(jax.random.fold_in, in_axes=(0, None))
    tokens = jnp.where(canvas.editable, process.prior(fold(rows, 0), LENGTH), canvas.tokens)
    frames = [np.asarray(tokens)]
    for step in range(9):
        keys = fold(fold(rows, 1), step)
        s, t = (np.full((ROWS,), 1 - i / 9, np.float32) for i in (step + 1, step))
        drawn = draws.draw(denoise(PARAMS, tokens, t), fold(keys, 0), suppress=MASK, current=tokens)
        move = {"sample": drawn.sample, "current_log_prob": drawn.current_log_prob, "noise_mask": canvas.editable}
        times = (t,) if step == 8 else (s, t)
        tokens = (process.final_step if step == 8 else process.reverse_step)(fold(keys, 1), tokens, *times, **move)
        frames.append(np.asarray(tokens))
    np.testing.assert_array_equal(run(mixing, canvas, trace=True).trace, np.stack(frames))


def test_a_row_does_not_depend_on_its_batch():
    whole = np.asarray(run(0.3, blank(MASK, ROWS, LENGTH, PROMPT)).tokens)
    for row in range(ROWS):
        alone = run(0.3, blank(MASK, 1, LENGTH, PROMPT, first_row=row))
        np.testing.assert_array_equal(np.asarray(alone.tokens), whole[row : row + 1])
    assert len(np.unique(whole, axis=0)) == ROWS


@every_mixing
def test_the_trace_leads_from_noise_to_the_result_and_leaves_the_prompt_alone(mixing):
    canvas = blank(MASK, ROWS, LENGTH, PROMPT)
    found, plain = run(mixing, canvas, trace=True), run(mixing, canvas)
    assert found.trace.shape == (10, ROWS, LENGTH) and found.calls == 9 and plain.trace is None
    np.testing.assert_array_equal(found.trace[-1], np.asarray(found.tokens))
    np.testing.assert_array_equal(np.asarray(plain.tokens), np.asarray(found.tokens))
    np.testing.assert_array_equal(found.trace[:, :, :3], np.broadcast_to(PROMPT, (10, ROWS, 3)))
    first, last = found.trace[0][:, 3:], found.trace[-1][:, 3:]
    assert (last != MASK).all() and (last >= 0).all() and (last < VOCAB).all()
    if mixing == 0:
        assert (first == MASK).all()
        written = found.trace[:-1] != MASK
        np.testing.assert_array_equal(found.trace[1:][written], found.trace[:-1][written])  # nothing changes again
    else:
        assert len(np.unique(first)) > 3
        edited = (found.trace[1:] != found.trace[:-1]) & (found.trace[:-1] != MASK) & (found.trace[1:] != MASK)
        assert edited.any()


def test_another_number_of_steps_does_not_compile_again():
    canvas = blank(MASK, ROWS, LENGTH, PROMPT)
    run(0.3, canvas, steps=3)
    before = program.block._cache_size()
    results = [np.asarray(run(0.3, canvas, steps=steps).tokens) for steps in (1, 4, 50)]
    equal = Ancestral(Process(VOCAB, MASK, 0.3, Linear(1e-3)))
    decode(denoise, PARAMS, canvas, equal, steps=7)
    assert program.block._cache_size() == before
    assert all((tokens != MASK).all() for tokens in results)


def test_eight_devices_draw_what_one_does():
    mesh = make_mesh({"replica": 2, "fsdp": 4, "tensor": 1})
    canvas = blank(MASK, ROWS, LENGTH, PROMPT)
    placed = jax.device_put(canvas, batch_sharding(mesh))
    found = decode(denoise, jax.device_put(PARAMS, replicated(mesh)), placed, DECODERS[0.3], steps=9, seed=5)
    np.testing.assert_array_equal(np.asarray(found.tokens), np.asarray(run(0.3, canvas).tokens))


def test_seeds_and_temperature():
    canvas, process = blank(MASK, ROWS, LENGTH, PROMPT), DECODERS[0.0].process

    def tokens(decoder, seed):
        return np.asarray(decode(denoise, PARAMS, canvas, decoder, steps=1, seed=seed).tokens)  # all at once

    assert (tokens(DECODERS[0.0], 0) != tokens(DECODERS[0.0], 1)).any()
    greedy = tokens(Ancestral(process, temperature=0.0), 0)
    np.testing.assert_array_equal(tokens(Ancestral(process, temperature=0.0), 1), greedy)
    np.testing.assert_array_equal(tokens(Ancestral(process, top_p=1e-6), 2), greedy)


# The law --------------------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Tabulated:
    """A denoiser that knows the exact law of each token given the others, at each of the times of ``steps`` steps."""

    steps: int

    def __call__(self, tables, tokens, time):
        step = jnp.round((1 - time) * self.steps).astype(jnp.int32)
        return Prediction.from_logits(tables[step, tokens @ jnp.asarray([4, 1])])


@pytest.mark.parametrize("process", slow_unless(
    [MASKED, MIXED, GIDD], "masked", "gidd", ids=["masked", "mixed", "gidd"]))
def test_samples_follow_the_enumerated_law_of_the_chain(process):
    """Three steps on rows of two tokens: chi-square of 30 000 rows against products of transition matrices."""
    toy = Toy(process, 2)
    with jax.enable_x64(True):
        law = toy.law(3)
        tables = np.log(np.stack([toy.denoiser(1 - i / 3) for i in range(3)]) + 1e-30).astype(np.float32)
    found = decode(Tabulated(3), jnp.asarray(tables), blank(TOY_MASK, 30_000, 2), Ancestral(process), steps=3, seed=1)
    assert_law(np.asarray(found.tokens) @ [4, 1], np.where(law < 1e-12, 0.0, law))


@pytest.mark.slow
def test_many_steps_lead_to_the_true_law():
    """The enumerated chain comes closer to the joint as 1 / N, in total variation; 32 steps follow theirs."""
    laws = {steps: tabulated.TOY.law(steps) for steps in (16, 32, 64)}
    away = [np.abs(law - tabulated.TOY.joint).sum() / 2 for law in laws.values()]
    assert away[2] < 0.01 and 1.8 < away[0] / away[1] < 2.2 and 1.8 < away[1] / away[2] < 2.2
    assert_law(tabulated.states(Ancestral(MASKED), steps=32), np.where(laws[32] < 1e-12, 0.0, laws[32]))


@pytest.mark.parametrize(
    "schedule", slow_unless([Linear(0.0), Cosine(0.0), CosineMask(0.0), Polynomial(0.0)], CosineMask(0.0)), ids=str)
@pytest.mark.parametrize("mixing", [0.0, 0.1, 1.0])
def test_chains_from_noise_that_holds_nothing_of_the_data(mixing, schedule):
    """eps = 0: alpha(1) = 0. Every number of steps leads to tokens, and from pure mask none stays one."""
    decoder, canvas = Ancestral(Process(VOCAB, MASK, mixing, schedule)), blank(MASK, ROWS, LENGTH, PROMPT)
    for steps in (1, 2, 50):
        tokens = np.asarray(decode(denoise, PARAMS, canvas, decoder, steps=steps, seed=1).tokens)
        assert (tokens[:, 3:] < MASK).all() and (tokens >= 0).all() and len(np.unique(tokens, axis=0)) == ROWS


# Canvas and errors ----------------------------------------------------------------------------------------------------


def test_blank_canvas():
    canvas = blank(MASK, 2, 5, PROMPT, first_row=7)
    np.testing.assert_array_equal(np.asarray(canvas.tokens), [[3, 1, 4, MASK, MASK]] * 2)
    np.testing.assert_array_equal(np.asarray(canvas.editable), [[False] * 3 + [True] * 2] * 2)
    np.testing.assert_array_equal(np.asarray(canvas.row_ids), [7, 8])
    assert isinstance(blank(MASK, 1, 4), Canvas) and np.asarray(blank(MASK, 1, 4).editable).all()


@pytest.mark.parametrize(("call", "message"), [
    (functools.partial(blank, MASK, 1, 3, PROMPT), "prompt of 3 tokens: must be shorter than the length 3"),
    (lambda: run(0.0, blank(MASK, 1, 4), steps=0), "steps=0: must be at least 1"),
])
def test_errors(call, message):
    with pytest.raises(ValueError, match=message):
        call()
