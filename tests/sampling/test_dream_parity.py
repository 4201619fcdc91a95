"""Dream's diffusion_generate (arXiv 2508.15487) and Fast-dLLM's block decoding of it, token for token."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mdlm_jax.core import draws
from mdlm_jax.core.prediction import Prediction
from mdlm_jax.sampling.confidence import ByConfidence
from mdlm_jax.sampling.decoder import decoder
from mdlm_jax.sampling.dream import Dream, revealed
from mdlm_jax.sampling.loop import decode
from mdlm_jax.sampling.threshold import Threshold
from mdlm_jax.sampling.windows import lay_out
from tests.marks import slow_unless
from tests.sampling.looks import look_of
from tests.sampling.published import Case, arrays, named, network, scattered

ROWS, LENGTH = 3, 30
FAST = ("dream_entropy", "dream_entropy_5steps", "dream_entropy_leftpad")
CASES = slow_unless(named("dream"), *FAST, ids=lambda case: case.name)


@decoder
class Replayed(Dream):
    """With the recorded draws: uniforms of origin, tokens at temperature > 0, positions at alg_temp > 0."""

    uniform: Any = None  # [S, B, L]
    tokens: Any = None  # [S, B, L]
    places: Any = None  # [S, B, L] bool

    def draw(self, prediction, look, wants, **options):
        if self.tokens is not None:
            look = dataclasses.replace(look, forced=self.tokens[look.step[0]])
        return super().draw(prediction, look, wants, **options)

    def chosen(self, look):
        if self.uniform is None:
            return super().chosen(look)
        return look.masked & (self.uniform[look.step[0]] < (1 - look.s / look.t)[:, None])

    def ranks(self, confidence, look):
        if self.places is None:
            return super().ranks(confidence, look)
        return jnp.where(self.places[look.step[0]], 1.0, 0.0)


def decoder_of(case: Case, rows: int, length: int) -> ByConfidence:
    told = case.settings
    if told["algorithm"] == "confidence_threshold" and "cache" in told:
        return Threshold(told["mask_id"], threshold=told["threshold"])
    fields = {name: told[name] for name in ("threshold", "alg_temp", "temperature", "top_p", "top_k") if name in told}
    fields |= {"algorithm": told["algorithm"], "eps": told["eps"]}
    noise = {name: spread(values, rows, length) for name, values in recorded(case).items()}
    return Replayed(told["mask_id"], **fields, **noise) if noise else Dream(told["mask_id"], **fields)


def recorded(case: Case) -> dict[str, np.ndarray]:
    """Fields of `Replayed`, each [S, B, L]."""
    masked = list(case.states[:-1] == case.settings["mask_id"])
    if case.get("rand_0") is not None:
        return {"uniform": scattered([case[f"rand_{i}"] for i in range(len(masked))], masked)}
    if case.get("drawn_0") is None:
        return {}
    drawn = [case[f"drawn_{i}"].astype(np.int32) for i in range(len(masked))]
    if case.settings.get("temperature"):
        return {"tokens": scattered(drawn, masked)}
    places = np.zeros((len(masked), *masked[0].shape), bool)
    for step, chosen in enumerate(drawn):
        places[step, 0, chosen] = True
    return {"places": places}


def spread(values: np.ndarray, rows: int, length: int) -> jax.Array:
    """The same for more rows and a longer canvas."""
    found = np.zeros((len(values), rows, length), values.dtype)
    found[:, :, : values.shape[2]] = values[:, np.arange(rows) % values.shape[1]]
    return jnp.asarray(found)


def run(case: Case, trace: bool):
    model, params = network("dream")
    told = case.settings
    canvas = case.canvas(1 if "cache" in told else ROWS, LENGTH)
    with jax.default_matmul_precision("highest"):
        return decode(model, params, canvas, decoder_of(case, *canvas.shape), steps=told["steps"], trace=trace,
                      block_length=told.get("block_length"), cache=told.get("cache", "none"))


@pytest.mark.parametrize("case", CASES)
def test_every_state(case):
    found = run(case, trace=True)
    case.agrees(found)
    assert found.calls == len(case.states) - 1


@pytest.mark.slow
@pytest.mark.parametrize("case", named("dream"), ids=lambda case: case.name)
def test_the_end_of_the_compiled_loop(case):
    case.agrees(run(case, trace=False))


@pytest.mark.parametrize("case", [c for c in named("dream") if "cache" in c.settings], ids=lambda case: case.name)
def test_windows(case):
    """Each forward runs on the tokens it ran on there; after a prefix, on some padding too."""
    model, _ = network("dream")
    told, canvas = case.settings, case.canvas()
    layout = lay_out(model, canvas, decoder_of(case, *canvas.shape), block_length=8, cache=told["cache"], guided=False)
    first_masks = (case.states[:-1, 0] == told["mask_id"]).argmax(1)
    entering = np.diff(np.append(-1, case["call_offset"] > 0)) < 0
    for offset, length, low, enters in zip(case["call_offset"], case["call_len"], first_masks, entering, strict=True):
        number = (low - told["prompt"]) // 8
        window = layout.program(number).enter if enters or offset == 0 else layout.program(number).inner
        start = 0 if window.back is None else int(layout.low(number)[0]) - window.back
        assert (start, min(start + window.length, canvas.shape[1])) == (offset, offset + length)


UNITS = {name.removeprefix("units/"): array for name, array in arrays("dream").items() if name.startswith("units/")}


def test_numbers_of_tokens():
    """int(n (1 - s/t)) on the decoder's own times, for 35 pairs of steps and tokens; 0, 1, 1, ..., 2 for equal ones."""
    schedules = {name: array for name, array in UNITS.items() if name.startswith("schedule")}
    assert len(schedules) == 35
    count = jax.jit(lambda left, **told: revealed(look_of(jnp.where(jnp.arange(1024) < left, 0, 1)[None], 0, **told)))
    for name, expected in schedules.items():
        steps, tokens = (int("".join(filter(str.isdigit, part))) for part in name.split("_")[1:])
        times = np.asarray(Dream(0).grid(steps), np.float32)
        left, found = tokens, []
        for step in range(steps):
            now = count(left, steps=steps, step=step, t=times[step], s=times[step + 1])
            found.append(int(now[0]))
            left -= found[-1]
        np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("algorithm", ["maskgit_plus", "topk_margin", "entropy"])
def test_confidences(algorithm):
    """Without truncation; that of the nucleus and of the top k is in core/test_truncation.py."""
    decoder_ = Dream(39, algorithm=algorithm)
    name = {"maskgit_plus": "prob", "topk_margin": "margin"}.get(algorithm, "entropy")
    wants = draws.EVERYTHING
    look = look_of(jnp.full((1, 6), 39), None, steps=1)
    drawn = decoder_.draw(Prediction.from_logits(jnp.asarray(UNITS["logits"])[None]), look, wants, may_draw_mask=True)
    np.testing.assert_allclose(np.asarray(decoder_._confidence(drawn))[0], UNITS[f"{name}_conf"], atol=2e-6)
