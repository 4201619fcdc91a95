"""The process' contracts: masks, endpoints, float32 at both ends, rows that do not see their batch, refusals."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mdlm_jax.core import keys, posterior
from mdlm_jax.core.gidd import GiddProcess
from mdlm_jax.core.process import Process
from mdlm_jax.core.schedules import Cosine, Geometric, Linear, Polynomial
from tests.core.support import assert_close, row_keys

MIXED = Process(5, 2, 0.5, Linear(1e-3))
EACH = [
    Process(5, 2, 0.0, Linear(1e-3)),
    MIXED,
    Process(5, 2, 0.5, Cosine(1e-3), uniform_hits_mask=False),
    Process(4, None, 1.0, Polynomial(1e-3)),
    GiddProcess(5, 2, p_uniform=0.3),
]
ROWS, LENGTH = 6, 8


def batch(process, seed=0):
    """tokens, sample, log p(token), s, t: random, with every id."""
    rng = np.random.default_rng(seed)
    tokens, sample = rng.integers(0, process.vocab_size, (2, ROWS, LENGTH)).astype(np.int32)
    log_prob = np.log(rng.uniform(0.01, 1.0, (ROWS, LENGTH))).astype(np.float32)
    t = rng.uniform(0.5, 1.0, ROWS).astype(np.float32)
    return tokens, sample, log_prob, (t * 0.6).astype(np.float32), t


def moves(process, own, tokens, sample, log_prob, s, t, noise_mask=None):
    """All that draws: corrupt, reverse step, final step."""
    given = {"sample": sample, "current_log_prob": log_prob, "noise_mask": noise_mask}
    return (
        process.corrupt(own, tokens, t, noise_mask),
        process.reverse_step(own, tokens, s, t, **given),
        process.final_step(own, tokens, t, **given),
    )


each = pytest.mark.parametrize("process", EACH, ids=repr)


def test_rows_do_not_see_their_batch():
    """Row i's draws come from key i alone: bitwise the same by itself, and for time [B] and the same time [B, L]."""
    tokens, sample, log_prob, s, t = batch(MIXED)
    own = row_keys(ROWS, 1)
    together = moves(MIXED, own, tokens, sample, log_prob, s, t)
    one = slice(3, 4)
    alone = moves(MIXED, own[one], tokens[one], sample[one], log_prob[one], s[one], t[one])
    spread = (np.broadcast_to(x[:, None], tokens.shape) for x in (s, t))
    everywhere = moves(MIXED, own, tokens, sample, log_prob, *spread)
    for whole, single, wide in zip(together, alone, everywhere, strict=True):
        np.testing.assert_array_equal(whole[one], single)
        np.testing.assert_array_equal(whole, wide)
    np.testing.assert_array_equal(MIXED.prior(own, LENGTH)[one], MIXED.prior(own[one], LENGTH))


def test_row_keys_belong_to_the_row():
    """Microbatches and hosts that hold rows 2..3 of a batch of 4 get those rows' keys."""
    made = (keys.row_keys(jax.random.key(1), jnp.asarray(rows)) for rows in ([0, 1, 2, 3], [2, 3]))
    whole, part = map(jax.random.key_data, made)
    np.testing.assert_array_equal(whole[2:], part)
    assert len(np.unique(whole, axis=0)) == 4


def test_noise_mask():
    """Nothing moves outside it, and inside it nothing changes."""
    arrays, own = batch(MIXED), row_keys(ROWS, 1)
    mask = np.random.default_rng(2).random((ROWS, LENGTH)) < 0.5
    for free, held in zip(moves(MIXED, own, *arrays), moves(MIXED, own, *arrays, noise_mask=mask), strict=True):
        np.testing.assert_array_equal(held, np.where(mask, free, arrays[0]))
        assert (np.asarray(free) != arrays[0])[~mask].any() and (np.asarray(held) != arrays[0])[mask].any()


@each
def test_endpoints(process):
    """No noise at t = 0; at t = 1 without eps nothing is left of the clean token; a step to s = 0 denoises."""
    tokens, sample, log_prob, _, _ = batch(process)
    zero, one = jnp.zeros(ROWS), jnp.ones(ROWS)
    masses = process.masses(jnp.asarray([0.0, 1.0]))
    assert_close(masses.keep[:, 0], [1.0, process.schedule.eps_noise], 1e-6)
    assert_close(masses.keep + masses.uniform + masses.mask, np.ones((2, 1)), 1e-6)
    assert float(masses.noise[0, 0]) == 0.0
    np.testing.assert_array_equal(process.corrupt(row_keys(ROWS, 0), tokens, zero), tokens)
    keep = process.jump_probability(tokens, zero, zero + 0.5, log_prob)
    assert_close(keep, process.noise_probability(tokens, zero + 0.5, log_prob), 1e-6)
    stepped = process.reverse_step(row_keys(ROWS, 0), tokens, zero, one, sample=sample, current_log_prob=log_prob)
    changed = np.asarray(stepped) != tokens
    np.testing.assert_array_equal(np.asarray(stepped)[changed], sample[changed])
    assert (np.asarray(stepped)[tokens == process.mask_id] == sample[tokens == process.mask_id]).all()


@each
def test_a_step_of_no_length_moves_nothing(process):
    tokens, sample, log_prob, _, t = batch(process)
    stepped = process.reverse_step(row_keys(ROWS, 0), tokens, t, t, sample=sample, current_log_prob=log_prob)
    np.testing.assert_array_equal(stepped, tokens)


@pytest.mark.parametrize("schedule", [Linear(1e-3), Cosine(1e-3), Polynomial(1e-3), Geometric(1e-3, 20.0)], ids=repr)
@pytest.mark.parametrize("mixing", [0.0, 1e-6, 0.1, 1.0])
def test_float32_at_both_ends(schedule, mixing):
    """Scalars of the process near t = 0 and t = 1 for a real vocabulary, against float64 at the same float32 times.

    1e-5 relative; what a step adds to a share, to 1e-3 of itself and 2e-6 of the share.
    """
    process = Process(50_000, 7, mixing, schedule)
    t = np.asarray([1e-6, 2e-5, 1e-3, 1 - 2.0**-10, 1 - 2.0**-17, 1 - 2.0**-20], np.float32)
    s = (t - np.float32(2.0**-12) * t).astype(np.float32)
    tokens = np.tile(np.asarray([[7, 3]], np.int32), (len(t), 1))

    def scalars(dtype):
        times, before = jnp.asarray(t, dtype), jnp.asarray(s, dtype)
        own = jnp.tile(jnp.asarray([[-jnp.inf, -30.0]], dtype), (len(t), 1))
        shares = (*process.masses(times), process.noise_probability(tokens, times, own))
        steps = (*process.transition(before, times), process.jump_probability(tokens, before, times, own))
        return [[np.asarray(x, np.float64) for x in part] for part in (shares, steps, process.inflow(times))]

    shares, steps, inflow = scalars(np.float32)
    with jax.enable_x64(True):
        true_shares, true_steps, true_inflow = scalars(np.float64)
    for ours, truth in zip(shares + inflow, true_shares + true_inflow, strict=True):
        np.testing.assert_allclose(ours, truth, rtol=1e-5)
    for ours, truth, share in zip(steps, true_steps, true_shares, strict=True):
        assert (np.abs(ours - truth) <= 1e-3 * truth + 2e-6 * share).all()


def test_head_without_a_column_for_the_mask():
    """SMDM: mask id = V after V columns; probabilities are padded, columns before the mask untouched."""
    process = Process(6, 5, 0.0, head_size=5)
    assert process.num_columns == 5 and Process(6, 5).num_columns == 6
    logits = np.random.default_rng(0).normal(size=(2, 3, 5)).astype(np.float32)
    probs = np.asarray(posterior.clean_probs(process, logits))
    assert probs.shape == (2, 3, 6) and (probs[..., 5] == 0).all()
    np.testing.assert_allclose(probs[..., :5], jax.nn.softmax(logits, axis=-1), rtol=1e-6)


@pytest.mark.parametrize(
    "arguments, message",
    [
        ((5, 2, -0.1), "mixing=-0.1"),
        ((5, 2, 1.1), "mixing=1.1"),
        ((5, 5), "mask_id=5"),
        ((5, -1), "mask_id=-1"),
        ((5, None, 0.5), "mixing=0.5 without a mask"),
        ((1, 0), "vocab_size=1"),
        ((5, 2, 0.0, Linear(), True, 6), "head_size=6"),
    ],
)
def test_impossible_processes_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        Process(*arguments)


def test_times_of_a_wrong_shape_are_refused():
    with pytest.raises(ValueError, match=r"\(\).*\[B\] or \[B, L\]"):
        MIXED.masses(jnp.asarray(0.5))
