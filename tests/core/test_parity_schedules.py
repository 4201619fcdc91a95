"""Schedules against arrays of MDLM's and MD4's code, and what every schedule must satisfy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mdlm_jax.core import levels, schedules
from tests.core.support import Reference, assert_close

MDLM = {
    "loglinear": schedules.Linear(1e-3),
    "cosine": schedules.Cosine(1e-3),
    "cosinesqr": schedules.Cosine(1e-3, power=2.0),
}
SETS = {  # the two sets were made with different sigma ranges
    "diffusion_mdlm": MDLM | {"linear": schedules.LinearSigma(1e-3, 7.0), "geometric": schedules.Geometric(1e-3, 1.0)},
    "mdm_mdlm": MDLM | {"linear": schedules.LinearSigma(0.0, 10.0), "geometric": schedules.Geometric(1e-3, 1.0)},
}
SHIFT = {"eps_noise": 1e-4, "eps_data": 1e-4}
MD4 = {
    "linear": schedules.Linear(**SHIFT),
    "cosine": schedules.CosineMask(**SHIFT),
    "poly2": schedules.Polynomial(**SHIFT),
    "poly0.5": schedules.Polynomial(**SHIFT, power=0.5),
}
EVERY = [*SETS["diffusion_mdlm"].values(), *MD4.values()]


@pytest.fixture(params=[np.float64, np.float32], ids=["float64", "float32"])
def dtype(request):
    with jax.enable_x64(request.param == np.float64):
        yield np.dtype(request.param)


@pytest.mark.parametrize("source", SETS)
@pytest.mark.parametrize("name", SETS["mdm_mdlm"])
def test_mdlm_schedules(dtype, source, name):
    reference, schedule = Reference(source, dtype), SETS[source][name]
    if source == "mdm_mdlm":
        reference.tolerance = 2e-5  # made in float32
    t = jnp.asarray(reference["sched_t"])
    reference.compare(f"sched_{name}_sigma", -jnp.log(schedule.alpha(t)))
    reference.compare(f"sched_{name}_dsigma", schedule.rate(t) / schedule.alpha(t))


@pytest.mark.parametrize("name, sigma_min", [("loglinear", 1e-3), ("linear", 1e-3)])
def test_importance_sampled_times(dtype, name, sigma_min):
    """The reference starts at a sigma (for log-linear at its eps, not at sigma(0) = 0), we at a time."""
    reference = Reference("diffusion_mdlm", dtype)
    schedule = SETS["diffusion_mdlm"][name]
    start = float(schedule.inverse_complement(jnp.asarray(-np.expm1(-sigma_min), dtype)))
    t = schedules.importance_time(schedule, jnp.asarray(reference["sched_t"]), start)
    reference.compare(f"sched_{name}_importance_t", t)


@pytest.mark.parametrize("name", MD4)
def test_md4_schedules(dtype, name):
    reference, schedule = Reference("mdm_md4", dtype), MD4[name]
    reference.tolerance = 5e-4  # made in float32: its 1 - alpha(0) = 1e-4 is 4e-4 off
    t = jnp.asarray(reference["sched_t"])
    alpha, complement, rate = schedule.alpha(t), schedule.complement(t), schedule.rate(t)
    finite = np.isfinite(reference.arrays[f"sched_{name}_dalpha"])  # the square root's rate is infinite at 0
    np.testing.assert_array_equal(finite, np.isfinite(rate))
    reference.compare(f"sched_{name}_alpha", alpha)
    reference.compare(f"sched_{name}_dalpha", -rate, where=finite)
    reference.compare(f"sched_{name}_w", -rate / complement, where=finite)
    reference.compare(f"sched_{name}_logsnr", jnp.log(alpha) - jnp.log(complement))


def test_md4_sampling_grids(dtype):
    """Uniform steps, and the same steps bent by the cosine law of levels."""
    reference = Reference("mdm_md4", dtype)
    reference.tolerance = 1e-6  # the reference's cos(pi/2) is -4.4e-8
    grid = jnp.asarray(1.0 - np.arange(17) / 16, dtype)
    for name, law in (("uniform", levels.Uniform()), ("cosine", levels.Cosine())):
        reference.compare(f"grid_{name}_t", law.quantile(grid[:-1]))
        reference.compare(f"grid_{name}_s", law.quantile(grid[1:]))


# What every schedule must satisfy -------------------------------------------------------------------------------------


@pytest.mark.parametrize("schedule", EVERY, ids=repr)
def test_calculus(schedule):
    """complement = 1 - alpha, rate = -alpha', drop = a difference, inverses invert, all in float64."""
    with jax.enable_x64(True):
        t = jnp.linspace(0.001, 0.999, 401)
        alpha = np.asarray(schedule.alpha(t))
        assert (np.diff(alpha) < 0).all()
        np.testing.assert_allclose(schedule.complement(t), 1 - alpha, atol=1e-15)
        slope = jax.vmap(jax.grad(schedule.alpha))(t)
        np.testing.assert_allclose(schedule.rate(t), -slope, rtol=1e-9)
        np.testing.assert_allclose(schedule.drop(t[:-1], t[1:]), alpha[:-1] - alpha[1:], rtol=1e-9, atol=1e-15)
        np.testing.assert_allclose(schedule.inverse(schedule.alpha(t)), t, atol=1e-9)
        np.testing.assert_allclose(schedule.inverse_complement(schedule.complement(t)), t, atol=1e-9)


@pytest.mark.parametrize("schedule", EVERY, ids=repr)
@pytest.mark.parametrize("end", ["data", "noise"])
def test_float32_is_enough_at_both_ends(schedule, end):
    """Against the same formulas in float64, at times within 1e-2 and 1e-7 of each end, exact in float32.

    Relative to 1e-5; a difference of alphas to 1e-6 of the smaller of alpha and its complement.
    """
    exponents = -np.arange(7.0, 24.0)
    t = (2.0**exponents if end == "data" else 1.0 - 2.0**exponents).astype(np.float32)
    s = (t / 2).astype(np.float32)

    def everything(s, t):
        s, t = jnp.asarray(s), jnp.asarray(t)
        return schedule.alpha(t), schedule.complement(t), schedule.rate(t), schedule.drop(s, t)

    *narrow, drop = everything(s, t)
    with jax.enable_x64(True):
        *wide, true_drop = everything(s.astype(np.float64), t.astype(np.float64))
        size = np.asarray(jnp.minimum(wide[1], schedule.alpha(jnp.asarray(s.astype(np.float64)))))
    for name, ours, truth in zip(("alpha", "complement", "rate"), narrow, wide, strict=True):
        assert ours.dtype == np.float32
        np.testing.assert_allclose(np.asarray(ours, np.float64), truth, rtol=1e-5, err_msg=name)
    assert (np.abs(np.asarray(drop, np.float64) - np.asarray(true_drop)) <= 1e-6 * size).all()


@pytest.mark.parametrize("schedule", EVERY, ids=repr)
def test_ends(schedule):
    t = jnp.asarray([0.0, 1.0], jnp.float32)
    alpha, complement = np.asarray(schedule.alpha(t)), np.asarray(schedule.complement(t))
    assert np.isfinite(alpha).all() and np.isfinite(complement).all()
    np.testing.assert_allclose(alpha + complement, 1.0, atol=1e-6)
    assert (alpha >= 0).all() and (complement >= 0).all()
    if not isinstance(schedule, schedules.LinearSigma | schedules.Geometric):
        assert_close(alpha, [1 - schedule.eps_data, schedule.eps_noise], 1e-7)
        assert_close(complement, [schedule.eps_data, 1 - schedule.eps_noise], 1e-7)


def test_importance_time_flattens_the_weight():
    """With t from `importance_time` the masked weight times dt/du is the constant log range."""
    with jax.enable_x64(True):
        u = jnp.linspace(0.01, 0.99, 50)
        for schedule in EVERY:
            start = 0.01
            t = schedules.importance_time(schedule, u, start)
            speed = jax.vmap(jax.grad(lambda v, schedule=schedule: schedules.importance_time(schedule, v, 0.01)))(u)
            weight = schedule.rate(t) / schedule.complement(t) * speed
            span = np.log(schedule.complement(1.0)) - np.log(schedule.complement(start))
            np.testing.assert_allclose(weight, span, rtol=1e-8, err_msg=repr(schedule))


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: schedules.Linear(0.6, 0.5), "eps_noise=0.6"),
        (lambda: schedules.Linear(-0.1), "eps_noise=-0.1"),
        (lambda: schedules.Cosine(power=0.5), "power=0.5"),
        (lambda: schedules.Polynomial(power=0.0), "power=0.0"),
        (lambda: schedules.LinearSigma(2.0, 1.0), "sigma_min=2.0"),
        (lambda: schedules.Geometric(0.0, 1.0), "sigma_min=0.0"),
        (lambda: schedules.from_spec("sine", 1e-3), "'sine': choose one of linear, cosine"),
        (lambda: schedules.from_spec("polynomial", 1e-3), r"'polynomial': polynomial takes 1 number\(s\), not 0"),
        (lambda: schedules.from_spec("polynomial:2,3", 1e-3), "takes 1 number"),
        (lambda: schedules.from_spec("linear:2", 1e-3), r"'linear:2': linear takes no number\(s\), not 1"),
        (lambda: schedules.from_spec("geometric:20", 1e-3), "takes 2 number"),
        (lambda: schedules.from_spec("polynomial:two", 1e-3), "what follows the colon must be numbers"),
    ],
)
def test_impossible_schedules_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_schedules_by_name():
    assert schedules.from_spec("linear", 1e-3) == schedules.Linear(1e-3)
    assert schedules.from_spec("cosine", 1e-3) == schedules.Cosine(1e-3)
    assert schedules.from_spec("cosine_mask", 1e-3) == schedules.CosineMask(1e-3)
    assert schedules.from_spec("polynomial:3", 1e-3) == schedules.Polynomial(1e-3, power=3.0)
    assert schedules.from_spec("geometric:1e-3,20", 1e-3) == schedules.Geometric(1e-3, 20.0)
