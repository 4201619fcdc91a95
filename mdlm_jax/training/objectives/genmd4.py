"""The masked process with a learned schedule a token id: training, and the bound of what was learned."""

import dataclasses

import jax
import jax.numpy as jnp

from mdlm_jax.core import genmd4, levels
from mdlm_jax.core.loss_parts import LossParts
from mdlm_jax.training.objectives.base import SECOND, Objective, require_elbo, scored


@dataclasses.dataclass(frozen=True)
class GenMD4Objective(Objective):
    """The masked process with a learned schedule a token id; two masks a row and the RLOO gradient (`core.genmd4`)."""

    schedule: genmd4.VectorSchedule = genmd4.VectorSchedule()  # noqa: RUF009 (frozen)
    initial_power: float = 1.0

    def __post_init__(self):
        super().__post_init__()
        require_elbo(self)

    def train_flops(self, rows, length):
        return 2 * super().train_flops(rows, length)

    def init(self, key):
        raw = self.schedule.init(self.network.head_size, self.initial_power)
        return {**super().init(key), "schedule": raw}

    def loss_at(self, trainable, batch, key, rows, u):
        powers = self.schedule.powers(trainable["schedule"])
        t, weight = levels.times(self.law, u, self.schedule.time_min)
        keys = self.noise_keys(key, rows)
        per_token, per_row, log_q = [], [], []
        for draw in range(2):
            own = jax.vmap(jax.random.fold_in, in_axes=(0, None))(keys, draw)
            own_key = jax.random.fold_in(key, SECOND) if draw else key
            rate, masked = self._rate(trainable, powers, batch, own_key, own, rows, t)
            per_token.append(jnp.where(scored(batch), weight[:, None] * rate, 0.0))
            per_row.append(per_token[-1].sum(-1))
            log_q.append(self.schedule.log_prob(powers, batch["tokens"], masked, t, batch["noise_mask"]))
        return LossParts.of(
            scored(batch),
            surrogate=genmd4.rloo_surrogate(*per_row, *log_q).sum(),
            diffusion=0.5 * (per_token[0] + per_token[1]),
            reconstruction=self.schedule.reconstruction(powers, batch["tokens"]),
        )

    def _rate(self, trainable, powers, batch, key, keys, rows, t):
        """[B, L] each: the integrand L(t) under one mask a row, and the mask, which takes no gradient."""
        noisy, masked, prediction = self._masked(trainable, powers, batch, key, keys, rows, t)
        reduced = self.reduce(prediction, target=batch["tokens"], values=powers)
        return self.schedule.nelbo_rate(powers, reduced, batch["tokens"], masked, t), masked

    def _masked(self, trainable, powers, batch, key, keys, rows, t):
        """Rows masked at time t, where they are, and the denoiser's prediction for them."""
        mask_id, noise_mask = self.process.mask_id, batch["noise_mask"]
        noisy = self.schedule.corrupt(keys, jax.lax.stop_gradient(powers), batch["tokens"], t, mask_id, noise_mask)
        return noisy, (noisy == mask_id) & noise_mask, self.denoise(trainable, batch, noisy, t, key, rows)


@dataclasses.dataclass(frozen=True)
class GenMD4Bound(GenMD4Objective):
    """What a model trained by GenMD4 costs: the bound of the chain that samples from it, with its learned schedule.

    ``loss_at`` is the diffusion term over [time_min, 1] from one mask a row, ``end_terms`` what is left: the tokens
    masked at time_min, guessed by the denoiser. The schedule has eps = 0, so that the prior term is exactly zero.
    """

    schedule: genmd4.VectorSchedule = genmd4.VectorSchedule(eps=0.0)  # noqa: RUF009 (frozen)

    def loss_at(self, trainable, batch, key, rows, u):
        powers = self.schedule.powers(trainable["schedule"])
        t, weight = levels.times(self.law, u, self.schedule.time_min)
        rate, _ = self._rate(trainable, powers, batch, key, self.noise_keys(key, rows), rows, t)
        return LossParts.of(scored(batch), diffusion=weight[:, None] * rate)

    def end_terms(self, trainable, batch, key, rows) -> LossParts:
        """-log mu of the tokens masked at time_min; the prior is zero."""
        powers = self.schedule.powers(trainable["schedule"])
        t = jnp.full(rows.shape, self.schedule.time_min, jnp.float32)
        _, masked, prediction = self._masked(trainable, powers, batch, key, self.noise_keys(key, rows), rows, t)
        reduced = self.reduce(prediction, target=batch["tokens"])
        return LossParts.of(scored(batch), reconstruction=jnp.where(masked, -reduced.target, 0.0))
