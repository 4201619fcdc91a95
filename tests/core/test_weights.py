"""Weightings: their formulas, and the loss they make of every count and every subset of a tiny row, by enumeration."""

import functools
import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mdlm_jax.core import counts, losses, schedules, weights
from mdlm_jax.core.levels import Cosine, Fixed, Uniform
from mdlm_jax.core.process import Process
from mdlm_jax.core.weights import Clipped, Custom, Elbo, Power
from tests.core.support import reduced
from tests.marks import slow_unless


def hump(level):
    return 4 * level * (1 - level) + 0.25


FORMULAS = {
    Power(0.0): lambda level: np.ones_like(level),
    Power(0.5): lambda level: 1 / np.sqrt(level),
    Power(1.0): lambda level: 1 / level,
    Power(-2.0): lambda level: level * level,
    Clipped(3.0): lambda level: np.where(level < 1 / 3, 3.0, 1 / np.maximum(level, 0.1)),
    Custom(hump): hump,
}
def named(weighting) -> str:
    """The same in every process: a function's own name tells where it lies in memory."""
    return "custom" if isinstance(weighting, Custom) else str(weighting)


each = pytest.mark.parametrize("weighting", FORMULAS, ids=named)


# Formulas -------------------------------------------------------------------------------------------------------------


@each
def test_weights_are_their_formulas(weighting):
    level = np.linspace(1e-3, 1.0, 200).reshape(20, 10)
    found = np.asarray(jax.jit(weighting)(jnp.asarray(level, jnp.float32)))
    np.testing.assert_allclose(found, FORMULAS[weighting](level), rtol=2e-6)
    assert not weighting.is_bound and Elbo().is_bound


@pytest.mark.parametrize("weighting", [Power(5.0), Power(-5.0), Clipped(1e30)], ids=str)
def test_weights_are_finite_at_both_ends(weighting):
    level = jnp.asarray([0.0, 1e-38, 1e-7, 1.0], jnp.float32)
    found = np.asarray(weighting(level))
    assert found.dtype == np.float32 and np.isfinite(found).all() and (found > 0).all()
    np.testing.assert_array_equal(found[:2], found[2])
    assert found[3] == 1.0


def test_equal_laws_are_one_static_argument():
    """A custom function is itself and no other; the rest compare by value."""
    assert Power(1) == Power(1.0) and hash(Power(1)) == hash(Power(1.0)) and Power(1.0) != Clipped(1.0)
    assert Custom(hump) == Custom(hump) and hash(Custom(hump)) == hash(Custom(hump))
    assert Custom(hump) != Custom(lambda level: hump(level)) and Custom(hump) != Power(0.0)
    traced = []

    @functools.partial(jax.jit, static_argnums=0)
    def run(weighting, level):
        traced.append(weighting)
        return weighting(level)

    for weighting in (Custom(hump), Custom(hump), Power(1), Power(1.0)):
        run(weighting, jnp.float32(0.5))
    assert traced == [Custom(hump), Power(1.0)]


def test_specs():
    named = {"elbo": Elbo(), "constant": Power(0.0), "power:0.5": Power(0.5), "power:-1": Power(-1.0),
             "clipped:10": Clipped(10.0)}
    assert {spec: weights.from_spec(spec) for spec in named} == named


@pytest.mark.parametrize(("make", "message"), [
    (lambda: Power(5.1), r"power=5.1: must lie in \[-5, 5\]"),
    (lambda: Power(math.nan), "power=nan"),
    (lambda: Clipped(0.0), "maximum=0.0: must be positive"),
    (lambda: Clipped(math.inf), "maximum=inf"),
    (lambda: Custom(3.0), "function=3.0: must take an array"),
    (lambda: Custom(np.sqrt), "function=<ufunc 'sqrt'>: cannot be traced; write it with jax.numpy"),
    (lambda: Custom(lambda level: level if level[0, 0] > 0 else 1.0), "cannot be traced"),
    (lambda: Custom(lambda level: level.sum()), r"gives shape \(\) for levels of shape \(2, 2\); it must be element"),
    (lambda: Custom(lambda level: level - 0.5), "finite and not negative"),
    (lambda: Custom(lambda level: 0 * level + math.nan), "finite and not negative"),
    (lambda: weights.from_spec("sqrt"), "'sqrt': choose one of elbo, constant, power, clipped"),
    (lambda: weights.from_spec("power"), "'power': power takes 1 number"),
    (lambda: weights.from_spec("constant:1"), r"'constant:1': constant takes no number\(s\), not 1"),
    (lambda: weights.from_spec("clipped:1,2"), "clipped takes 1 number"),
    (lambda: weights.from_spec("power:"), "must be numbers"),
    (lambda: weights.check(Elbo(), Fixed(0.15)), "leaves out noise levels, so no weight makes it a bound; .*Power"),
])
def test_what_is_no_weighting_is_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


# The loss of a tiny row, by enumeration -------------------------------------------------------------------------------

LENGTH, SIZE, MASK = 4, 5, 4
TOKENS = np.array([2, 0, 1, 3], np.int32)
SUBSETS = np.array(list(itertools.product([False, True], repeat=LENGTH)))  # [16, 4]: every set of masked positions
LOGITS = 1.5 * np.random.default_rng(0).normal(size=(16, LENGTH, SIZE))  # of a denoiser that sees which are masked
LOG_PROBS = LOGITS[..., :MASK] - np.log(np.exp(LOGITS[..., :MASK]).sum(-1, keepdims=True))
COSTS = (-LOG_PROBS[:, np.arange(LENGTH), TOKENS] * SUBSETS).sum(1)  # [16]: nats of all masked positions


def mean_cost(number, among):
    """The mean over the subsets of ``among`` with ``number`` positions."""
    return COSTS[(SUBSETS.sum(1) == number) & ~(SUBSETS & ~among).any(1)].mean()


LAWS = {  # and P(n of L masked), from the definition n = ceil(L level)
    Uniform(): lambda n, size: 1 / size,
    Cosine(): lambda n, size: 2 / math.pi * (math.asin(n / size) - math.asin((n - 1) / size)),
    Uniform(0.3, 0.8): lambda n, size: max(0.0, min(n / size, 0.8) - max((n - 1) / size, 0.3)) / 0.5,
    Fixed(0.4): lambda n, size: float(n == math.ceil(0.4 * size)),
}


@pytest.mark.parametrize("law", slow_unless(LAWS, Cosine(), Uniform(0.3, 0.8)), ids=str)
@each
def test_the_expected_loss_of_counts(weighting, law):
    """sum_n P(n) w(n / L) E_{subsets of n} CE, of `draw_counts` integrated over u, for rows of four and of three."""
    grid = 1 if isinstance(law, Fixed) else 2000
    u = jnp.asarray((np.arange(grid) + 0.5) / grid, jnp.float32)
    for size in (4, 3):
        among = np.arange(LENGTH) < size
        draw = jax.jit(functools.partial(counts.draw_counts, law=law, weighting=weighting))(
            jax.random.split(jax.random.key(0), grid), u, jnp.broadcast_to(jnp.asarray(among), (grid, LENGTH))
        )
        costs = np.array([0.0] + [mean_cost(n, among) for n in range(1, size + 1)])
        found = (np.asarray(draw.weight, np.float64) * costs[np.asarray(draw.count)]).mean()
        expected = sum(
            LAWS[law](n, size) * FORMULAS[weighting](np.float64(n / size)) * costs[n] for n in range(1, size + 1)
        )
        np.testing.assert_allclose(found, expected, rtol=3e-3)


def test_power_one_of_uniform_counts_is_the_bound():
    mask, u = jnp.ones((64, 9), bool), (jnp.arange(64) + 0.5) / 64
    keys = jax.random.split(jax.random.key(0), 64)
    bound, power = (counts.draw_counts(keys, u, mask, weighting=w) for w in (Elbo(), Power(1.0)))
    np.testing.assert_allclose(np.asarray(power.weight), np.asarray(bound.weight), rtol=1e-6)
    np.testing.assert_array_equal(np.asarray(power.masked), np.asarray(bound.masked))


@functools.partial(jax.jit, static_argnums=(0, 1))
def timed_losses(process, weighting, t):
    """[T, 16] nats of the row under each subset, weighted, at the times t [T]."""
    noisy = jnp.where(jnp.asarray(SUBSETS), MASK, jnp.asarray(TOKENS))
    tokens = jnp.broadcast_to(jnp.asarray(TOKENS), noisy.shape)
    found = reduced(process, jnp.asarray(LOGITS), tokens, noisy)

    def at(time):
        times = jnp.full((16,), time)
        weight = 1.0 if weighting.is_bound else losses.level_weight(process, times, weighting)
        return (weight * losses.nelbo_rate(process, found, tokens, noisy, times)).sum(-1)

    return jax.lax.map(at, t)


def expected_over_time(process, weighting, share):
    """Integral over t of the mean over the subsets, whose positions are masked with chance share(t) each."""
    nodes, quadrature = np.polynomial.legendre.leggauss(60)
    t = (nodes + 1) / 2
    with jax.enable_x64(True):
        each_subset = np.asarray(timed_losses(process, weighting, jnp.asarray(t)))
    chance = np.where(SUBSETS[None], share(t)[:, None, None], 1 - share(t)[:, None, None]).prod(-1)
    return quadrature / 2 @ (each_subset * chance).sum(1), t, quadrature / 2, chance


@pytest.mark.parametrize(("schedule", "share"), [
    (schedules.Linear(1e-3), lambda t: 0.999 * t),
    (schedules.Cosine(0.0), lambda t: 1 - np.cos(np.pi / 2 * t)),
], ids=["linear", "cosine"])
@each
def test_the_expected_loss_over_time(weighting, schedule, share):
    process = Process(SIZE, MASK, 0.0, schedule)
    found, t, quadrature, chance = expected_over_time(process, weighting, share)
    expected = quadrature @ (FORMULAS[weighting](share(t)) * (chance @ COSTS))
    np.testing.assert_allclose(found, expected, rtol=1e-6)


def test_power_one_of_the_linear_schedule_without_eps_is_the_bound():
    process = Process(SIZE, MASK, 0.0, schedules.Linear(0.0))
    power, bound = (expected_over_time(process, w, lambda t: t)[0] for w in (Power(1.0), Elbo()))
    by_count = sum(mean_cost(n, np.ones(LENGTH, bool)) / n for n in range(1, LENGTH + 1))
    np.testing.assert_allclose([power, bound], by_count, rtol=1e-6)


@pytest.mark.parametrize("hits", [True, False])
@pytest.mark.parametrize("mixing", [0.3, 1.0])
def test_with_uniform_noise_a_token_counts_as_likely_as_it_is_noise(mixing, hits):
    """Constant weight: `nelbo_rate` over rate times noise, hence KL / a at the mask, by the V-long definition."""
    process, t = Process(SIZE, MASK, mixing, schedules.Linear(1e-3), hits), 0.6
    with jax.enable_x64(True):
        tokens, noisy = jnp.asarray([TOKENS]), jnp.asarray([[2, 1, 1 if mixing == 1 else MASK, 3]])
        times = jnp.asarray([t])
        offset = losses.softplus_offset(process, times, tokens.shape)
        found = reduced(process, jnp.asarray(LOGITS[:1]), tokens, noisy, offset)
        rate = losses.nelbo_rate(process, found, tokens, noisy, times)
        ours = np.asarray(losses.level_weight(process, times, Power(0.0)) * rate)[0]
    keep, noise = 1 - 0.999 * t, 0.999 * t
    pure = np.full(SIZE, 1 / SIZE) if hits else np.where(np.arange(SIZE) == MASK, 0.0, 1 / (SIZE - 1))
    pure = mixing * pure + (1 - mixing) * (np.arange(SIZE) == MASK)
    theta = np.append(np.exp(LOG_PROBS[0]), np.zeros((LENGTH, 1)), axis=1)
    for place, (x, z) in enumerate(zip(TOKENS, np.asarray(noisy)[0], strict=True)):
        f_x, f_theta = keep * np.eye(SIZE)[x] + noise * pure, keep * theta[place] + noise * pure
        kl = (f_x * np.log(np.where(f_x > 0, f_x / np.where(f_theta > 0, f_theta, 1), 1))).sum()
        ratio = f_x[z] / f_theta[z]
        is_noise = noise * pure[z] / f_x[z]
        np.testing.assert_allclose(ours[place], is_noise * (kl + ratio - math.log(ratio) - 1) / keep, rtol=1e-9)
