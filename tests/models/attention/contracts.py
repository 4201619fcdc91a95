"""Random attention problems under every contract, shared by the tests of backends."""

import jax
import jax.numpy as jnp
import numpy as np

from mdlm_jax.models.attention.dispatch import attend
from mdlm_jax.models.attention.visibility import Places, Visibility


def problem(length, heads=4, kv_heads=4, size=64, rows=2, keys=None, dtype=jnp.float32, seed=0):
    """query, key, value and the cotangent of the context."""
    rng = np.random.default_rng(seed)
    keys = length if keys is None else keys
    shapes = ((rows, length, heads, size), (rows, keys, kv_heads, size), (rows, keys, kv_heads, size))
    query, key, value = (jnp.asarray(rng.normal(size=shape), dtype) for shape in shapes)
    return query, key, value, jnp.asarray(rng.normal(size=shapes[0]), dtype)


def packed(rows, length, pieces=3):
    """[rows, length] int32: segments 1..pieces of unequal lengths, then a tenth of padding."""
    end = length - length // 10
    cuts = np.linspace(0, 1, pieces + 1)[1:-1] ** 1.5 * end
    one = 1 + np.searchsorted(cuts, np.arange(length), side="right")
    one[end:] = 0
    return jnp.asarray(np.stack([np.roll(one, 0) if row % 2 else np.where(one > 1, 2, one) for row in range(rows)]),
                       jnp.int32)


def visibility(contract, block_length=1, segments=None, order=None, keys=None):
    places = Places(segments, order)
    return Visibility(places, places if keys is None else keys, contract, block_length)


def values_and_gradients(backend, query, key, value, cotangent, seen: Visibility):
    """The context, zero at queries of padding, and the gradients of its product with ``cotangent``."""

    def run(query, key, value, cotangent, seen):
        if seen.query.segment is not None:
            cotangent = cotangent * (seen.query.segment != 0)[:, :, None, None]
        context, pull = jax.vjp(lambda *x: attend(backend, *x, seen), query, key, value)
        if seen.query.segment is not None:
            context = jnp.where((seen.query.segment != 0)[:, :, None, None], context, 0)
        return context, *pull(cotangent)

    return jax.jit(run)(query, key, value, cotangent, seen)


def assert_agree(backend, seen, *arrays, tolerance=2e-5):
    ours = values_and_gradients(backend, *arrays, seen)
    truth = values_and_gradients("xla", *arrays, seen)
    for name, a, b in zip(("context", "d query", "d key", "d value"), ours, truth, strict=True):
        np.testing.assert_allclose(np.asarray(a, np.float32), np.asarray(b, np.float32), atol=tolerance,
                                   rtol=tolerance, err_msg=name)
