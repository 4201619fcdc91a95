"""Self-distillation through time (SDTT, arXiv 2410.21035): two steps of a teacher become one of its student.

Rounds of it halve the steps again and again, each with the student of the round before as its teacher.
"""

import dataclasses

import jax
import jax.numpy as jnp

from mdlm_jax.core.loss_parts import LossParts
from mdlm_jax.core.prediction import Prediction
from mdlm_jax.models import flops
from mdlm_jax.training.objectives.base import SECOND, scored
from mdlm_jax.training.objectives.taught import TaughtObjective


@dataclasses.dataclass(frozen=True)
class SDTTObjective(TaughtObjective):
    """From x_t the teacher takes two ancestral steps of dt = 1 / steps. At each position masked in x_t its target is
    the teacher's law from the first step where that reveals the position, else from the second, and the loss is

        sum over masks of x_t of  KL(student at x_t || target)        (term ``sdtt``, nats)

    over all tokens that count. t is uniform on the student's own grid of steps / 2 times. The second step is asked at
    t - dt. The published code has 1 - t where 1 - space belongs in t space + (1 - space) s, s = t - 2 dt, so that its
    middle is (t + s) / 2 + (1/2 - t) s: at t near 1 a step to the middle of all times, at small t none or one back.
    """

    def __post_init__(self):
        super().__post_init__()
        if self.steps % 2:
            raise ValueError(f"steps={self.steps}: must be even, since each two become one")
        if not self.process.masked_only:
            raise ValueError(f"mixing={self.process.mixing}: SDTTObjective knows no noise but the mask; set it to 0")

    def times(self, u: jax.Array) -> tuple[jax.Array, jax.Array]:
        """[B] each: t, and the end t - dt of the teacher's first step."""
        number = jnp.floor(u * (self.steps // 2)) + 1.0
        return 2.0 * number / self.steps, (2.0 * number - 1.0) / self.steps

    def train_flops(self, rows: int, length: int) -> int:
        """Those of the network, and two forwards of the teacher; its head to draw, and for the target twice, since the
        backward pass has it again."""
        return flops.taught_train_flops(self.network, rows, length, forwards=2, heads=3)

    def loss_at(self, trainable, batch, key, rows, u):
        t, middle = self.times(u)
        tokens, noise_mask = batch["tokens"], batch["noise_mask"]
        noisy = self.process.corrupt(self.noise_keys(key, rows), tokens, t, noise_mask)
        first = self.taught(trainable, batch, noisy, t, key, rows)
        then = self.process.reverse_step(self.noise_keys(key, rows, SECOND), noisy, middle, t,
                                         sample=self.own_draws(first, key, rows, 0), noise_mask=noise_mask)
        second = self.taught(trainable, batch, then, middle, key, rows)
        left = self.process.is_mask(then)
        target = Prediction(jnp.where(left[..., None], second.hidden, first.hidden), first.head)
        prediction, routers = self.run(trainable, batch, noisy, t, key, rows)
        masked = self.process.is_mask(noisy) & noise_mask
        return LossParts.of(scored(batch), *routers, sdtt=jnp.where(masked, self.distance(prediction, target), 0.0))
