"""Noise schedules: alpha(t), the chance that a token is still itself at time t; t=0 is data, t=1 is noise.

Every schedule has the form alpha = (1 - eps_data - eps_noise) a(t) + eps_noise with a(0)=1, a(1)=0, so that
alpha(0) = 1 - eps_data and alpha(1) = eps_noise. Subclasses give a(t), 1 - a(t), -a'(t) and the inverse, each without
cancellation at the end where it is small, so that float32 is enough. The log-linear schedule of MDLM (arXiv 2406.07524)
and XDLM (2602.01362) is ``Linear(eps_noise=1e-3)``; MD4 (2406.04329) has eps_data = eps_noise = 1e-4.

Arrays in, arrays out: any shape, float32 or float64, result in the dtype of ``t``.
"""

import dataclasses
import math

import jax.numpy as jnp

from mdlm_jax.core import specs


@dataclasses.dataclass(frozen=True)
class Schedule:
    """Base of the schedules. Frozen and hashable, hence a static argument of ``jit``."""

    eps_noise: float = 1e-3
    eps_data: float = 0.0

    def __post_init__(self):
        if not (0.0 <= self.eps_noise and 0.0 <= self.eps_data and self.eps_noise + self.eps_data < 1.0):
            raise ValueError(
                f"eps_noise={self.eps_noise}, eps_data={self.eps_data}: both must be >= 0 and their sum below 1"
            )

    @property
    def _span(self) -> float:
        return 1.0 - self.eps_data - self.eps_noise

    def alpha(self, t):
        """P(token is still itself) at time t."""
        return self._span * self._a(t) + self.eps_noise

    def complement(self, t):
        """1 - alpha(t), accurate near t=0 where alpha is close to one."""
        return self._span * self._a_complement(t) + self.eps_data

    def rate(self, t):
        """-d alpha / dt >= 0."""
        return self._span * self._a_rate(t)

    def drop(self, s, t):
        """alpha(s) - alpha(t) for s <= t, taken from whichever of alpha and its complement is the smaller number."""
        near_data = self.complement(t) - self.complement(s)
        near_noise = self.alpha(s) - self.alpha(t)
        return jnp.where(self.alpha(t) > 0.5, near_data, near_noise)

    def inverse(self, alpha):
        """The t with alpha(t) = alpha, clipped to [0, 1]. Accurate where alpha is small."""
        return self._a_inverse(jnp.clip((alpha - self.eps_noise) / self._span, 0.0, 1.0))

    def inverse_complement(self, complement):
        """The t with 1 - alpha(t) = complement, clipped to [0, 1]. Accurate where the complement is small."""
        return self._a_complement_inverse(jnp.clip((complement - self.eps_data) / self._span, 0.0, 1.0))

    def _a(self, t):
        raise NotImplementedError

    def _a_complement(self, t):
        raise NotImplementedError

    def _a_rate(self, t):
        raise NotImplementedError

    def _a_inverse(self, a):
        return self._a_complement_inverse(1.0 - a)

    def _a_complement_inverse(self, c):
        raise NotImplementedError


@dataclasses.dataclass(frozen=True)
class Linear(Schedule):
    """a = 1 - t. In the literature also "log-linear", after its sigma = -log alpha."""

    def _a(self, t):
        return 1.0 - t

    def _a_complement(self, t):
        return t

    def _a_rate(self, t):
        return jnp.ones_like(t)

    def _a_complement_inverse(self, c):
        return c


@dataclasses.dataclass(frozen=True)
class Cosine(Schedule):
    """a = cos(pi t / 2)^power: MDLM's "cosine" (power 1) and "cosine squared" (power 2)."""

    power: float = 1.0

    def __post_init__(self):
        super().__post_init__()
        if self.power < 1.0:
            raise ValueError(f"power={self.power}: must be at least 1, below it the rate is infinite at t=1")

    def _a(self, t):
        return jnp.sin(jnp.pi / 2 * (1.0 - t)) ** self.power

    def _a_complement(self, t):
        one_minus_cos = 2.0 * jnp.sin(jnp.pi / 4 * t) ** 2
        if self.power == 1.0:
            return one_minus_cos
        return -jnp.expm1(self.power * jnp.log1p(-one_minus_cos))

    def _a_rate(self, t):
        cos = jnp.sin(jnp.pi / 2 * (1.0 - t))
        return self.power * jnp.pi / 2 * jnp.sin(jnp.pi / 2 * t) * cos ** (self.power - 1.0)

    def _a_inverse(self, a):
        return 1.0 - 2.0 / jnp.pi * jnp.arcsin(a ** (1.0 / self.power))

    def _a_complement_inverse(self, c):
        one_minus_cos = c if self.power == 1.0 else -jnp.expm1(jnp.log1p(-c) / self.power)
        return 4.0 / jnp.pi * jnp.arcsin(jnp.sqrt(one_minus_cos / 2.0))


@dataclasses.dataclass(frozen=True)
class CosineMask(Schedule):
    """a = 1 - sin(pi t / 2): the *masked* share follows a cosine of the remaining time (MaskGIT; MD4's "cosine")."""

    def _a(self, t):
        return 2.0 * jnp.sin(jnp.pi / 4 * (1.0 - t)) ** 2

    def _a_complement(self, t):
        return jnp.sin(jnp.pi / 2 * t)

    def _a_rate(self, t):
        return jnp.pi / 2 * jnp.sin(jnp.pi / 2 * (1.0 - t))

    def _a_inverse(self, a):
        return 1.0 - 4.0 / jnp.pi * jnp.arcsin(jnp.sqrt(a / 2.0))

    def _a_complement_inverse(self, c):
        return 2.0 / jnp.pi * jnp.arcsin(c)


@dataclasses.dataclass(frozen=True)
class Polynomial(Schedule):
    """a = 1 - t^power (MD4's "poly")."""

    power: float = 2.0

    def __post_init__(self):
        super().__post_init__()
        if not self.power > 0.0:
            raise ValueError(f"power={self.power}: must be positive")

    def _a(self, t):
        return -jnp.expm1(self.power * jnp.log(t))

    def _a_complement(self, t):
        return t**self.power

    def _a_rate(self, t):
        return self.power * t ** (self.power - 1.0)

    def _a_inverse(self, a):
        return jnp.exp(jnp.log1p(-a) / self.power)

    def _a_complement_inverse(self, c):
        return c ** (1.0 / self.power)


@dataclasses.dataclass(frozen=True)
class SigmaSchedule(Schedule):
    """Schedules given by sigma(t) = -log alpha(t) between sigma_min and sigma_max; the eps fields follow from them."""

    sigma_min: float = 1e-3
    sigma_max: float = 20.0
    eps_noise: float = dataclasses.field(default=0.0, init=False)
    eps_data: float = dataclasses.field(default=0.0, init=False)

    def __post_init__(self):
        if not 0.0 <= self.sigma_min < self.sigma_max:
            raise ValueError(f"sigma_min={self.sigma_min}, sigma_max={self.sigma_max}: need 0 <= sigma_min < sigma_max")

    def alpha(self, t):
        return jnp.exp(-self.sigma(t))

    def complement(self, t):
        return -jnp.expm1(-self.sigma(t))

    def rate(self, t):
        return self.sigma_rate(t) * jnp.exp(-self.sigma(t))

    def inverse(self, alpha):
        return self._time_of_sigma(-jnp.log(alpha))

    def inverse_complement(self, complement):
        return self._time_of_sigma(-jnp.log1p(-complement))

    def sigma(self, t):
        """-log alpha(t)."""
        raise NotImplementedError

    def sigma_rate(self, t):
        """d sigma / dt."""
        raise NotImplementedError

    def _time_of_sigma(self, sigma):
        raise NotImplementedError


@dataclasses.dataclass(frozen=True)
class LinearSigma(SigmaSchedule):
    """sigma = sigma_min + t (sigma_max - sigma_min): MDLM's "linear", the variance-preserving one."""

    def sigma(self, t):
        return self.sigma_min + t * (self.sigma_max - self.sigma_min)

    def sigma_rate(self, t):
        return jnp.full_like(t, self.sigma_max - self.sigma_min)

    def _time_of_sigma(self, sigma):
        return jnp.clip((sigma - self.sigma_min) / (self.sigma_max - self.sigma_min), 0.0, 1.0)


@dataclasses.dataclass(frozen=True)
class Geometric(SigmaSchedule):
    """sigma = sigma_min^(1-t) sigma_max^t (SEDD and MDLM's "geometric")."""

    def __post_init__(self):
        super().__post_init__()
        if self.sigma_min == 0.0:
            raise ValueError("sigma_min=0.0: the geometric schedule needs a positive sigma_min")

    def _log_ratio(self) -> float:
        return math.log(self.sigma_max / self.sigma_min)

    def sigma(self, t):
        return self.sigma_min * jnp.exp(t * self._log_ratio())

    def sigma_rate(self, t):
        return self._log_ratio() * self.sigma(t)

    def _time_of_sigma(self, sigma):
        ratio = jnp.maximum(sigma, self.sigma_min) / self.sigma_min
        return jnp.clip(jnp.log(ratio) / self._log_ratio(), 0.0, 1.0)


def importance_time(schedule: Schedule, u, time_min: float):
    """The time at which log(1 - alpha) has gone the share u of its way from time_min to 1.

    With u ~ U(0,1) the masked bound's weight rate/(1 - alpha) becomes the constant
    log(1 - alpha(1)) - log(1 - alpha(time_min)): importance sampling by change of variables (MDLM, arXiv 2406.07524).
    """
    u = jnp.asarray(u)
    low = jnp.log(schedule.complement(jnp.asarray(time_min, u.dtype)))
    high = jnp.log(schedule.complement(jnp.ones((), u.dtype)))
    return schedule.inverse_complement(jnp.exp(low + u * (high - low)))


def from_spec(spec: str, eps: float) -> Schedule:
    """The schedule named by ``ProcessConfig.schedule``: ``"linear"``, ``"polynomial:2"``, ``"geometric:1e-3,20"``.

    Examples:
      >>> schedule = from_spec("polynomial:2", eps=0.0)
      >>> schedule.alpha(jnp.array([0.0, 0.5, 1.0])), schedule.inverse(jnp.array([0.75]))
      (Array([1.  , 0.75, 0.  ], dtype=float32), Array([0.5], dtype=float32))
    """
    takes = {"linear": 0, "cosine": 0, "cosine_mask": 0, "polynomial": 1, "geometric": 2}
    name, numbers = specs.parse("schedule", spec, takes)
    if name == "geometric":
        return Geometric(*numbers)
    if name == "polynomial":
        return Polynomial(eps, power=numbers[0])
    return {"linear": Linear, "cosine": Cosine, "cosine_mask": CosineMask}[name](eps)
