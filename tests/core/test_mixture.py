"""The reduction of a mixture of products against the laws written out."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import log_softmax, logsumexp

from mdlm_jax.core import mixture
from mdlm_jax.core.prediction import Head, Prediction

B, M, L, D, V, MASK = 2, 3, 5, 4, 6, 5
_RNG = np.random.default_rng(0)
HIDDEN, OTHER = (_RNG.normal(size=(rows, L, D)).astype(np.float32) for rows in (B * M, B))
KERNEL, BIAS, OF_TEACHER = (_RNG.normal(size=shape).astype(np.float32) for shape in ((D, V), (V,), (D, V)))
TOKENS = _RNG.integers(0, V - 1, (2, B, L)).astype(np.int32)


def reduced(hidden=HIDDEN, kernel=KERNEL, suppress=MASK, chunk=None, tokens=TOKENS):
    student = Prediction(jnp.asarray(hidden), Head(jnp.asarray(kernel), jnp.asarray(BIAS)))
    teacher = Prediction(jnp.asarray(OTHER), Head(jnp.asarray(OF_TEACHER)))
    return mixture.reduce(student, jnp.asarray(tokens), teacher, suppress=suppress, chunk=chunk)


def laws(suppress=MASK):
    """log p_m [B, M, L, V] and the teacher's [B, L, V], float64."""
    student = (HIDDEN.astype(float) @ KERNEL + BIAS).reshape(B, M, L, V)
    teacher = OTHER.astype(float) @ OF_TEACHER
    if suppress is not None:
        student[..., suppress] = teacher[..., suppress] = -np.inf
    return log_softmax(student, -1), log_softmax(teacher, -1)


def divergence(log_p, log_q):
    log_p, log_q = np.maximum(log_p, -1e3), np.maximum(log_q, -1e3)
    return (np.exp(log_p) * (log_p - log_q)).sum(-1)


@pytest.mark.parametrize("chunk", [None, 2])
@pytest.mark.parametrize("suppress", [MASK, None])
def test_it_is_the_direct_form(suppress, chunk):
    found, (log_p, log_teacher) = reduced(suppress=suppress, chunk=chunk), laws(suppress)
    for ids, chosen in zip(TOKENS, found.chosen, strict=True):
        expected = np.take_along_axis(log_p, np.broadcast_to(ids[:, None, :, None], (B, M, L, 1)), -1)[..., 0]
        np.testing.assert_allclose(chosen, expected, rtol=1e-5, atol=1e-5)
    apart = divergence(log_teacher[:, None], log_p).mean(1)
    np.testing.assert_allclose(found.apart, apart, rtol=1e-4, atol=1e-5)
    together = divergence(log_teacher, logsumexp(log_p, 1) - np.log(M))
    np.testing.assert_allclose(found.together, together, rtol=1e-4, atol=1e-5)
    assert (np.asarray(found.together) <= np.asarray(found.apart) + 1e-6).all()


def test_the_suppressed_id_and_ids_without_a_column_cannot_be_chosen():
    found = reduced(tokens=np.stack([np.full((B, L), MASK), np.full((B, L), V + 3)]).astype(np.int32))
    assert np.isneginf(found.chosen).all()


@pytest.mark.parametrize("chunk", [None, 2, 4])
def test_the_gradient_is_that_of_the_direct_form(chunk):
    weights = jnp.asarray(np.random.default_rng(1).normal(size=(4, B, L)).astype(np.float32))

    def loss(hidden, kernel, found):
        data, own = (mixture.correlation(each) for each in found(hidden, kernel).chosen)
        terms = data, own, found(hidden, kernel).apart, found(hidden, kernel).together
        return sum((w * term).sum() for w, term in zip(weights, terms, strict=True))

    def direct(hidden, kernel):
        logits = (hidden @ kernel + BIAS)[..., :MASK].reshape(B, M, L, MASK)
        log_p, log_r = jax.nn.log_softmax(logits), jax.nn.log_softmax((OTHER @ OF_TEACHER)[..., :MASK])
        ids = jnp.broadcast_to(TOKENS[:, :, None, :, None], (2, B, M, L, 1))
        chosen = jnp.take_along_axis(log_p[None], ids, -1)[..., 0]
        mixed = jnp.log(jnp.exp(log_p).mean(1))
        return mixture.Mixed(chosen, (jnp.exp(log_r) * (log_r - log_p.mean(1))).sum(-1),
                             (jnp.exp(log_r) * (log_r - mixed)).sum(-1))

    found = jax.grad(loss, (0, 1))(HIDDEN, KERNEL, lambda h, k: reduced(h, k, chunk=chunk))
    expected = jax.grad(loss, (0, 1))(jnp.asarray(HIDDEN), jnp.asarray(KERNEL), direct)
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-3, atol=1e-5)


def test_the_teacher_takes_no_gradient():
    def loss(other):
        student = Prediction(jnp.asarray(HIDDEN), Head(jnp.asarray(KERNEL)))
        found = mixture.reduce(student, TOKENS, Prediction(other, Head(jnp.asarray(OF_TEACHER))), suppress=MASK)
        return (found.apart + found.together).sum()

    assert not np.asarray(jax.grad(loss)(jnp.asarray(OTHER))).any()


def test_tokens_one_after_another_are_the_mixtures_law_by_the_chain_rule():
    """Over all rows of two positions: log p(x) in all, and each share the law of a token given those before."""
    log_p = log_softmax(np.random.default_rng(2).normal(size=(M, 2, 3)) * 2, -1)
    every = np.array(list(itertools.product(range(3), repeat=2)))
    chosen = log_p[:, np.arange(2), every].transpose(1, 0, 2)  # [9, M, 2]
    shares = np.asarray(mixture.one_after_another(jnp.asarray(chosen)))
    law = np.exp(log_p[:, 0, :, None] + log_p[:, 1, None, :]).mean(0)
    np.testing.assert_allclose(shares.sum(1), np.log(law.reshape(-1)), rtol=1e-5)
    np.testing.assert_allclose(shares[:, 0], np.log(law.sum(1)[every[:, 0]]), rtol=1e-4, atol=1e-6)
    marginal = np.log(law.sum(1)[every[:, 0]]) + np.log(law.sum(0)[every[:, 1]])
    gained = np.asarray(mixture.correlation(jnp.asarray(chosen))).sum(1)
    np.testing.assert_allclose(gained, np.log(law.reshape(-1)) - marginal, rtol=1e-3, atol=1e-5)


def test_one_product_has_no_correlations():
    chosen = jnp.asarray(np.random.default_rng(3).normal(size=(4, 1, 7)).astype(np.float32))
    np.testing.assert_allclose(mixture.correlation(chosen), 0.0, atol=1e-5)


def test_the_control_variate_changes_no_mean_and_takes_variance_away():
    """E_r[-log p(x)] = E_r[sum_i log p_i(x_i) - log p(x)] + sum_i (KL(r_i || p_i) + H(r_i)), whatever r, of gradients
    too: here r is a mixture of its own, and p is near the product of r's marginals, as at the start of training."""
    rng = np.random.default_rng(4)
    every = np.array(list(itertools.product(range(3), repeat=3)))

    def law_of(log_p):  # [M, 3, 3] -> [27]
        return jnp.exp(log_p[:, jnp.arange(3), every].sum(-1)).mean(0)

    r = np.asarray(law_of(jax.nn.log_softmax(jnp.asarray(rng.normal(size=(2, 3, 3)) * 2))), np.float64)
    marginals = np.stack([[r[every[:, i] == v].sum() for v in range(3)] for i in range(3)])
    logits = np.log(marginals)[None] + 0.3 * rng.normal(size=(4, 3, 3))

    def plain(logits):
        log_p = jax.nn.log_softmax(logits)
        return -mixture.one_after_another(log_p[:, jnp.arange(3), every].transpose(1, 0, 2)).sum(1)

    def varied(logits):
        log_p = jax.nn.log_softmax(logits)
        return -mixture.correlation(log_p[:, jnp.arange(3), every].transpose(1, 0, 2)).sum(1)

    def analytic(logits):
        return -(marginals * mixture.mean_exp(jax.nn.log_softmax(logits), 0)).sum()

    logits = jnp.asarray(logits)
    assert float(r @ plain(logits)) == pytest.approx(float(r @ varied(logits) + analytic(logits)), rel=1e-5)
    slopes = [np.asarray(jax.jacobian(loss)(logits)).reshape(27, -1) for loss in (plain, varied)]
    fixed = np.asarray(jax.grad(analytic)(logits)).reshape(-1)
    np.testing.assert_allclose(r @ slopes[0], r @ slopes[1] + fixed, atol=1e-5)
    variance = [(r @ (slope - r @ slope) ** 2).sum() for slope in slopes]
    assert variance[1] < 0.25 * variance[0]
