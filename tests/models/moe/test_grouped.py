"""Grouped products against every expert on every token, in values, gradients and work."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mdlm_jax.models.moe import grouped
from mdlm_jax.models.moe.grouped import grouped_matmul, grouped_swiglu
from tests.marks import slow_unless

T, K, X, D, F = 41, 3, 6, 24, 40


def weights(rng):
    gate, up, down = rng.normal(size=(X, D, F)), rng.normal(size=(X, D, F)), rng.normal(size=(X, F, D))
    return [jnp.asarray(w / 5, jnp.float32) for w in (gate, up, down)]


def choices(kind, rng):
    spread = np.stack([rng.permutation(X)[:K] for _ in range(T)])
    if kind == "one expert":
        return np.full((T, K), 2)
    if kind == "empty experts":
        return 1 + spread % 2
    if kind == "absent":
        spread[rng.random((T, K)) < 0.4] = -1
        spread[5], spread[7, 1] = X, X + 3
    return np.full((T, K), X) if kind == "none" else spread


def every_expert(index, x, weight, gate, up, down):
    hidden = jax.nn.silu(jnp.einsum("td,xdf->txf", x, gate)) * jnp.einsum("td,xdf->txf", x, up)
    combine = (jax.nn.one_hot(index, X) * weight[..., None]).sum(1)
    return jnp.einsum("txf,xfd,tx->td", hidden, down, combine)


@pytest.mark.parametrize("backend", ["auto", "loop", "interpret"])
@pytest.mark.parametrize("kind", slow_unless(
    ["spread", "one expert", "empty experts", "absent", "none"], "spread", "absent"))
def test_swiglu_and_its_gradients(backend, kind):
    rng = np.random.default_rng(0)
    index = jnp.asarray(choices(kind, rng), jnp.int32)
    arguments = (jnp.asarray(rng.normal(size=(T, D)), jnp.float32), jnp.asarray(rng.random((T, K)), jnp.float32),
                 *weights(rng))
    cotangent = jnp.asarray(rng.normal(size=(T, D)), jnp.float32)

    def pulled(function):
        def scalar(*arguments):
            y = function(*arguments)
            return (y * cotangent).sum(), y

        return jax.jit(jax.grad(scalar, argnums=range(5), has_aux=True))(*arguments)

    grads, y = pulled(lambda x, weight, *w: grouped_swiglu(x, index, weight, *w, backend=backend))
    wanted, expected = pulled(lambda *a: every_expert(index, *a))
    np.testing.assert_allclose(y, expected, rtol=1e-5, atol=1e-5)
    for grad, want in zip(grads, wanted, strict=True):
        np.testing.assert_allclose(grad, want, rtol=1e-5, atol=1e-5 * max(1, float(jnp.abs(want).max())))
    assert (np.abs(wanted[2]).max() > 0) == (kind != "none")


@pytest.mark.parametrize("backend", ["loop", "interpret"])
def test_rows_past_the_groups_are_zero_and_harmless(backend):
    rng = np.random.default_rng(1)
    x = jnp.asarray(rng.normal(size=(300, D)), jnp.float32).at[170:].set(jnp.nan)
    w, sizes = weights(rng)[0], jnp.asarray([0, 50, 3, 100, 0, 17], jnp.int32)
    y, pull = jax.vjp(lambda x, w: grouped_matmul(x, w, sizes, backend), x, w)
    expert = np.repeat(np.arange(X), sizes)
    np.testing.assert_allclose(y[:170], np.einsum("rd,rdf->rf", x[:170], w[expert]), rtol=1e-4, atol=1e-5)
    assert not np.any(y[170:])
    dx, dw = pull(jnp.ones_like(y))
    assert np.isfinite(dx).all() and not np.any(dx[170:])
    wanted = np.stack([np.asarray(x[:170])[expert == e].sum(0) for e in range(X)])
    np.testing.assert_allclose(dw, np.broadcast_to(wanted[:, :, None], dw.shape), rtol=1e-4, atol=1e-4)


def test_bfloat16_accumulates_in_float32():
    rng = np.random.default_rng(2)
    x, w = jnp.asarray(rng.normal(size=(512, D)), jnp.bfloat16), weights(rng)[0].astype(jnp.bfloat16)
    sizes = jnp.asarray([512, 0, 0, 0, 0, 0], jnp.int32)
    _, pull = jax.vjp(lambda w: grouped_matmul(x, w, sizes, "loop"), w.astype(jnp.float32))
    dy = jnp.asarray(rng.normal(size=(512, F)), jnp.bfloat16)
    exact = np.asarray(x, np.float64).T @ np.asarray(dy, np.float64)
    np.testing.assert_allclose(pull(dy)[0][0], exact, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("sizes", [[0] * 6, [1] * 6, [16, 17, 0, 31, 1, 200], [265, 0, 0, 0, 0, 0]])
def test_blocks_cover_every_row_once_and_waste_less_than_one_block_an_expert(sizes):
    block = 16
    number, block_of = grouped._blocks(jnp.asarray(sizes, jnp.int32), block)
    assert int(number) == sum(-(-size // block) for size in sizes)
    covered = []
    for i in range(int(number)):
        expert, start, own = (int(n) for n in block_of(i))
        rows = list(range(start, start + own))
        assert 0 < own <= block and set(np.repeat(range(6), sizes)[rows]) == {expert}
        covered += rows
    assert covered == list(range(sum(sizes)))


def test_memory_is_that_of_the_visits():
    """Every expert on every token would need T X F; the loop needs a few times T k (D + F) and the weights."""
    tokens, k, experts, d, f = 512, 2, 32, 64, 64
    shapes = [(tokens, d), (tokens, k), (experts, d, f), (experts, d, f), (experts, f, d)]
    x, weight, *w = (jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes)
    index = jax.ShapeDtypeStruct((tokens, k), jnp.int32)
    run = jax.grad(lambda x, weight, *w, index: grouped_swiglu(x, index, weight, *w).sum(), argnums=range(5))
    memory = jax.jit(run).lower(x, weight, *w, index=index).compile().memory_analysis()
    visits, parameters = 4 * tokens * k * (d + f), 4 * 3 * experts * d * f
    assert memory.temp_size_in_bytes < 8 * visits + 2 * parameters < 4 * 3 * tokens * experts * f


def test_tpu_lowering_uses_the_kernels():
    shapes = [(4096, 256), (4096, 2), (8, 256, 512), (8, 256, 512), (8, 512, 256)]
    x, weight, *w = (jax.ShapeDtypeStruct(shape, jnp.bfloat16) for shape in shapes)
    index = jax.ShapeDtypeStruct((4096, 2), jnp.int32)
    run = jax.grad(lambda x, weight, index, *w: grouped_swiglu(x, index, weight, *w).astype(jnp.float32).sum(),
                   argnums=(0, 1, 3, 4, 5))
    text = jax.jit(run).trace(x, weight, index, *w).lower(lowering_platforms=("tpu",)).as_text()
    assert "tpu_custom_call" in text and "ragged_dot" not in text and "stablehlo.dot_general" not in text


def test_an_unknown_backend_is_refused():
    with pytest.raises(ValueError, match="backend='dense': choose one of auto"):
        grouped_matmul(jnp.ones((4, 2)), jnp.ones((1, 2, 2)), jnp.asarray([4]), "dense")
