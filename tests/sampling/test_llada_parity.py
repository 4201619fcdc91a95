"""LLaDA's own generate, token for token: quotas, blocks, guidance, padding, remasking and predicted masks.

The cases run on canvases of one shape, so those with the same block length share a program.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mdlm_jax.sampling.decoder import decoder
from mdlm_jax.sampling.loop import decode
from mdlm_jax.sampling.low_confidence import LowConfidence
from tests.marks import slow_unless
from tests.sampling.published import Case, named, network

ROWS, LENGTH = 3, 33
FAST = {"llada_b4_2per", "llada_leftpad_batch", "llada_mask_in_prompt", "llada_leftpad_cfg"}


@decoder
class Replayed(LowConfidence):
    """With recorded noise: argmax of logits - T log E at temperature T, and the recorded lots."""

    exponential: Any = None  # [S, B, L, V]
    recorded: Any = None  # [S, B, L]

    def draw(self, prediction, look, wants, **options):
        if self.exponential is not None:
            scores = prediction.logits() - self.temperature * jnp.log(self.exponential[now(look)])
            look = dataclasses.replace(look, forced=jnp.argmax(scores, -1).astype(jnp.int32))
        return super().draw(prediction, look, wants, **options)

    def lots(self, look):
        return self.recorded[now(look)]


def now(look) -> jax.Array:
    """The number of the step, over all blocks; the rows of these cases keep in step."""
    block = (look.inside[0].argmax() - look.canvas.start[0]) // look.inside[0].sum()
    return block * look.steps + look.step[0]


def decoder_of(case: Case, rows: int, length: int) -> LowConfidence:
    told = case.settings
    fields = {name: told[name] for name in ("temperature", "remasking") if name in told}
    if told.get("confidence_eos_eot_inf"):
        fields["defer"] = (told["eos_id"], told["eot_id"])
    noise = {name: case.get(name) for name in ("exponential", "lots") if case.get(name) is not None}
    if not noise:
        return LowConfidence(told["mask_id"], reference=True, **fields)
    whole = {name: spread(case, values, rows, length) for name, values in noise.items()}
    whole["recorded"] = whole.pop("lots", None)
    return Replayed(told["mask_id"], reference=True, **fields, **whole)


def spread(case: Case, values: np.ndarray, rows: int, length: int) -> jax.Array:
    """What was recorded in each step's block, [S, B, block, ...], at its place in the canvas; 1 elsewhere."""
    steps, batch, width = values.shape[:3]
    low = case.settings["prompt"] + np.arange(steps) // (steps * width // (case.states.shape[2]
                                                         - case.settings["prompt"])) * width
    found = np.ones((steps, rows, length, *values.shape[3:]), np.float32)
    for step in range(steps):
        found[step, :, low[step] : low[step] + width] = values[step, np.arange(rows) % batch]
    return jnp.asarray(found)


def run(case: Case, name: str, rows: int, length: int, trace: bool):
    model, params = network(name)
    told, canvas = case.settings, case.canvas(rows, length)
    bias = np.zeros(model.network.vocab_size, np.float32)
    if told.get("logits_eos_inf"):
        bias[told["eos_id"]] = -np.inf
    with jax.default_matmul_precision("highest"):
        return decode(
            model, params, canvas, decoder_of(case, *canvas.shape), steps=told["steps"],
            block_length=told["block_length"], guidance=told.get("cfg_scale", 0.0), bias=jnp.asarray(bias), trace=trace,
        )


def marked(cases):
    cases = list(cases)
    return slow_unless(cases, *(c.name for c in cases if c.name in FAST), ids=lambda case: case.name)


@pytest.mark.parametrize("case", marked(named("llada")))
def test_every_state(case):
    found = run(case, "llada", ROWS, LENGTH, trace=True)
    case.agrees(found)
    each = 2 if case.settings.get("cfg_scale") else 1
    assert found.calls == each * case.settings["steps"] and set(np.asarray(found.forwards)) == {found.calls}


@pytest.mark.slow
@pytest.mark.parametrize("case", marked(named("llada")))
def test_the_end_of_the_compiled_loop(case):
    case.agrees(run(case, "llada", ROWS, LENGTH, trace=False))


@pytest.mark.slow
@pytest.mark.parametrize("case", named("lladamoe"), ids=lambda case: case.name)
def test_experts(case):
    case.agrees(run(case, "lladamoe", 1, None, trace=True))


@pytest.mark.slow
def test_masks_that_were_predicted_stay_only_in_the_reference():
    """llada_mask_predicted ends with masks; without ``reference`` there are none, and the draws are others' best."""
    case = Case("llada", "llada_mask_predicted")
    assert (case.states[-1] == case.settings["mask_id"]).sum() == 4
    model, params = network("llada")
    canvas = case.canvas(ROWS, LENGTH)
    found = decode(model, params, canvas, LowConfidence(case.settings["mask_id"]), steps=6, block_length=6)
    real = case.states.shape[2]
    assert (np.asarray(found.tokens)[:, :real] != case.settings["mask_id"]).all()
