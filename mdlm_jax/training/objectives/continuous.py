"""The bound in continuous time, and the bound of a process with a number of steps."""

import dataclasses

import jax
import jax.numpy as jnp

from mdlm_jax.core import levels, losses, weights
from mdlm_jax.core.loss_parts import LossParts
from mdlm_jax.core.schedules import SigmaSchedule
from mdlm_jax.training.objectives.base import Objective, require_elbo, scored


@dataclasses.dataclass(frozen=True)
class ContinuousObjective(Objective):
    """The continuous-time NELBO for any mixing: the integrand at one time a row, over [time_min, time_max].

    Up to time_max = 1 it is whole but for `end_terms`.
    """

    time_min: float = 1e-3
    time_max: float = 1.0

    def loss_at(self, trainable, batch, key, rows, u):
        tokens = batch["tokens"]
        t, weight = levels.times(self.law, u, self.time_min, self.time_max)
        noisy = self.process.corrupt(self.noise_keys(key, rows), tokens, t, batch["noise_mask"])
        prediction, routers = self.run(trainable, batch, noisy, t, key, rows)
        reduced = self.reduce(
            prediction, target=tokens, current=noisy, offset=losses.softplus_offset(self.process, t, tokens.shape)
        )
        loss = self.weighed(reduced, tokens, noisy, t, weight[:, None])
        return LossParts.of(scored(batch), *routers, diffusion=loss)

    def weighed(self, reduced, tokens, noisy, t, weight) -> jax.Array:
        """[B, L]: the integrand times ``weight`` [B, 1], or by another weighting."""
        if isinstance(self.weighting, weights.Multiplier):
            weight = losses.level_weight(self.process, t, self.weighting)
        return weight * losses.nelbo_rate(self.process, reduced, tokens, noisy, t)

    def end_terms(self, trainable, batch, key, rows) -> LossParts:
        """What the diffusion term leaves out: reconstruction from time_min and the prior at t = 1."""
        tokens = batch["tokens"]
        t = jnp.full(rows.shape, self.time_min, jnp.float32)
        noisy = self.process.corrupt(self.noise_keys(key, rows), tokens, t, batch["noise_mask"])
        prediction = self.denoise(trainable, batch, noisy, t, key, rows)
        reduced = self.reduce(prediction, target=tokens, current=noisy)
        return LossParts.of(
            scored(batch),
            reconstruction=losses.reconstruction(self.process, reduced, tokens, noisy, t),
            prior=jnp.broadcast_to(losses.prior(self.process, tokens), tokens.shape),
        )


@dataclasses.dataclass(frozen=True)
class DiscreteObjective(Objective):
    """The NELBO of a process with ``num_steps`` steps but for the prior: num_steps * KL of one of them a row.

    The first step's KL is the reconstruction term, which needs alpha(0) = 1.
    """

    num_steps: int = 100

    def __post_init__(self):
        super().__post_init__()
        if self.process.schedule.eps_data or isinstance(self.process.schedule, SigmaSchedule):
            raise ValueError(f"schedule={self.process.schedule}: leaves noise at t=0; num_steps needs alpha(0) = 1")
        require_elbo(self)

    def loss_at(self, trainable, batch, key, rows, u):
        tokens = batch["tokens"]
        level = self.law.quantile(u)
        step = jnp.clip(jnp.ceil(level * self.num_steps), 1, self.num_steps)
        s, t = (step - 1) / self.num_steps, step / self.num_steps
        noisy = self.process.corrupt(self.noise_keys(key, rows), tokens, t, batch["noise_mask"])
        prediction, routers = self.run(trainable, batch, noisy, t, key, rows)
        reduced = self.reduce(
            prediction, target=tokens, current=noisy, offset=losses.softplus_offset(self.process, s, tokens.shape)
        )
        kl = losses.kl_step(self.process, reduced, tokens, noisy, s, t)
        assert not isinstance(self.law, levels.Fixed)  # it has no steps
        probability = self.law.bin_probability(step, float(self.num_steps))
        return LossParts.of(scored(batch), *routers, diffusion=kl / probability[:, None])
