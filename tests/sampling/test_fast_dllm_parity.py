"""Fast-dLLM on LLaDA (arXiv 2505.22618), token for token: quotas, thresholds, factors; no, prefix and dual cache."""

import jax
import pytest

from mdlm_jax.sampling.loop import decode
from mdlm_jax.sampling.low_confidence import LowConfidence
from mdlm_jax.sampling.threshold import Factor, Threshold
from mdlm_jax.sampling.windows import lay_out
from tests.marks import slow_unless
from tests.sampling.published import Case, named, network

ROWS, LENGTH = 1, 41
FAST = ("fast_dual_thr0p8",)
CASES = slow_unless(named("fast"), *FAST, ids=lambda case: case.name)


def decoder_of(case: Case):
    told = case.settings
    if "threshold" in told:
        return Threshold(told["mask_id"], threshold=told["threshold"])
    if "factor" in told:
        return Factor(told["mask_id"], factor=told["factor"], reference=True)
    return LowConfidence(told["mask_id"])


def run(case: Case, trace: bool):
    model, params = network("llada")
    told = case.settings
    with jax.default_matmul_precision("highest"):
        return decode(model, params, case.canvas(ROWS, LENGTH), decoder_of(case), steps=told["steps"],
                      block_length=told["block_length"], cache=told["cache"], trace=trace)


@pytest.mark.parametrize("case", CASES)
def test_every_state(case):
    found = run(case, trace=True)
    case.agrees(found)
    assert found.calls == int(found.forwards[0]) == len(case["call_len"])


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_the_end_of_the_compiled_loop(case):
    found = run(case, trace=False)
    case.agrees(found)
    assert found.calls == len(case["call_len"])


@pytest.mark.parametrize("case", named("fast"), ids=lambda case: case.name)
def test_windows(case):
    """Each forward runs on the tokens it ran on there; after a prefix, on some padding too."""
    model, _ = network("llada")
    told, canvas = case.settings, case.canvas()
    layout = lay_out(model, canvas, decoder_of(case), block_length=told["block_length"], cache=told["cache"],
                     guided=False)
    for offset, length, forward in zip(case["call_offset"], case["call_len"], forwards(case), strict=True):
        number, first = forward
        enter, inner = layout.program(number).enter, layout.program(number).inner
        window = enter if first and enter is not None else inner
        start = 0 if window.back is None else int(layout.low(number)[0]) - window.back
        assert start == offset
        end = min(start + window.length, canvas.shape[1])
        assert end == offset + length
        assert window.length == length or told["cache"] == "prefix"
        assert window.length <= length + max(told["block_length"], -(-length // 8))


def forwards(case: Case) -> list[tuple[int, bool]]:
    """Of each forward: the block's number, and whether it is the block's first."""
    told, masked = case.settings, case.states[:-1, 0] == case.settings["mask_id"]
    numbers = (masked.argmax(1) - told["prompt"]) // told["block_length"]
    return [(int(number), i == 0 or number != numbers[i - 1]) for i, number in enumerate(numbers)]


