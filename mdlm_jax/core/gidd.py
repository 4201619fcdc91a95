"""GIDD (arXiv 2503.04482): mixed noise whose uniform share rises and falls again, most at t = 1/2.

With c(t) = B (t (1 - t))^{gamma/2} and C = 1 + c the three scalars are

    keep (1 - t) / C,   uniform c / C,   mask t / C,

and B = 2^gamma p / (1 - p) makes the uniform share p at t = 1/2. The ratio of uniform to mask changes with time, so
this is not the stationary process; masses, transition and inflow are all that differs from it. At t = 1 everything is
the mask, so a chain may start there. Training takes times in [FIRST, LAST] as the reference does, since the rates have
no end at 0. The reference's sampler starts from masks at LAST instead, uses the first of its times for nothing and ends
with a step of no length (T - 1 steps where T are asked for); `sampling.ancestral` on the usual grid is the whole chain.
For gamma = 1 noise comes and goes as sqrt(t (1 - t)), so that equal steps err by 1 / sqrt(steps), not 1 / steps.
"""

import dataclasses
import math

import jax
import jax.numpy as jnp

from mdlm_jax.core import losses
from mdlm_jax.core.process import Inflow, Masses, Process, per_position, safe_ratio
from mdlm_jax.core.schedules import Schedule

FIRST, LAST = 1e-4, 1.0 - 1e-4  # times of training
FLOOR = math.exp(-20.0)  # of p_uniform and of B, as in the reference: 0 would need the masked process's special case


@dataclasses.dataclass(frozen=True)
class GiddSchedule(Schedule):
    """alpha(t) = (1 - t) / C(t). Its inverse has no closed form and is found by bisection."""

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
        return 1.0 - _bisected(lambda left: self.alpha(1.0 - left), alpha)

    def inverse_complement(self, complement):
        return _bisected(self.complement, complement)


def _bisected(rising, value) -> jax.Array:
    """x in [0, 1] with ``rising(x) = value``, elementwise, to the resolution of float32 at x, or 1e-12."""
    value = jnp.asarray(value)

    def halve(_, ends):
        low, high = ends
        middle = 0.5 * (low + high)
        below = rising(middle) < value
        return jnp.where(below, middle, low), jnp.where(below, high, middle)

    low, high = jax.lax.fori_loop(0, 40, halve, (jnp.zeros_like(value), jnp.ones_like(value)))
    return jnp.where(value <= 0, 0.0, jnp.where(value >= 1, 1.0, 0.5 * (low + high)))


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
    schedule: GiddSchedule = dataclasses.field(default=GiddSchedule(), init=False)
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
        end = t == 1.0  # everything is the mask, whatever it was
        fall = jnp.log1p(-(t - s) / (1.0 - s))  # log (1-t)/(1-s)
        rise = half * jnp.log1p((s - t) / t) + (half - 1.0) * -jnp.where(end, 0.0, fall)  # log of c/(1-.) at s over t
        return Masses(safe_ratio(now.keep, before.keep), -now.uniform * jnp.expm1(rise),
                      now.mask * safe_ratio(t - s, t * (1.0 - s)))

    def masked_time(self, share):
        """The time at which this share of all tokens, t / C, is the mask; any shape."""
        return _bisected(lambda t: t / (1.0 + self.schedule.odds(t)), share)

    def inflow(self, t):
        t = per_position(t)
        square = (1.0 + self.schedule.odds(t)) ** 2
        return Inflow(self.schedule.odds_inflow(t) / square, 1.0 / square)


def clipped_loss(process: Process, reduced, tokens, noisy, t, maximum: float) -> jax.Array:
    """The loss a token with the bound's weight cut off at ``maximum``, [B, L]: w_clamp of section 3 of the paper."""
    weight = jnp.minimum(losses.elbo_weight(process, tokens, noisy, t), maximum)
    return weight * losses.divergence(process, reduced, tokens, noisy, t)


def dynamic_weight(process: GiddProcess, tokens: jax.Array, noisy: jax.Array, t: jax.Array) -> jax.Array:
    """w_dyn, [B, L]: 2 at the mask, 1 at a wrong token, (B / V) e^{-lambda / 2} where the token is its own, at most 2.

    lambda = logit(1 - t) is the log-SNR as t gives it (C = 1), so that the last is (B / V) (t / (1 - t))^{gamma / 2};
    for gamma = 1 the three are 2 t (1 - t) times the bound's own weight but for factors near 1. The published code
    has exp(sigmoid(-t) / 2) in its place, which hardly depends on t: up to 37 times too much and 100 times too little.
    """
    t = per_position(t)
    own = process.schedule.peak / process.vocab_size * (t / (1.0 - t)) ** (process.gamma / 2)
    weight = jnp.where(process.is_mask(noisy), 2.0, jnp.where(noisy == tokens, own, 1.0))
    return jnp.minimum(weight, 2.0)


def dynamic_loss(process: GiddProcess, reduced, tokens, noisy, t) -> jax.Array:
    """w_dyn (KL + R - log R - 1), [B, L]."""
    return dynamic_weight(process, tokens, noisy, t) * losses.divergence(process, reduced, tokens, noisy, t)
