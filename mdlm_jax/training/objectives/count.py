"""The masked process by number of masks."""

import dataclasses

import jax.numpy as jnp

from mdlm_jax.core import counts
from mdlm_jax.core.loss_parts import LossParts
from mdlm_jax.core.prediction import Prediction
from mdlm_jax.training.objectives.base import TIME, Objective, scored


@dataclasses.dataclass(frozen=True)
class CountObjective(Objective):
    """The masked process by number of masks: an exact bound without end terms (`core.counts`).

    Attributes:
      half_head: gather the masked positions of each antithetic pair and run the head on those slots only.
      complementary: the rows of a pair also order their positions oppositely.
    """

    half_head: bool = True
    complementary: bool = False
    end_terms = None  # nothing is left over

    def head_positions(self, rows: int, length: int) -> int:
        return rows // 2 * counts.num_slots(length, self.law) if self.half_head else rows * length

    def loss_at(self, trainable, batch, key, rows, u):
        tokens = batch["tokens"]
        draw = counts.draw_counts(
            self.noise_keys(key, rows),
            u,
            batch["noise_mask"],
            self.law,
            weighting=self.weighting,
            complementary=self.complementary,
        )
        noisy = jnp.where(draw.masked, jnp.asarray(self.process.mask_id, tokens.dtype), tokens)
        time = None
        if self.network.time_conditioning:
            time = counts.time_given_count(self.noise_keys(key, rows, TIME), draw, self.process.schedule)
        prediction, routers = self.run(trainable, batch, noisy, time, key, rows)
        log_prob = self._target_log_prob(prediction, tokens, draw.masked)
        loss = jnp.where(draw.masked, -draw.weight[:, None] * log_prob, 0.0)
        return LossParts.of(scored(batch), routers, diffusion=loss)

    def _target_log_prob(self, prediction, tokens, masked):
        if not self.half_head:
            return self.reduce(prediction, target=tokens).target
        slots = counts.pair_slots(masked, counts.num_slots(tokens.shape[1], self.law))
        gathered = Prediction(counts.gather_pairs(prediction.hidden, slots), prediction.head)
        reduced = self.reduce(gathered, target=counts.gather_pairs(tokens, slots))
        return counts.scatter_pairs(reduced.target, slots, tokens.shape[0])
