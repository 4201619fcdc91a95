import os
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mdlm_jax.training import ceiling


@pytest.fixture(autouse=True)
def fresh_cache():
    ceiling.matmul_ceiling.cache_clear()
    yield
    ceiling.matmul_ceiling.cache_clear()


def test_rate_lies_between_numpys_own_and_what_cores_can_do():
    """Wide margins, for other work may run on the same cores; the test after next is exact."""
    matrix = np.random.default_rng(0).normal(size=(512, 512)).astype(np.float32)
    best = np.inf
    for _ in range(50):
        begin = time.perf_counter()
        matrix @ matrix
        best = min(best, time.perf_counter() - begin)
    numpy_rate = 2 * 512**3 / best
    every_core = os.cpu_count() * 5e9 * 128  # 5 GHz, and two multiply-adds of 32 floats a cycle: more than any has
    assert numpy_rate / 20 < ceiling.matmul_ceiling("float32", 0.5) < every_core


def test_measured_once_a_process_and_dtype(monkeypatch):
    calls = []
    monkeypatch.setattr(ceiling, "_best_rate", lambda size, dtype, acc, *_: calls.append((size, acc)) or float(size))
    assert ceiling.matmul_ceiling("float32") == ceiling.matmul_ceiling("float32") == 2048.0
    assert calls == [(512, None), (1024, None), (2048, None)]
    ceiling.matmul_ceiling("bfloat16")
    assert calls[3:] == [(size, acc) for size in (512, 1024, 2048) for acc in (None, "float32")]


def test_a_burst_is_a_chain_of_products_and_is_counted_whole(monkeypatch):
    """With a clock that only products move, the rate is exact: 2 M^3 FLOP in the time of one product."""
    now, chain = [0.0], []

    def multiply(a, b):
        now[0] += 0.004
        chain.append((a, jnp.zeros(())))
        return chain[-1][1]

    monkeypatch.setattr(ceiling.time, "perf_counter", lambda: now[0])
    monkeypatch.setattr(jax, "jit", lambda function: multiply)
    rate = ceiling._best_rate(16, "bfloat16", None, jax.local_devices()[0], 0.1)
    np.testing.assert_allclose(rate, 2 * 16**3 / 0.004, rtol=1e-9)
    matrix = chain[0][0]
    starts = [i for i, (first, _) in enumerate(chain) if first is matrix]
    assert starts == [0, 1, *range(2, len(chain), 5)]  # 5 products of 4 ms make a burst of 20 ms
    assert all(chain[i][0] is chain[i - 1][1] for i in range(len(chain)) if i not in starts)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_long_chains_stay_finite(dtype):
    """Numbers that overflow or vanish could be multiplied faster or slower than a model's."""
    matrix = (jax.random.normal(jax.random.key(0), (128, 128)) * 128**-0.5).astype(dtype)
    product = matrix
    for _ in range(100):
        product = product @ matrix
    assert 1e-6 < float(jnp.abs(product.astype(jnp.float32)).mean()) < 1e6
    assert bool(jnp.isfinite(product).all())
