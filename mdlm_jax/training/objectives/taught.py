"""What objectives with a teacher share: a network that learns to do in one step what its teacher does in two."""

import dataclasses
import functools

import jax

from mdlm_jax.core.prediction import Prediction
from mdlm_jax.training.objectives.base import Objective


@dataclasses.dataclass(frozen=True)
class TaughtObjective(Objective):
    """The weights hold ``teacher`` beside ``network``: what the network was when the run began. It takes no gradient.

    Attributes:
      steps: those of the teacher from pure noise to text.
      forward_kl: KL(target || network) in place of KL(network || target).
    """

    steps: int = 2
    forward_kl: bool = False

    fewest = 2  # steps of a teacher

    def __post_init__(self):
        super().__post_init__()
        if self.steps < self.fewest:
            raise ValueError(f"steps={self.steps}: must be at least {self.fewest}")
        if self.network.attention != "bidirectional":
            raise ValueError(f"network.attention={self.network.attention!r}: steps are of whole rows; the network must "
                             "be bidirectional")

    @functools.cached_property
    def teacher(self) -> Objective:
        """The same with the teacher's network, which has no dropout."""
        return dataclasses.replace(self, network=dataclasses.replace(self.network, dropout=0.0))

    def taught(self, trainable: dict, batch: dict, noisy: jax.Array, time: jax.Array, key: jax.Array,
               rows: jax.Array) -> Prediction:
        """The teacher's prediction at time [B]."""
        weights = jax.lax.stop_gradient({"network": trainable["teacher"]})
        return jax.lax.stop_gradient(self.teacher.denoise(weights, batch, noisy, time, key, rows))

    def distance(self, prediction: Prediction, target: Prediction) -> jax.Array:
        """[B, L]: the KL between the network and its target, nats."""
        return self.reduce(prediction, teacher=target, reverse_kl=not self.forward_kl).kl
