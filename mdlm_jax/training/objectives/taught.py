"""What objectives with a teacher share: a network that learns to do in one step what its teacher does in two."""

import dataclasses
import functools

import jax
import jax.numpy as jnp

from mdlm_jax.core.prediction import Prediction
from mdlm_jax.training.objectives.base import Objective


@dataclasses.dataclass(frozen=True)
class TaughtObjective(Objective):
    """The weights hold ``teacher`` beside ``network``: what the network was when the run began. It takes no gradient.

    Attributes:
      steps: those of the teacher from pure noise to text, an even number; the network's are half as many.
    """

    steps: int = 2

    def __post_init__(self):
        super().__post_init__()
        if self.steps < 2 or self.steps % 2:
            raise ValueError(f"steps={self.steps}: must be even and at least 2, since each two become one")

    @functools.cached_property
    def teacher(self) -> Objective:
        """The same with the teacher's network, which has no dropout."""
        return dataclasses.replace(self, network=dataclasses.replace(self.network, dropout=0.0))

    def taught(self, trainable: dict, batch: dict, noisy: jax.Array, time: jax.Array, key: jax.Array,
               rows: jax.Array) -> Prediction:
        """The teacher's prediction at time [B]."""
        weights = jax.lax.stop_gradient({"network": trainable["teacher"]})
        return jax.lax.stop_gradient(self.teacher.denoise(weights, batch, noisy, time, key, rows))

    def times(self, u: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        """[B] each: t, on the network's own grid, and the ends of the teacher's two steps, t - dt and t - 2 dt, which
        is 0 in the end."""
        number = jnp.floor(u * (self.steps // 2)) + 1.0
        return tuple((2.0 * number - back) / self.steps for back in (0.0, 1.0, 2.0))
