"""The compiled train step with half-size heads, and data parallelism, read off the program text."""

import functools
import types

import pytest

from benchmarks import half_head, hlo

OPTIONS = types.SimpleNamespace(vocab=1000, d_model=32, layers=3, length=16, rows=4, head_budget=1 << 40)


@functools.cache
def costs(devices, half, **changed):
    return half_head.step_costs(devices, half, types.SimpleNamespace(**vars(OPTIONS) | changed))


@pytest.mark.parametrize("devices", [1, 8])
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
        assert costs(1, half)["flops"] == pytest.approx(network.train_flops(tokens, OPTIONS.length, head), rel=0.01)


def test_half_heads_add_no_collective():
    full, half = costs(8, False), costs(8, True)
    assert half["collectives"] == full["collectives"] != {}
    assert half["collective_bytes"] == full["collective_bytes"]
    assert costs(1, True)["collectives"] == {}


def test_only_weights_and_gradients_travel():
    """Twice the tokens, the same traffic: rows stay on their devices, and so do the logits."""
    assert costs(8, True)["collective_bytes"] == costs(8, True, length=32)["collective_bytes"]
    assert set(costs(8, True)["collectives"]) <= {"all-gather", "all-reduce", "reduce-scatter"}


PROGRAM = """
HloModule test

%add (x: f32[], y: f32[]) -> f32[] {
  ROOT %sum = f32[] add(%x, %y)
}

%condition (p: (s32[], f32[4,8])) -> pred[] {
  ROOT %less = pred[] compare(%i, %n), direction=LT
}

%body (p: (s32[], f32[4,8])) -> (s32[], f32[4,8]) {
  %x = f32[4,8]{1,0} get-tuple-element(%p), index=1
  %w = f32[8,8]{1,0} constant({...})
  %y = f32[4,8]{1,0} dot(%x, %w), lhs_contracting_dims={1}, rhs_contracting_dims={0}
  %r = f32[4,8]{1,0} all-reduce(%y), channel_id=1, to_apply=%add
  ROOT %t = (s32[], f32[4,8]{1,0}) tuple(%i, %r)
}

ENTRY %main (a: f32[4,8]) -> (s32[], f32[4,8]) {
  %b = bf16[2,3,8]{2,1,0} parameter(1)
  %c = bf16[2,8,5]{2,1,0} parameter(2)
  %d = bf16[2,3,5]{2,1,0} dot(%b, %c), lhs_batch_dims={0}, lhs_contracting_dims={2}, rhs_batch_dims={0}
  %g = (bf16[2,3,5]{2,1,0}, f32[4]{0}) all-gather(%d, %e), dimensions={0}
  ROOT %loop = (s32[], f32[4,8]{1,0}) while(%s), condition=%condition, body=%body, backend_config={TRIPS}
}
"""


def test_counting_follows_loops():
    counts = hlo.count(PROGRAM.replace("TRIPS", '"known_trip_count":{"n":"6"}'))
    assert counts.dots == {((4, 8), 8): 6 * 2 * 4 * 8 * 8, ((2, 3, 5), 8): 2 * 2 * 3 * 5 * 8}
    assert counts.number == {"all-reduce": 6, "all-gather": 1}
    assert counts.bytes == {"all-reduce": 6 * 128, "all-gather": 60 + 16}
    with pytest.raises(ValueError, match="loop in main: a loop of unknown length"):
        hlo.count(PROGRAM.replace("TRIPS", ""))
