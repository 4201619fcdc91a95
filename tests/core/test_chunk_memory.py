"""What the compiled reduction and draws keep alive: one chunk of logits, whatever the vocabulary."""

import math
import re

import jax
import jax.numpy as jnp
import pytest

from mdlm_jax.core import draws
from mdlm_jax.core.prediction import Head, Prediction
from mdlm_jax.core.reduction import chunk_length, reduce

ROWS, LENGTH, WIDTH, BUDGET = 2, 256, 8, 1 << 17


def reduced_loss(hidden, kernel, bias, ids, offset):
    chunk = chunk_length(ROWS, kernel.shape[1], BUDGET)
    prediction = Prediction(hidden, Head(kernel, bias))
    reduced = reduce(prediction, suppress=3, target=ids, current=ids, offset=offset, entropy=True, chunk=chunk)
    return (reduced.target + reduced.current + reduced.softplus_sum + reduced.entropy).sum()


def plain_loss(hidden, kernel, bias, ids, offset):
    logits = hidden @ kernel + bias
    log_probs = jax.nn.log_softmax(jnp.where(jnp.arange(logits.shape[-1]) == 3, -1e30, logits))
    target = jnp.take_along_axis(log_probs, ids[..., None], -1)[..., 0]
    softplus_sum = jax.nn.softplus(log_probs + offset[..., None]).sum(-1)
    return (2 * target + softplus_sum - (jnp.exp(log_probs) * log_probs).sum(-1)).sum()


def shapes(columns):
    wide, number = jax.ShapeDtypeStruct, jnp.float32
    return (
        wide((ROWS, LENGTH, WIDTH), number),
        wide((WIDTH, columns), number),
        wide((columns,), number),
        wide((ROWS, LENGTH), jnp.int32),
        wide((ROWS, LENGTH), number),
    )


def compiled(loss, columns):
    """Value and gradients for hidden, kernel, bias and offset."""
    return jax.jit(jax.value_and_grad(loss, (0, 1, 2, 4))).lower(*shapes(columns)).compile()


def temporary(program):
    return program.memory_analysis().temp_size_in_bytes


def largest_array(program):
    """Elements of the largest floating-point array anywhere in the compiled program."""
    found = re.findall(r"\b(?:f16|bf16|f32|f64)\[([\d,]+)\]", program.as_text())
    return max(math.prod(map(int, dims.split(","))) for dims in found)


def test_memory_does_not_grow_with_the_vocabulary():
    """Value and gradient, B chunk V held at 2^17 logits, V from 2048 to 65536 (the kernel from 64 kB to 2 MB).

    Temporary bytes as XLA reports them; arguments and results (kernel and its gradient) are accounted elsewhere by
    XLA and need not be subtracted. Within 5 %. The plain form grows with V.
    """
    small, large = compiled(reduced_loss, 2048), compiled(reduced_loss, 65536)
    assert temporary(large) < 1.05 * temporary(small)
    assert temporary(small) < 8 * 4 * BUDGET
    assert max(largest_array(small), largest_array(large)) < 8 * BUDGET < ROWS * LENGTH * 2048 * 4
    usual = temporary(compiled(plain_loss, 2048)), temporary(compiled(plain_loss, 8192))
    assert usual[1] > 3.5 * usual[0] > 18 * temporary(small)


def test_no_array_of_all_logits():
    """No float array of B L V elements in the compiled value and gradient; the plain form has several."""
    columns = 8192
    assert largest_array(compiled(reduced_loss, columns)) < ROWS * LENGTH * columns / 8
    assert largest_array(compiled(plain_loss, columns)) >= ROWS * LENGTH * columns


@pytest.mark.parametrize("columns", [4096])
def test_draws_keep_one_chunk(columns):
    def program(chunk):
        def drawn(hidden, kernel, bias, ids):
            keys = jax.random.split(jax.random.key(0), ROWS)
            return draws.draw(Prediction(hidden, Head(kernel, bias)), keys, suppress=3, current=ids, chunk=chunk)

        return jax.jit(drawn).lower(*shapes(columns)[:4]).compile()

    whole, pieces = program(None), program(8)
    assert temporary(pieces) < temporary(whole) / 16
    assert largest_array(pieces) < ROWS * LENGTH * columns / 8
