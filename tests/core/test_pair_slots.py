"""Half-size heads: gathering the masked positions of a pair, putting results back, and gradients through both."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mdlm_jax.core import counts, levels
from mdlm_jax.core.keys import row_keys
from mdlm_jax.core.levels import Cosine, Fixed, Uniform
from mdlm_jax.core.prediction import Head, Prediction
from mdlm_jax.core.reduction import reduce
from mdlm_jax.core.weights import Elbo, Power

ROWS, LENGTH, WIDTH, VOCAB = 6, 7, 5, 11


def drawn(law=Uniform(), **options):  # noqa: B008 (frozen)
    """An antithetic draw with rows of unequal length; the last row has nothing to mask."""
    mask = jnp.arange(LENGTH) < jnp.asarray([7, 7, 7, 4, 1, 0])[:, None]
    u = levels.unit_levels(jax.random.key(3), ROWS, "antithetic")
    draw = counts.draw_counts(row_keys(jax.random.key(4), jnp.arange(ROWS)), u, mask, law, **options)
    return draw, counts.num_slots(LENGTH, law)


def plain_gather(x, masked, slots):
    """Slot by slot in numpy: the masked positions of a pair in order, then (unused) zeros."""
    x, masked = np.asarray(x), np.asarray(masked)
    found = np.zeros((ROWS // 2, slots, *x.shape[2:]), x.dtype)
    for pair in range(ROWS // 2):
        places = [(row, i) for row in (2 * pair, 2 * pair + 1) for i in range(LENGTH) if masked[row, i]]
        for slot, place in enumerate(places):
            found[pair, slot] = x[place]
    return found


@pytest.mark.parametrize("law", [Uniform(), Cosine()], ids=str)
def test_gather_reads_the_masked_positions_in_order(law):
    draw, slots = drawn(law)
    made = counts.pair_slots(draw.masked, slots)
    np.testing.assert_array_equal(np.asarray(made.used.sum(-1)), np.asarray(draw.count).reshape(-1, 2).sum(-1))
    for x in (jax.random.normal(jax.random.key(0), (ROWS, LENGTH, WIDTH)), jnp.arange(ROWS * LENGTH).reshape(ROWS, -1)):
        found = np.asarray(counts.gather_pairs(x, made))
        used = np.asarray(made.used).reshape(*made.used.shape, *[1] * (x.ndim - 2))
        np.testing.assert_array_equal(np.where(used, found, 0), plain_gather(x, draw.masked, slots))


def test_scatter_undoes_gather_and_leaves_zeros_elsewhere():
    draw, slots = drawn()
    made = counts.pair_slots(draw.masked, slots)
    x = jax.random.normal(jax.random.key(0), (ROWS, LENGTH, WIDTH))
    back = counts.scatter_pairs(counts.gather_pairs(x, made), made, ROWS)
    np.testing.assert_array_equal(np.asarray(back), np.where(np.asarray(draw.masked)[..., None], np.asarray(x), 0))


def test_gradient_of_gather_is_that_of_plain_indexing():
    draw, slots = drawn()
    made = counts.pair_slots(draw.masked, slots)
    x = jax.random.normal(jax.random.key(0), (ROWS, LENGTH, WIDTH))
    weight = jax.random.normal(jax.random.key(1), (ROWS // 2, slots, WIDTH)) * made.used[..., None]

    def plain(x):
        pairs = x.reshape(ROWS // 2, 2 * LENGTH, WIDTH)
        return (pairs[jnp.arange(ROWS // 2)[:, None], made.source] ** 2 * weight).sum()

    ours = jax.grad(lambda x: (counts.gather_pairs(x, made) ** 2 * weight).sum())(x)
    np.testing.assert_allclose(np.asarray(ours), np.asarray(jax.grad(plain)(x)), rtol=1e-6)
    assert (np.asarray(ours)[~np.asarray(draw.masked)] == 0).all()


def test_gradient_through_scatter():
    draw, slots = drawn()
    made = counts.pair_slots(draw.masked, slots)
    weight = jax.random.normal(jax.random.key(1), (ROWS, LENGTH))
    grad = jax.grad(lambda v: (counts.scatter_pairs(v, made, ROWS) * weight).sum())(jnp.ones((ROWS // 2, slots)))
    np.testing.assert_allclose(np.asarray(grad), plain_gather(weight, draw.masked, slots), rtol=1e-6)


@pytest.mark.parametrize("complementary", [False, True])
@pytest.mark.parametrize("law", [Uniform(), Cosine(), Fixed(0.4)], ids=str)
def test_half_head_gives_the_loss_and_gradients_of_the_full_head(law, complementary):
    draw, slots = drawn(law, complementary=complementary, weighting=Power(0.0) if isinstance(law, Fixed) else Elbo())
    tokens = jax.random.randint(jax.random.key(5), (ROWS, LENGTH), 0, VOCAB - 1)
    hidden = jax.random.normal(jax.random.key(6), (ROWS, LENGTH, WIDTH))
    kernel = jax.random.normal(jax.random.key(7), (WIDTH, VOCAB))

    def loss(hidden, kernel, half):
        prediction, target = Prediction(hidden, Head(kernel)), tokens
        if half:
            made = counts.pair_slots(draw.masked, slots)
            prediction = Prediction(counts.gather_pairs(hidden, made), prediction.head)
            target = counts.gather_pairs(tokens, made)
        log_prob = reduce(prediction, suppress=VOCAB - 1, target=target).target
        if half:
            log_prob = counts.scatter_pairs(log_prob, made, ROWS)
        return jnp.where(draw.masked, -draw.weight[:, None] * log_prob, 0.0).sum()

    run = jax.jit(jax.value_and_grad(loss, argnums=(0, 1)), static_argnums=2)
    full, grads = run(hidden, kernel, False)
    half, half_grads = run(hidden, kernel, True)
    assert float(full) > 0
    np.testing.assert_allclose(float(half), float(full), rtol=1e-6)
    for ours, reference in zip(half_grads, grads, strict=True):
        np.testing.assert_allclose(np.asarray(ours), np.asarray(reference), rtol=1e-5, atol=1e-6)


def test_number_of_slots():
    assert [counts.num_slots(length, Uniform()) for length in (1, 2, 3, 256, 4096)] == [2, 3, 4, 257, 4097]
    assert counts.num_slots(100, Cosine()) == 143  # ceil(100 sqrt 2) + 1
    assert counts.num_slots(100, Fixed(0.15)) == 31
    assert counts.num_slots(10, Uniform(0.3, 0.8)) == 12
    assert counts.num_slots(3, Fixed(1.0)) == 6  # never more than there are
