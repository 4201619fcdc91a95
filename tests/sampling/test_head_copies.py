"""The loop keeps no second head: neither one that is cut, nor one in float32 for guidance; and a cut's gradient."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mdlm_jax.core.guidance import guide
from mdlm_jax.core.prediction import Head, Prediction
from mdlm_jax.core.reduction import reduce
from mdlm_jax.models import api
from mdlm_jax.models.config import TransformerConfig
from mdlm_jax.models.denoise import Denoiser
from mdlm_jax.sampling import memory, program
from mdlm_jax.sampling.canvas import blank
from mdlm_jax.sampling.klass import KLASS
from mdlm_jax.sampling.loop import begin
from mdlm_jax.sampling.low_confidence import LowConfidence
from tests.marks import slow_unless

WIDE, REAL, WIDTH, MASK = 104, 97, 40, 96
NETWORK = TransformerConfig(WIDE, WIDE, layers=1, d_model=WIDTH, heads=2, kv_heads=2, d_ff=16, dtype="bfloat16")
MODEL = Denoiser(NETWORK, REAL)


def lowered(params, decoder, **options):
    layout, numbers, now = begin(MODEL, params, blank(MASK, 2, 8, np.array([1, 2])), decoder, steps=4, **options)
    return program.block.lower(layout.program(0), decoder, params, numbers, now, None, jnp.asarray(layout.low(0)))


@pytest.mark.parametrize("guidance", slow_unless([0.0, 1.5], 1.5))
@pytest.mark.parametrize("decoder", [LowConfidence(MASK), KLASS(MASK)], ids=["low_confidence", "klass"])
def test_no_copy_of_the_head_is_made(decoder, guidance):
    params = jax.tree.map(lambda x: x.astype(jnp.bfloat16), api.init(NETWORK, jax.random.key(0)))
    program_text = lowered(params, decoder, guidance=guidance)
    asked = program_text.as_text()
    assert f"tensor<{WIDTH}x{WIDE}xbf16>" in asked
    assert f"tensor<{WIDTH}x{WIDE}xf32>" not in asked and f"tensor<{WIDTH}x{REAL}x" not in asked
    if decoder == LowConfidence(MASK) and guidance:
        assert f"[{WIDTH},{REAL}]" not in program_text.compile().as_text()  # the compiler does not cut it either
    assert memory.need(MODEL, params, decoder, rows=2, slots=0).head == 0


def test_a_head_of_another_dtype_is_counted():
    params, wide = api.init(NETWORK, jax.random.key(0)), 2 * WIDTH * WIDE
    assert memory.need(MODEL, params, LowConfidence(MASK), rows=2, slots=0).head == wide
    tied = dataclasses.replace(NETWORK, tied=True, head_size=REAL)
    narrow = jax.tree.map(lambda x: x.astype(jnp.bfloat16), api.init(tied, jax.random.key(0)))
    assert memory.need(Denoiser(tied), narrow, LowConfidence(MASK), rows=2, slots=0).head == 2 * WIDTH * REAL


def heads(seed=0):
    rng = np.random.default_rng(seed)
    kernel, bias = rng.standard_normal((5, 9)), rng.standard_normal(9)
    return jnp.asarray(kernel, jnp.float32), jnp.asarray(bias, jnp.float32), rng.standard_normal((2, 2, 3, 5))


def test_guided_logits_are_those_of_the_branches():
    """Of bfloat16 branches too, to float32: no rounding of what guidance extrapolates."""
    kernel, bias, hidden = heads()
    for dtype in (jnp.float32, jnp.bfloat16):
        seen, blind = jnp.asarray(hidden, dtype)
        found = Prediction(seen, Head(kernel.astype(dtype), bias)).guided(blind, jnp.float32(2.5)).narrowed(7)
        exact = [np.asarray(x, np.float64) @ np.asarray(kernel.astype(dtype), np.float64) for x in (seen, blind)]
        expected = (exact[0] + 2.5 * (exact[0] - exact[1]) + np.asarray(bias))[..., :7]
        np.testing.assert_allclose(found.logits(), expected, atol=2e-5)
        assert found.num_columns == 7 and found.logits_held == 14
    seen, blind = jnp.asarray(hidden, jnp.float32)
    logits = Prediction.from_logits(seen).guided(blind, 2.5)
    np.testing.assert_array_equal(logits.logits(), guide(seen, blind, 2.5))
    assert logits.num_columns == 5


@pytest.mark.parametrize("identity", [False, True])
def test_a_cut_head_is_the_head_of_fewer_columns_and_so_is_its_gradient(identity):
    kernel, bias, hidden = heads()
    hidden = jnp.asarray(hidden[0], jnp.float32)
    kernel, bias, columns = (None, bias[:5], 4) if identity else (kernel, bias, 7)
    target = jnp.asarray([[0, 1, 2], [3, 0, 1]])

    def nats(cut, hidden, kernel, bias):
        if cut:
            found = Prediction(hidden, Head(kernel, bias)).narrowed(columns)
        elif identity:
            found = Prediction(hidden[..., :columns], Head(None, bias[:columns]))
        else:
            found = Prediction(hidden, Head(kernel[:, :columns], bias[:columns]))
        return reduce(found, suppress=3, target=target % 3, entropy=True, chunk=2).target.sum()

    wanted = (1, 3) if identity else (1, 2, 3)
    for found, expected in zip(*(jax.value_and_grad(nats, wanted)(cut, hidden, kernel, bias) for cut in (True, False)),
                               strict=True):
        jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, atol=1e-6), found, expected)
    with pytest.raises(ValueError, match="guidance: is for decoding and takes no gradient"):
        jax.grad(lambda h: reduce(Prediction(h, Head(kernel, bias)).guided(h, 1.0), suppress=3,
                                  target=target).target.sum())(hidden)
