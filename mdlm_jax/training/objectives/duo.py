"""Discrete consistency distillation of Duo (arXiv 2506.10892): uniform noise, one level less for the teacher."""

import dataclasses

import jax
import jax.numpy as jnp

from mdlm_jax.core.loss_parts import LossParts
from mdlm_jax.models import flops
from mdlm_jax.training.objectives.base import scored
from mdlm_jax.training.objectives.taught import TaughtObjective


@dataclasses.dataclass(frozen=True)
class DuoObjective(TaughtObjective):
    """The student sees the row at time t, the teacher the same row with the same noise at s = t - dt, dt = 1 / steps:

        sum over tokens of  KL(student at x_t || teacher at x_s)        (term ``duo``, nats)

    between laws of the clean token; t = min(u + dt, 1) with u uniform. In the paper x_t is the argmax of a_t onehot(x)
    + sqrt(1 - a_t^2) z with one Gaussian z [V] for both times. With r = a / sqrt(1 - a^2) the argmax is x where z_x + r
    exceeds the largest z of the others, and else always the same other id, independent of that comparison: a threshold
    on r with P(kept) = alpha + (1 - alpha) / N, N ids. So the pair (x_t, x_s) has exactly the law of two draws of
    `Process.corrupt` with the same keys, which replaces x by one uniform id where one uniform number lies below
    1 - alpha, and no V numbers a position are drawn. Times are those of the process's own schedule, on which samplers
    take their steps; the paper's are linear in the Gaussian's log signal-to-noise ratio. Its code names a distance
    between posteriors too, which returns nothing and is left out here.
    """

    def __post_init__(self):
        super().__post_init__()
        if self.process.mixing != 1.0:
            raise ValueError(f"mixing={self.process.mixing}: DuoObjective knows no noise but the uniform; set it to 1")

    def times(self, u: jax.Array) -> tuple[jax.Array, jax.Array]:
        """[B] each: t and s."""
        t = jnp.minimum(u + 1.0 / self.steps, 1.0)
        return t, jnp.maximum(t - 1.0 / self.steps, 0.0)

    def train_flops(self, rows: int, length: int) -> int:
        """Those of the network, and a forward of the teacher, its head twice, since the backward pass has it again."""
        return flops.taught_train_flops(self.network, rows, length, forwards=1, heads=2)

    def loss_at(self, trainable, batch, key, rows, u):
        t, s = self.times(u)
        keys = self.noise_keys(key, rows)
        noisy, before = (self.process.corrupt(keys, batch["tokens"], time, batch["noise_mask"]) for time in (t, s))
        target = self.taught(trainable, batch, before, s, key, rows)
        prediction, routers = self.run(trainable, batch, noisy, t, key, rows)
        return LossParts.of(scored(batch), *routers, duo=self.distance(prediction, target))
