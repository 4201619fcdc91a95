"""The exact draws: arithmetic bit by bit, shapes, edges and laws."""

import fractions

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from jax.sharding import PartitionSpec as P
from scipy import stats

from mdlm_jax.core import categorical as module
from mdlm_jax.core.categorical import bernoulli, categorical, exponential, gumbel
from tests.marks import slow_unless

WORD = 2**32


def fix_words(monkeypatch, words):
    """Makes the generator return these 64-bit integers, [n], as (high, low) words."""
    bits = np.array([[w >> 32 for w in words], [w & (WORD - 1) for w in words]], np.uint32)
    monkeypatch.setattr(jax.random, "bits", lambda key, shape, dtype: jnp.asarray(bits).reshape(shape))


def draw_many(logits, draws, seed=0):
    """int [draws] from one row of logits, an own key each."""
    keys = jax.random.split(jax.random.key(seed), draws)
    return np.asarray(jax.jit(jax.vmap(categorical, (0, None)))(keys, logits))


def chi2_p_value(counts, probs):
    """Of the observed counts under probs; a class of probability 0 must have none."""
    assert not counts[probs == 0].any()
    counts, probs = counts[probs > 0], probs[probs > 0]
    expected = probs / probs.sum() * counts.sum()
    assert expected.min() > 5
    return stats.chi2.sf(((counts - expected) ** 2 / expected).sum(), len(probs) - 1)


def test_exponential_resolves_its_small_end(monkeypatch):
    words = [0, 1, 1000, WORD - 1, WORD, WORD + 12345, 7 * WORD, 2**48 + 99, 2**62, 2**63, 2**64 - 2**41]
    fix_words(monkeypatch, words)
    uniform = np.array([(2 * w + 1) / 2**65 for w in words])
    draws = exponential(jax.random.key(0), (len(words),))
    assert draws.dtype == jnp.float32
    np.testing.assert_allclose(np.asarray(draws), -np.log1p(-uniform), rtol=4e-7)
    np.testing.assert_allclose(np.asarray(gumbel(jax.random.key(0), (len(words),)))[0], 65 * np.log(2), rtol=1e-6)


def test_exponential_stays_finite_at_its_large_end(monkeypatch):
    fix_words(monkeypatch, [2**64 - 1, 2**64 - 2**32])
    np.testing.assert_allclose(np.asarray(exponential(jax.random.key(0), (2,))), 24 * np.log(2), rtol=1e-6)


def test_exponential_and_gumbel_laws():
    draws = np.asarray(exponential(jax.random.key(0), (200_000,)), np.float64)
    assert stats.kstest(draws, "expon").pvalue > 1e-3
    assert stats.kstest(np.asarray(gumbel(jax.random.key(1), (200, 1000))).ravel(), "gumbel_r").pvalue > 1e-3


@settings(max_examples=200, deadline=None)
@given(st.floats(2.0**-41, 1, width=32), st.integers(-3, 3))
@example(1.0, 0)
@example(2.0**-41, 0)
@example(float(np.float32(1e-8)), 0)
def test_bernoulli_is_exact_next_to_its_threshold(p, offset):
    """True for exactly the p 2^64 smallest of the 2^64 uniform integers."""
    threshold = fractions.Fraction(p) * 2**64
    assert threshold.denominator == 1
    word = min(max(int(threshold) + offset, 0), 2**64 - 1)
    with pytest.MonkeyPatch.context() as monkeypatch:
        fix_words(monkeypatch, [word])
        assert bool(bernoulli(jax.random.key(0), np.float32(p), (1,))[0]) == (word < threshold)


def test_bernoulli_of_a_double_is_exact(monkeypatch):
    """p = 1 - 2^-40, which float32 would round to 1."""
    threshold = 2**64 - 2**24
    fix_words(monkeypatch, [threshold - 1, threshold])
    with jax.enable_x64(True):
        draws = bernoulli(jax.random.key(0), np.float64(1 - 2.0**-40), (2,))
    np.testing.assert_array_equal(np.asarray(draws), [True, False])


def test_bernoulli_ends_and_rates():
    p = jnp.asarray([0.0, 1.0, 0.3, 1e-3, -1.0, 2.0, jnp.nan])
    rates = np.asarray(bernoulli(jax.random.key(0), p, (200_000, 7)).mean(0, dtype=jnp.float32))
    np.testing.assert_array_equal(rates[[0, 1, 4, 5, 6]], [0, 1, 0, 1, 0])
    for rate, expected in [(rates[2], 0.3), (rates[3], 1e-3)]:
        assert stats.binomtest(round(float(rate) * 200_000), 200_000, expected).pvalue > 1e-3


def test_bernoulli_shapes_and_dtypes():
    key = jax.random.key(0)
    assert bernoulli(key, 0.5).shape == () and bernoulli(key, jnp.ones((2, 3))).shape == (2, 3)
    assert bernoulli(key, jnp.full((2, 1), 0.5), (2, 5)).shape == (2, 5)
    assert bernoulli(key, 1).dtype == jnp.bool_ and bool(bernoulli(key, 1)) and not bool(bernoulli(key, 0))
    half = jnp.asarray(0.1, jnp.bfloat16)  # widened before anything is compared with it
    wide = bernoulli(key, half.astype(jnp.float32), (1000,))
    np.testing.assert_array_equal(np.asarray(bernoulli(key, half, (1000,))), np.asarray(wide))
    with pytest.raises(ValueError, match="broadcast"):
        bernoulli(key, jnp.ones((2, 3)), (3,))


@pytest.mark.parametrize("size", slow_unless(
    [1, 2, 255, 256, 257, 511, 512, 513, 700, 1024, 2049, 50257], 1, 257, 511, 512, 513, 50257))
def test_the_only_possible_class_is_drawn(size):
    """Every place a class can have: first, last, and both sides of each block border."""
    classes = sorted({c for c in (0, 1, 254, 255, 256, 257, 511, 512, size - 257, size - 2, size - 1) if 0 <= c < size})
    logits = np.full((len(classes), size), -np.inf, np.float32)
    logits[np.arange(len(classes)), classes] = -3e4
    np.testing.assert_array_equal(np.asarray(categorical(jax.random.key(0), logits)), classes)
    logits[:, 0] = -np.inf  # and +inf, as guidance may make it, is certain beside the finite
    logits[np.arange(len(classes)), classes] = np.inf
    np.testing.assert_array_equal(np.asarray(categorical(jax.random.key(1), np.maximum(logits, 80.0))), classes)


@pytest.mark.parametrize("size", slow_unless([1, 5, 511, 512, 1000, 1024], 5, 511, 1000))
def test_draws_follow_the_law_at_any_size(size):
    """Around the switch to two levels and with a short last block; some classes impossible."""
    rng = np.random.default_rng(size)
    logits = (rng.normal(size=size) * 1.5).astype(np.float32)
    logits[3:-1:7] = -np.inf
    draws = draw_many(logits, 30_000)
    assert draws.min() >= 0 and draws.max() < size and not np.isinf(logits[draws]).any()
    probs = np.exp(logits.astype(np.float64))
    groups = np.arange(size) * min(size, 20) // size  # contiguous, so borders between blocks count
    masses = np.bincount(groups, probs)
    counts = np.bincount(groups[draws], minlength=len(masses))
    if size > 1:
        assert chi2_p_value(counts, masses) > 1e-3


def test_both_races_agree_in_law(monkeypatch):
    logits = np.log(1 / np.arange(1, 601.0)).astype(np.float32)
    probs = np.bincount(np.arange(600) // 30, np.exp(logits.astype(np.float64)))
    for switch in (1, 10_000):
        monkeypatch.setattr(module, "TWO_LEVEL_FROM", switch)
        keys = jax.random.split(jax.random.key(switch), 20_000)
        draws = np.asarray(jax.jit(lambda k: jax.vmap(lambda key: categorical(key, logits))(k))(keys))
        assert chi2_p_value(np.bincount(draws // 30, minlength=20), probs) > 1e-3


@pytest.mark.parametrize("size", [20, 600])
def test_shapes_axis_and_independence_of_rows(size):
    key = jax.random.key(0)
    logits = jax.random.normal(jax.random.key(1), (3, 4, size))
    draws = categorical(key, logits)
    assert draws.shape == (3, 4) and draws.dtype == jnp.int32
    jitted = jax.jit(categorical, static_argnums=2)
    np.testing.assert_array_equal(np.asarray(jitted(key, logits, -1)), np.asarray(draws))
    np.testing.assert_array_equal(np.asarray(jitted(key, jnp.moveaxis(logits, -1, 1), 1)), np.asarray(draws))
    flat = np.asarray(jitted(key, jnp.zeros((50, size)), -1))
    assert len(np.unique(flat)) > 10  # equal rows, different draws


@pytest.mark.parametrize("size", [20, 600])
def test_with_a_key_a_row_the_batch_does_not_matter(size):
    keys = jax.random.split(jax.random.key(0), 5)
    logits = jax.random.normal(jax.random.key(1), (5, 7, size))
    together = np.asarray(jax.jit(jax.vmap(categorical))(keys, logits))
    alone = jax.jit(categorical)
    for i in range(5):
        np.testing.assert_array_equal(together[i], np.asarray(alone(keys[i], logits[i])))


@pytest.mark.parametrize("spec", [P("data"), P(None, "data")])
def test_sharded_logits_give_the_same_draws(spec):
    mesh = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    logits = jax.random.normal(jax.random.key(1), (16, 2048))
    placed = jax.device_put(logits, jax.sharding.NamedSharding(mesh, spec))
    expected = jax.jit(categorical)(jax.random.key(0), logits)
    np.testing.assert_array_equal(np.asarray(jax.jit(categorical)(jax.random.key(0), placed)), np.asarray(expected))


def test_double_precision_mode_changes_nothing():
    logits = np.tile(np.linspace(-3, 3, 700, dtype=np.float32), (9, 1))

    @jax.jit
    def everything(key):
        return (exponential(key, (5,)), gumbel(key, (5,)), bernoulli(key, np.float32(0.3), (50,)),
                categorical(key, logits), categorical(key, logits[:, :30]))

    narrow = everything(jax.random.key(0))
    with jax.enable_x64(True):
        wide = everything(jax.random.key(0))
        assert categorical(jax.random.key(0), np.zeros(700)).dtype == jnp.int32
    for a, b in zip(narrow, wide, strict=True):
        assert a.dtype == b.dtype
        np.testing.assert_array_equal(np.asarray(a), np.asarray(b))


def test_two_levels_need_no_more_memory_than_the_logits():
    logits = jax.ShapeDtypeStruct((8, 50257), jnp.float32)
    compiled = jax.jit(categorical).lower(jax.random.key(0), logits).compile()
    assert compiled.memory_analysis().temp_size_in_bytes < 1.5 * 8 * 50257 * 4


def test_wrong_input_is_refused():
    with pytest.raises(TypeError, match="int32"):
        categorical(jax.random.key(0), jnp.zeros((2, 3), jnp.int32))
    with pytest.raises(ValueError, match="no classes"):
        categorical(jax.random.key(0), jnp.zeros((2, 0)))
