"""What objectives share that train something small beside a frozen network that fills in masks: which masks, and what
the network says of them."""

import dataclasses

import jax
import jax.numpy as jnp

from mdlm_jax.core import counts
from mdlm_jax.core.prediction import Prediction
from mdlm_jax.training.objectives.base import TIME, Objective


@dataclasses.dataclass(frozen=True)
class BesideObjective(Objective):
    """The network's weights stay as they are; masks are drawn by number, in whole rows."""

    whole = ""  # what is done with whole rows

    def __post_init__(self):
        super().__post_init__()
        if not self.process.masked_only:
            raise ValueError(f"mixing={self.process.mixing}: {type(self).__name__} knows no noise but the mask; "
                             "set 0")
        if self.network.attention != "bidirectional":
            raise ValueError(f"network.attention={self.network.attention!r}: whole rows are {self.whole}; the network "
                             "must be bidirectional")

    def masks(self, batch: dict, key: jax.Array, rows: jax.Array, u: jax.Array) -> counts.CountDraw:
        """What is masked at first."""
        return counts.draw_counts(self.noise_keys(key, rows), u, batch["noise_mask"], self.law,
                                  weighting=self.weighting)

    def said(self, trainable: dict, batch: dict, noisy: jax.Array, draw: counts.CountDraw, key, rows) -> Prediction:
        """The frozen network's."""
        time = None
        if self.network.time_conditioning:
            time = counts.time_given_count(self.noise_keys(key, rows, TIME), draw, self.process.schedule)
        return jax.lax.stop_gradient(self.denoise(trainable, batch, noisy, time, key, rows))

    def masked(self, tokens: jax.Array, where: jax.Array) -> jax.Array:
        """[B, L]: the tokens with masks ``where``."""
        return jnp.where(where, jnp.asarray(self.process.mask_id, tokens.dtype), tokens)
