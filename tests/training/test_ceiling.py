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


def test_rate_agrees_with_numpys_own_product():
    """numpy's BLAS on the same cores is an independent measure; other load on them makes both noisy."""
    matrix = np.random.default_rng(0).normal(size=(1024, 1024)).astype(np.float32)
    best = np.inf
    for _ in range(20):
        begin = time.perf_counter()
        matrix @ matrix
        best = min(best, time.perf_counter() - begin)
    rate = 2 * 1024**3 / best
    measured = ceiling.matmul_ceiling("float32", 0.5)
    assert rate / 10 < measured < rate * 10


def test_measured_once_a_process_and_dtype(monkeypatch):
    calls = []
    monkeypatch.setattr(ceiling, "_best_rate", lambda size, dtype, *rest: calls.append((size, dtype)) or float(size))
    assert ceiling.matmul_ceiling("float32") == ceiling.matmul_ceiling("float32") == 2048.0
    assert calls == [(512, "float32"), (1024, "float32"), (2048, "float32")]
    ceiling.matmul_ceiling("bfloat16")
    assert calls[3:] == [(512, "bfloat16"), (1024, "bfloat16"), (2048, "bfloat16")]


def test_a_burst_is_counted_whole(monkeypatch):
    """With a clock that only products move, the rate is exact: 2 M^3 FLOP in the time of one product."""
    now = [0.0]

    def multiply(a, b):
        now[0] += 0.004
        return jnp.zeros(())

    monkeypatch.setattr(ceiling.time, "perf_counter", lambda: now[0])
    monkeypatch.setattr(jax, "jit", lambda function: multiply)
    rate = ceiling._best_rate(16, "bfloat16", jax.local_devices()[0], 0.1)
    np.testing.assert_allclose(rate, 2 * 16**3 / 0.004, rtol=1e-9)


def test_memory_of_a_cpu_is_unknown_and_of_another_device_as_reported(monkeypatch):
    assert ceiling.device_memory() is None

    class Device:
        def memory_stats(self):
            return {"bytes_in_use": 3, "bytes_limit": 7}

    monkeypatch.setattr(jax, "local_devices", lambda: [Device()])
    assert ceiling.device_memory() == {"bytes_in_use": 3, "bytes_limit": 7}
