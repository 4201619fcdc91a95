"""GIDD (arXiv 2503.04482): mixed noise whose uniform share rises and falls again, most at t = 1/2.

With c(t) = B (t (1 - t))^{gamma/2} and C = 1 + c the three scalars are

    keep (1 - t) / C,   uniform c / C,   mask t / C,

and B = 2^gamma p / (1 - p) makes the uniform share p at t = 1/2. The ratio of uniform to mask changes with time, so
this is not the stationary process; masses, transition and inflow are all that differs from it. Times lie inside (0, 1);
the reference clips them to [1e-4, 1 - 1e-4].
"""

import dataclasses
import math

import jax.numpy as jnp

from mdlm_jax.core.process import Inflow, Masses, Process, per_position
from mdlm_jax.core.schedules import Schedule

FLOOR = math.exp(-20.0)  # of p_uniform and of B, as in the reference: 0 would need the masked process's special case


@dataclasses.dataclass(frozen=True)
class GiddSchedule(Schedule):
    """alpha(t) = (1 - t) / C(t). It has no inverse in closed form."""

    p_uniform: float = 0.1
    gamma: float = 1.0
    eps_noise: float = dataclasses.field(default=0.0, init=False)
    eps_data: float = dataclasses.field(default=0.0, init=False)

    def __post_init__(self):
        if not 0.0 <= self.p_uniform < 1.0:
            raise ValueError(f"p_uniform={self.p_uniform}: must lie in [0, 1)")
        if not 0.0 < self.gamma <= 2.0:
            raise ValueError(f"gamma={self.gamma}: must lie in (0, 2]; above 2 uniform noise would have to flow back")

    @property
    def peak(self) -> float:
        """B."""
        p = max(self.p_uniform, FLOOR)
        return max(2.0**self.gamma * p / (1.0 - p), FLOOR)

    def odds(self, t):
        """c(t), uniform noise relative to everything else."""
        return self.peak * (t * (1.0 - t)) ** (self.gamma / 2)

    def odds_inflow(self, t):
        """c + (1 - t) c' >= 0."""
        return self.odds(t) / t * ((1.0 - self.gamma) * t + self.gamma / 2)

    def alpha(self, t):
        return (1.0 - t) / (1.0 + self.odds(t))

    def complement(self, t):
        c = self.odds(t)
        return (t + c) / (1.0 + c)

    def rate(self, t):
        return (1.0 + self.odds_inflow(t)) / (1.0 + self.odds(t)) ** 2

    def inverse(self, alpha):
        raise NotImplementedError("GIDD's schedule has no closed-form inverse; draw times uniformly")

    def inverse_complement(self, complement):
        return self.inverse(1.0 - complement)


@dataclasses.dataclass(frozen=True)
class GiddProcess(Process):
    """The process of GIDD. Uniform draws spare the mask.

    Attributes:
      p_uniform: the uniform share at t = 1/2, in [0, 1); at least e^-20 is used.
      gamma: shape of c(t), in (0, 2].
      mixing, schedule, uniform_hits_mask: follow from these; ``mixing`` is p_uniform after the floor.
    """

    p_uniform: float = dataclasses.field(default=0.1, kw_only=True)
    gamma: float = dataclasses.field(default=1.0, kw_only=True)
    mixing: float = dataclasses.field(default=0.1, init=False)
    schedule: Schedule = dataclasses.field(default=GiddSchedule(), init=False)
    uniform_hits_mask: bool = dataclasses.field(default=False, init=False)

    def __post_init__(self):
        object.__setattr__(self, "schedule", GiddSchedule(self.p_uniform, self.gamma))
        object.__setattr__(self, "mixing", max(self.p_uniform, FLOOR))
        super().__post_init__()  # mixing < 1, so this also refuses a process without a mask

    def masses(self, t):
        t = per_position(t)
        c = self.schedule.odds(t)
        return Masses((1.0 - t) / (1.0 + c), c / (1.0 + c), t / (1.0 + c))

    def transition(self, s, t):
        """keep(t) times what each noise gains relative to keep: c/(1 - t) and t/(1 - t) taken between s and t."""
        s, t = per_position(s), per_position(t)
        before, now = self.masses(s), self.masses(t)
        half = self.gamma / 2
        fall = jnp.log1p(-(t - s) / (1.0 - s))  # log (1-t)/(1-s)
        rise = half * jnp.log1p((s - t) / t) + (half - 1.0) * -fall  # log of c/(1-.) at s over t
        return Masses(now.keep / before.keep, -now.uniform * jnp.expm1(rise), now.mask * (t - s) / (t * (1.0 - s)))

    def inflow(self, t):
        t = per_position(t)
        square = (1.0 + self.schedule.odds(t)) ** 2
        return Inflow(self.schedule.odds_inflow(t) / square, 1.0 / square)
