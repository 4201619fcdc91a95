"""Acceptance tests of exact sampling: the laws that low-precision draws break, and that ours must keep.

One position of the reverse chain of the masked process is simulated with a fixed prediction p, linear schedule and N
steps: at k steps from the end a mask is lifted with probability r = 1/k. CI runs a small size, `slow` a large one.
(Unigram entropy, which must be logged beside generative perplexity, is tested in tests/evaluation/test_entropy.py.)
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from mdlm_jax.core.categorical import bernoulli, categorical, gumbel
from tests.marks import slow_unless

V = 2048
FLAT = np.full(V, 1 / V)
ZIPF = 1 / np.arange(1, V + 1) / np.sum(1 / np.arange(1, V + 1))
CONFIDENT = np.append(0.9, np.full(V - 1, 0.1 / (V - 1)))
PREDICTIONS = {"flat": FLAT, "zipf": ZIPF, "confident": CONFIDENT}
slow = pytest.mark.slow


def entropy(probs):
    return -np.sum(probs * np.log(probs))


def estimated_entropy(tokens):
    """Of the law behind iid tokens: plug-in plus the Miller-Madow correction (classes seen - 1) / (2 n)."""
    counts = np.bincount(tokens)
    counts = counts[counts > 0]
    return entropy(counts / counts.sum()) + (len(counts) - 1) / (2 * counts.sum())


def chi2_p_value(counts, probs):
    expected = probs * counts.sum()
    assert expected.min() > 5
    return stats.chi2.sf(((counts - expected) ** 2 / expected).sum(), len(probs) - 1)


def draws_from(log_probs, keys):
    """One exact draw a key from the same law, in batches that bound the memory."""
    logits = jnp.asarray(log_probs, jnp.float32)
    return jax.lax.map(lambda key: categorical(key, logits), keys, batch_size=2**13)


@functools.partial(jax.jit, static_argnums=(2, 3))
def chain(key, log_probs, steps, chains):
    """Runs the factorised reverse step. Returns tokens [chains], the number of masks before each step, and whether
    the masks lifted in each step had room."""
    room = int(chains / steps + 7 * np.sqrt(chains / steps))

    def step(tokens, remaining):
        key_step = jax.random.fold_in(key, remaining)
        masked = tokens < 0
        lift = masked & bernoulli(jax.random.fold_in(key_step, 0), 1 / remaining.astype(jnp.float32), (chains,))
        where = jnp.nonzero(lift, size=room, fill_value=chains)[0]
        keys = jax.random.split(jax.random.fold_in(key_step, 1), room)
        return tokens.at[where].set(draws_from(log_probs, keys), mode="drop"), (jnp.sum(masked), jnp.sum(lift))

    start = jnp.full((chains,), -1, jnp.int32)
    tokens, (masked, lifted) = jax.lax.scan(step, start, jnp.arange(steps, 0, -1))
    return tokens, masked, jnp.max(lifted) <= room


@functools.cache
def run_chain(prediction, steps, chains):
    """Tokens and how many chains are masked at t = 1/2."""
    key = jax.random.fold_in(jax.random.key(steps), list(PREDICTIONS).index(prediction))
    tokens, masked, fitted = chain(key, np.log(PREDICTIONS[prediction]), steps, chains)
    assert fitted
    tokens = np.asarray(tokens)
    assert tokens.min() >= 0 and tokens.max() < V
    return tokens, int(masked[steps // 2])


@pytest.mark.parametrize(("draws", "thresholds"), [(2**24, (8, 10, 12)), pytest.param(10**8, (10, 12, 14), marks=slow)])
def test_1_gumbel_tail(draws, thresholds):
    """P(G > g) = 1 - exp(-exp(-g)) within 3 sigma; the default of jax.random cannot exceed 15.943."""
    size = 2**22

    @jax.jit
    def tail(key):
        sample = gumbel(key, (size,))
        return jnp.stack([jnp.sum(sample > g) for g in thresholds]), jnp.max(sample)

    rounds = -(-draws // size)
    hits, peaks = zip(*(tail(jax.random.fold_in(jax.random.key(0), i)) for i in range(rounds)), strict=True)
    expected = rounds * size * -np.expm1(-np.exp(-np.array(thresholds, float)))
    np.testing.assert_array_less(np.abs(np.sum(hits, axis=0) - expected), 3 * np.sqrt(expected))
    if draws >= 10**8:
        assert np.max(peaks) > 16.0


@pytest.mark.parametrize(("draws", "seeds"), [(2**16, 1), pytest.param(10**6, 6, marks=slow)])
@pytest.mark.parametrize("classes", [64, 1024])
def test_2_chi_square(draws, seeds, classes):
    """64 classes at once, and 1024 (two levels) counted in 64 strided groups; mean over seeds of chi2 at 63 dof."""
    probs = 1 / np.arange(1, classes + 1)
    probs /= probs.sum()
    groups = np.bincount(np.arange(classes) % 64, probs)
    values = []
    for seed in range(seeds):
        keys = jax.random.split(jax.random.key(seed), draws)
        tokens = np.asarray(jax.jit(draws_from)(np.log(probs), keys))
        expected = groups * draws
        values.append(np.sum((np.bincount(tokens % 64, minlength=64) - expected) ** 2 / expected))
    assert stats.chi2.sf(np.sum(values), 63 * seeds) > 1e-3


CASES_3 = slow_unless([("zipf", n, 2**17) for n in (32, 128, 512, 1024)], ("zipf", 32, 2**17), ("zipf", 512, 2**17))
CASES_3 += [pytest.param(p, n, 2**19, marks=slow) for p in PREDICTIONS for n in (32, 128, 512, 1024)]


@pytest.mark.parametrize(("prediction", "steps", "chains"), CASES_3)
def test_3_entropy_does_not_depend_on_the_number_of_steps(prediction, steps, chains):
    """Within 0.02 nats of the truth for every N. Standard error: 0.0065 in CI, 0.004 or less in `slow`."""
    tokens, _ = run_chain(prediction, steps, chains)
    probs = PREDICTIONS[prediction]
    spread = np.sqrt(np.sum(probs * (np.log(probs) + entropy(probs)) ** 2) / chains)
    assert spread < 0.02 / 3
    assert abs(estimated_entropy(tokens) - entropy(probs)) < 0.02
    groups = np.arange(V) // 64
    assert chi2_p_value(np.bincount(groups[tokens], minlength=32), np.bincount(groups, probs)) > 1e-3


CASES_4 = [("flat", 128, 2**16), ("confident", 128, 2**16), ("zipf", 512, 2**17)]
CASES_4 += [pytest.param(p, n, 2**19, marks=slow) for p in PREDICTIONS for n in (32, 128, 512, 1024)]


@pytest.mark.parametrize(("prediction", "steps", "chains"), CASES_4)
def test_4_half_the_positions_are_masked_at_half_time(prediction, steps, chains):
    """However flat or peaked the prediction: no covert confidence order."""
    _, masked = run_chain(prediction, steps, chains)
    assert abs(masked / chains - 0.5) < 3 * 0.5 / np.sqrt(chains)


@pytest.mark.parametrize("draws", [2**16, pytest.param(2**21, marks=slow)])
def test_5_factorised_and_joint_steps_agree(draws):
    """r = 1/16, Zipf(1): both against the exact law of (token or mask), and against each other."""
    rate = 1 / 16
    joint_log_probs = np.log(np.append(rate * ZIPF, 1 - rate))

    @jax.jit
    def factorised(key):
        lift = bernoulli(jax.random.fold_in(key, 0), rate, (draws,))
        tokens = draws_from(np.log(ZIPF), jax.random.split(jax.random.fold_in(key, 1), draws))
        return jnp.where(lift, tokens, V)

    groups = np.append(np.arange(V) // 64, V // 64)
    probs = np.bincount(groups, np.exp(joint_log_probs))
    apart = factorised(jax.random.key(0))
    joint = jax.jit(draws_from)(joint_log_probs, jax.random.split(jax.random.key(1), draws))
    counts = [np.bincount(groups[np.asarray(results)], minlength=len(probs)) for results in (apart, joint)]
    for count in counts:
        assert chi2_p_value(count, probs) > 1e-3
    assert stats.chi2_contingency(np.array(counts)).pvalue > 1e-3


def test_6_bfloat16_logits_are_drawn_in_float32():
    """A class at e^-8 of the winner: beyond bfloat16 noise, whose Gumbel ends at 4.84, not beyond ours."""
    logits = jnp.append(jnp.zeros(1), jnp.full(255, -8.0)).astype(jnp.bfloat16)
    draws = 2**15
    keys = jax.random.split(jax.random.key(0), draws)
    tokens = np.asarray(jax.jit(jax.vmap(categorical, (0, None)))(keys, logits))
    rare = 255 * np.exp(-8) / (1 + 255 * np.exp(-8))
    assert stats.binomtest(int(np.sum(tokens > 0)), draws, rare).pvalue > 1e-3
    naive = np.asarray(jax.jit(jax.vmap(jax.random.categorical, (0, None)))(keys, logits))
    assert np.mean(naive > 0) < 0.2 * rare  # the fault is real


def default_unmask_ratio(probs, rate, draws):
    """P(unmask) / r of the joint step as `jax.random.categorical` draws it by default."""
    logits = jnp.asarray(np.log(np.append(rate * probs, 1 - rate)), jnp.float32)
    rows = 64

    @jax.jit
    def unmasked(key):
        return jnp.sum(jax.random.categorical(key, logits, shape=(rows,)) < len(probs))

    total = sum(int(unmasked(jax.random.fold_in(jax.random.key(0), i))) for i in range(draws // rows))
    return total / (draws * rate)


def grid_law_unmask_ratio(probs, rate, cell=2.0**-23):
    """The same for exponentials rounded up to multiples of the cell, r << 1: sum_i cell / expm1(cell / (r p_i)) / r."""
    with np.errstate(over="ignore"):
        return np.sum(cell / np.expm1(cell / (rate * probs))) / rate


FAULTS = [
    (np.full(20_000, 1 / 20_000), 14 * 1024),
    pytest.param(1 / np.arange(1, 8193) / np.sum(1 / np.arange(1, 8193)), 400 * 1024, marks=slow),
]


@pytest.mark.slow
@pytest.mark.parametrize(("probs", "draws"), FAULTS, ids=["flat", "zipf"])
def test_the_fault_is_real(probs, draws):
    """First of N = 1024 steps, float32: the default joint draw lifts too few masks, as the grid law says; ours the
    right number. Flat, V = 20000: 0.23 of the nominal rate. Zipf(1), V = 8192: 0.76."""
    rate = 1 / 1024
    law = grid_law_unmask_ratio(probs, rate)
    default = default_unmask_ratio(probs, rate, draws)
    spread = 1 / np.sqrt(draws * rate)
    assert law < 0.8 and default < 1 - 1.8 * spread
    assert abs(default - law) < 3 * np.sqrt(law) * spread
    keys = jax.random.split(jax.random.key(1), 200_000)
    tokens = np.asarray(jax.jit(draws_from)(np.log(np.append(rate * probs, 1 - rate)), keys))
    assert stats.binomtest(int(np.sum(tokens < len(probs))), 200_000, rate).pvalue > 1e-3
