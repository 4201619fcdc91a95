"""The compiled train step with half-size heads, and data parallelism, read off the program text."""

import functools
import types

import pytest

from benchmarks import half_head
from mdlm_jax.models import flops
from tests.marks import slow_unless

OPTIONS = types.SimpleNamespace(vocab=1000, d_model=32, layers=3, length=16, rows=4, head_budget=1 << 40)


@functools.cache
def costs(devices, half, **changed):
    return half_head.step_costs(devices, half, types.SimpleNamespace(**vars(OPTIONS) | changed))


@pytest.mark.parametrize("devices", slow_unless([1, 8], 1))
def test_half_the_head_s_flops_and_less_memory(devices):
    full, half = costs(devices, False), costs(devices, True)
    assert half["head_flops"] / full["head_flops"] == pytest.approx((OPTIONS.length + 1) / (2 * OPTIONS.length))
    assert full["flops"] - half["flops"] == full["head_flops"] - half["head_flops"]
    logits = 4 * OPTIONS.rows * OPTIONS.length * OPTIONS.vocab  # bytes in float32
    assert full["scratch_bytes"] - half["scratch_bytes"] > 0.4 * logits


def test_the_flop_formula_agrees_with_the_program():
    """Scanned layers included; the embedding's gradient and the norms are no matrix products."""
    network, tokens = half_head.network_of(OPTIONS), OPTIONS.rows * OPTIONS.length
    for half, head in ((False, tokens), (True, OPTIONS.rows // 2 * (OPTIONS.length + 1))):
        formula = flops.train_flops(network, tokens, OPTIONS.length, head)
        assert costs(1, half)["flops"] == pytest.approx(formula, rel=0.01)


def test_half_heads_add_no_collective():
    full, half = costs(8, False), costs(8, True)
    assert half["collectives"] == full["collectives"] != {}
    assert half["collective_bytes"] == full["collective_bytes"]
    assert costs(1, True)["collectives"] == {}


@pytest.mark.slow
def test_only_weights_and_gradients_travel():
    """Twice the tokens, the same traffic: rows stay on their devices, and so do the logits."""
    assert costs(8, True)["collective_bytes"] == costs(8, True, length=32)["collective_bytes"]
    assert set(costs(8, True)["collectives"]) <= {"all-gather", "all-reduce", "reduce-scatter"}
