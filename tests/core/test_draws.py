"""What decoders read off a prediction: the law of the draws, and results that depend on neither batch nor chunk."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mdlm_jax.core import truncation
from mdlm_jax.core.draws import draw
from mdlm_jax.core.prediction import Head, Prediction
from tests.core.support import assert_law, row_keys


def prediction(seed=0, rows=3, length=7, columns=11, width=None):
    rng = np.random.default_rng(seed)
    if width is None:
        return Prediction.from_logits(jnp.asarray(2 * rng.normal(size=(rows, length, columns)), jnp.float32))
    kernel, bias = rng.normal(size=(width, columns)), rng.normal(size=columns)
    hidden = jnp.asarray(rng.normal(size=(rows, length, width)), jnp.float32)
    return Prediction(hidden, Head(jnp.asarray(kernel, jnp.float32), jnp.asarray(bias, jnp.float32)))


def softmax(logits, suppress=None):
    logits = np.asarray(logits, np.float64).copy()
    if suppress is not None:
        logits[..., suppress] = -np.inf
    weights = np.exp(logits - logits.max(-1, keepdims=True))
    return weights / weights.sum(-1, keepdims=True)


@pytest.mark.parametrize("options", [{}, {"temperature": 1.5, "top_p": 0.7, "top_k": 5}], ids=repr)
def test_law_of_the_samples(options):
    """Chi-square, 20 000 rows alike: softmax(logits / temperature) after top-k and top-p, the mask left out."""
    logits = prediction(rows=1, length=2).hidden
    many = Prediction.from_logits(jnp.broadcast_to(logits, (20_000, *logits.shape[1:])))
    sample = draw(many, row_keys(20_000, 1), suppress=4, **options).sample
    cut = jnp.where(jnp.arange(11) == 4, -jnp.inf, logits[0]) / options.get("temperature", 1.0)
    if "top_k" in options:
        cut = truncation.top_k(cut, options["top_k"])
    if "top_p" in options:
        cut = truncation.top_p(cut, options["top_p"])
    for place in range(2):
        law = softmax(cut[place])
        assert law[4] == 0
        assert_law(sample[:, place], law)


def test_scores_against_numpy():
    """Log-probabilities are of the untempered, untruncated law, whatever the draw was from."""
    given, current = prediction(), np.random.default_rng(1).integers(0, 11, (3, 7)).astype(np.int32)
    current[0, 0] = 4
    drawn = draw(given, row_keys(3, 0), suppress=4, current=current, temperature=0.7, top_p=0.9)
    probs = softmax(given.hidden, suppress=4)
    with np.errstate(divide="ignore"):
        log_probs = np.log(probs)
    ordered = np.sort(log_probs, -1)
    np.testing.assert_array_equal(drawn.argmax, probs.argmax(-1))
    np.testing.assert_allclose(drawn.top_log_prob, ordered[..., -1], atol=1e-5)
    np.testing.assert_allclose(drawn.second_log_prob, ordered[..., -2], atol=1e-5)
    np.testing.assert_allclose(drawn.entropy, -(probs * np.where(probs > 0, log_probs, 0)).sum(-1), atol=1e-5)
    for ids, found in ((drawn.sample, drawn.sample_log_prob), (current, drawn.current_log_prob)):
        expected = np.take_along_axis(log_probs, np.asarray(ids)[..., None], -1)[..., 0]
        np.testing.assert_allclose(found, expected, atol=1e-5)
    assert np.isneginf(drawn.current_log_prob[0, 0])
    assert drawn.sample.dtype == drawn.argmax.dtype == jnp.int32 and drawn.entropy.dtype == jnp.float32


def test_temperature_zero_is_the_argmax():
    drawn = draw(prediction(), row_keys(3, 0), suppress=4, temperature=0.0)
    np.testing.assert_array_equal(drawn.sample, drawn.argmax)
    np.testing.assert_array_equal(drawn.sample_log_prob, drawn.top_log_prob)
    assert drawn.current_log_prob is None


def test_the_suppressed_id_is_never_drawn():
    """Even when it is by far the likeliest, at high temperature and for every rule."""
    logits = prediction().hidden.at[..., 4].add(1e4)
    for options in ({}, {"temperature": 0.0}, {"temperature": 100.0}, {"top_p": 0.5}, {"top_k": 2}):
        drawn = draw(Prediction.from_logits(logits), row_keys(3, 0), suppress=4, **options)
        assert (np.asarray(drawn.sample) != 4).all() and (np.asarray(drawn.argmax) != 4).all()
        assert np.isfinite(drawn.sample_log_prob).all() and np.isfinite(drawn.entropy).all()


def test_ids_without_a_column():
    """SMDM: the mask is id V after V columns."""
    current = np.full((3, 7), 11, np.int32)
    drawn = draw(prediction(), row_keys(3, 0), suppress=11, current=current)
    assert np.isneginf(drawn.current_log_prob).all() and (np.asarray(drawn.sample) < 11).all()


def assert_same(first, second):
    """The same ids, bitwise; scores to 1e-6, since XLA may sum a vocabulary in another order."""
    for name, x, y in zip(first._fields, first, second, strict=True):
        assert x.shape == y.shape and x.dtype == y.dtype
        if x.dtype == jnp.int32:
            np.testing.assert_array_equal(x, y, err_msg=name)
        np.testing.assert_allclose(x, y, rtol=1e-6, atol=1e-6, err_msg=name)


@pytest.mark.parametrize("width, chunk", [(None, 1), (16, 3)])  # 3 does not divide 7
def test_chunks_change_nothing(width, chunk):
    given, current = prediction(width=width, columns=700), np.arange(21, dtype=np.int32).reshape(3, 7)
    options = {"suppress": 4, "current": current, "top_p": 0.9}
    whole = jax.jit(lambda g: draw(g, row_keys(3, 0), **options))(given)
    pieces = jax.jit(lambda g: draw(g, row_keys(3, 0), chunk=chunk, **options))(given)
    assert_same(whole, pieces)


def test_rows_do_not_see_their_batch():
    """Row 2 alone, with its own key, is row 2 of the batch."""
    given, keys, current = prediction(columns=700), row_keys(3, 0), jnp.ones((3, 7), jnp.int32)
    together = jax.jit(lambda g: draw(g, keys, suppress=4, current=current))(given)
    alone = jax.jit(lambda g: draw(g, keys[2:], suppress=4, current=current[2:]))(Prediction(given.hidden[2:], Head()))
    assert_same(jax.tree.map(lambda x: x[2:], together), alone)


def test_positions_have_keys_of_their_own():
    """The same logits and key everywhere in a row, yet independent draws; another key, other draws."""
    flat = Prediction.from_logits(jnp.zeros((2, 4000, 11)))
    key = row_keys(1, 0)
    sample = np.asarray(draw(flat, jnp.concatenate([key, row_keys(1, 1)]), suppress=None).sample)
    pairs = sample[0, ::2] * 11 + sample[0, 1::2]
    assert_law(pairs, np.full(121, 1 / 121))
    assert (sample[0] == sample[1]).mean() < 0.2


def test_no_gradient_flows():
    def scores(given):
        drawn = draw(given, row_keys(3, 0), suppress=4)
        return (drawn.sample_log_prob + drawn.top_log_prob + drawn.entropy).sum()

    assert all((np.asarray(slope) == 0).all() for slope in jax.tree.leaves(jax.grad(scores)(prediction(width=4))))


def test_impossible_chunks_are_refused():
    with pytest.raises(ValueError, match="chunk=0"):
        draw(prediction(), row_keys(3, 0), suppress=None, chunk=0)
