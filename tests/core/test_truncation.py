"""Temperature, top-k and top-p against slow sorted twins and the arrays that reference code produced."""

import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mdlm_jax.core.truncation import temperature, top_k, top_p

GOLDEN = np.load(pathlib.Path(__file__).parents[1] / "golden" / "truncation.npz")


def softmax(logits):
    weights = np.exp(logits.astype(np.float64) - logits.max(-1, keepdims=True))
    return weights / weights.sum(-1, keepdims=True)


def sorted_top_p(logits, p, keep_crossing):
    """Which classes of one row stay, walking down the sorted distinct probabilities; None where p is too close."""
    probs = softmax(logits)
    mass, chosen = 0.0, probs >= probs.max()
    for level in np.unique(probs)[::-1]:
        group = probs == level
        mass += probs[group].sum()
        if abs(mass - p) < 1e-5:
            return None  # float32 sums may decide either way
        if keep_crossing or mass < p:
            chosen = chosen | group
        if mass > p:
            break
    return chosen


def kept(logits, truncated):
    """The mask of what stayed, after checking that what stayed is unchanged."""
    stays = np.asarray(truncated) > -np.inf
    np.testing.assert_array_equal(np.asarray(truncated)[stays], np.asarray(logits)[stays])
    return stays


jitted_top_p = jax.jit(top_p, static_argnames="keep_crossing")

# Halves make ties common; the twin merges equal logits exactly as float32 exp does.
halves = st.integers(-24, 24).map(lambda n: n / 2)
rows = st.lists(halves, min_size=1, max_size=40).map(lambda row: np.array(row, np.float32))


@settings(max_examples=150, deadline=None)
@given(rows, st.floats(0.02, 0.995), st.booleans())
def test_top_p_is_the_sorted_nucleus(row, p, keep_crossing):
    padded = np.full(40, -np.inf, np.float32)  # one shape, one compilation; impossible classes never matter
    padded[: len(row)] = row
    expected = sorted_top_p(row, p, keep_crossing)
    if expected is not None:
        stays = kept(padded, jitted_top_p(padded, p, keep_crossing=keep_crossing))
        np.testing.assert_array_equal(stays[: len(row)], expected)
        assert not stays[len(row) :].any()


@pytest.mark.parametrize("keep_crossing", [True, False])
def test_top_p_large_vocabulary_rows_at_once(keep_crossing):
    logits = np.random.default_rng(0).normal(size=(2, 3, 5003)).astype(np.float32) * 3
    stays = kept(logits, top_p(logits, 0.9, keep_crossing=keep_crossing))
    for index in np.ndindex(2, 3):
        expected = sorted_top_p(logits[index], 0.9, keep_crossing)
        assert expected is not None
        np.testing.assert_array_equal(stays[index], expected)


@pytest.mark.parametrize(
    ("p", "keep_crossing", "count"),
    [(0.1, True, 1), (0.49, True, 1), (0.51, True, 2), (0.74, True, 2), (0.76, True, 4), (1.0, True, 4),
     (0.1, False, 1), (0.49, False, 1), (0.74, False, 1), (0.76, False, 2), (0.99, False, 2), (1.0, False, 4)],
)
def test_top_p_either_side_of_each_boundary(p, keep_crossing, count):
    """Probabilities 1/2, 1/4, 1/8, 1/8, 0: the class that crosses stays or goes, equal ones together."""
    logits = np.append(np.log(np.array([0.5, 0.25, 0.125, 0.125])), -np.inf).astype(np.float32)
    assert kept(logits, top_p(logits, p, keep_crossing=keep_crossing)).sum() == count


def test_top_p_one_is_the_identity_and_tiny_p_the_argmax():
    logits = np.array([[-300.0, 2.0, 1.0, 0.0], [5.0, 5.0, -np.inf, 1.0]], np.float32)
    for keep_crossing in (True, False):
        np.testing.assert_array_equal(np.asarray(top_p(logits, 1.0, keep_crossing=keep_crossing)), logits)
        stays = kept(logits, top_p(logits, 1e-6, keep_crossing=keep_crossing))
        np.testing.assert_array_equal(stays, [[False, True, False, False], [True, True, False, False]])


def test_top_p_traced_and_per_row():
    logits = np.random.default_rng(1).normal(size=(3, 50)).astype(np.float32)
    p = np.array([[0.2], [0.7], [1.0]], np.float32)
    together = np.asarray(jax.jit(top_p)(logits, p))
    apart = np.concatenate([np.asarray(top_p(logits[i : i + 1], float(p[i, 0]))) for i in range(3)])
    np.testing.assert_array_equal(together, apart)
    vmapped = jax.vmap(top_p)(logits, p[:, 0])
    np.testing.assert_array_equal(np.asarray(vmapped), apart)


def test_top_p_of_certainty_is_certainty():
    logits = np.array([1.0, np.inf, 90.0], np.float32)
    np.testing.assert_array_equal(np.asarray(top_p(logits, 0.9)), [-np.inf, np.inf, -np.inf])


def test_md4_nucleus_keeps_the_crossing_token():
    ours = np.asarray(top_p(GOLDEN["md4_logits"], 0.6))
    np.testing.assert_array_equal(np.where(np.isinf(ours), np.float32(-1e7), ours), GOLDEN["md4_top_p"])


@pytest.mark.parametrize("grid", ["", "cosine_"])
def test_md4_step_with_nucleus(grid):
    """One ancestral step is [u p, 1 - u] on masked positions: truncating its p gives the reference's top-p step."""
    masked = GOLDEN["md4_step_tokens"] == 6
    plain = GOLDEN[f"md4_step_{grid}probs"][:, masked]
    expected = GOLDEN[f"md4_step_{grid}top_p_probs"][:, masked]
    unmask = 1 - plain[..., 6:]
    ours = jax.nn.softmax(top_p(np.log(plain[..., :6]), 0.6)) * unmask
    np.testing.assert_allclose(np.asarray(ours), expected[..., :6], rtol=1e-4, atol=1e-7)


def test_remdm_nucleus_drops_the_crossing_token():
    with jax.enable_x64(True):
        ours = jax.nn.softmax(top_p(np.log(GOLDEN["remdm_probs"]), 0.9, keep_crossing=False))
    np.testing.assert_allclose(np.asarray(ours), GOLDEN["remdm_nucleus_probs"], rtol=1e-9, atol=1e-12)


def test_dream_top_p_and_top_k():
    logits = GOLDEN["dream_logits"]
    gone = np.finfo(np.float32).min
    for ours, theirs in [(top_p(logits, 0.7), GOLDEN["dream_top_p"]), (top_k(logits, 5), GOLDEN["dream_top_k"])]:
        np.testing.assert_array_equal(np.where(np.isinf(ours), gone, ours), theirs)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.sampled_from([-np.inf, -2.0, -0.0, 0.0, 1.0, 3.0]), min_size=12, max_size=12), st.integers(1, 14))
def test_top_k_keeps_exactly_k_ties_by_lowest_index(row, k):
    logits = np.array([row], np.float32)
    order = np.argsort(-logits[0], kind="stable")[:k]
    expected = np.full_like(logits, -np.inf)
    expected[0, order] = logits[0, order]
    np.testing.assert_array_equal(np.asarray(top_k(logits, k)), expected)


def test_temperature_divides():
    logits = np.array([[1.0, -np.inf, 3.0]], np.float32)
    np.testing.assert_array_equal(np.asarray(temperature(logits, 0.5)), logits / np.float32(0.5))
    np.testing.assert_array_equal(np.asarray(jax.jit(temperature)(logits, 0.5)), logits / np.float32(0.5))
    per_row = temperature(np.repeat(logits, 2, 0), np.array([[0.5], [2.0]]))
    np.testing.assert_array_equal(np.asarray(per_row), np.concatenate([logits * 2, logits / 2]))


def test_low_precision_logits_are_widened():
    logits = jnp.asarray([1.0, 1.0078125, 0.5], jnp.bfloat16)
    for result in (temperature(logits, 0.9), top_k(logits, 2), top_p(logits, 0.5)):
        assert result.dtype == jnp.float32


@pytest.mark.parametrize("value", [0, 0.0, -1.0, float("nan"), float("inf"), np.float32(0)])
def test_impossible_temperature_is_refused(value):
    with pytest.raises(ValueError, match="temperature=.*argmax"):
        temperature(jnp.zeros(3), value)


@pytest.mark.parametrize("value", [0, -0.1, 1.5, float("nan")])
def test_impossible_top_p_is_refused(value):
    with pytest.raises(ValueError, match="top_p=.*0, 1"):
        top_p(jnp.zeros(3), value)


def test_impossible_top_k_is_refused():
    with pytest.raises(ValueError, match="top_k=0"):
        top_k(jnp.zeros(3), 0)
