"""Objectives: from clean rows and a key to `LossParts`.

An objective draws the noise level and the noise, runs the network and reduces its prediction to nats per token. It is a
frozen dataclass; parameters come in as a tree, so one trainer runs them all. All noise belongs to (key, row index):
microbatches, hosts and restarts change nothing. (Dropout belongs to the key and the microbatch.)
"""

import abc
import dataclasses

import jax
import jax.numpy as jnp

from mdlm_jax.core import counts, genmd4, levels, losses, weights
from mdlm_jax.core.keys import row_keys
from mdlm_jax.core.loss_parts import LossParts
from mdlm_jax.core.prediction import Prediction
from mdlm_jax.core.process import Process
from mdlm_jax.core.reduction import Reduced, chunk_length
from mdlm_jax.core.schedules import SigmaSchedule
from mdlm_jax.models import api, flops
from mdlm_jax.models.config import TransformerConfig
from mdlm_jax.models.moe.routing import balance_loss, z_loss
from mdlm_jax.models.vocabulary import reduce

_LEVEL, _NOISE, _TIME, _DROPOUT, _SECOND = range(5)  # streams folded into the step's key


@dataclasses.dataclass(frozen=True)
class Objective(abc.ABC):
    """What all diffusion objectives share.

    Attributes:
      network: the denoiser's shape.
      process: the noise.
      law, coupling: of the noise levels, see `core.levels`.
      weighting: how much a corrupted token's loss counts, see `core.weights`; a bound with `weights.Elbo` only.
      head_budget: logits alive at once on one device.
      data_shards: devices that share a batch's rows.
    """

    network: TransformerConfig
    process: Process
    law: levels.Law = levels.Uniform()  # noqa: RUF009 (frozen)
    coupling: str = "antithetic"
    weighting: weights.Weighting = weights.Elbo()  # noqa: RUF009 (frozen)
    head_budget: int = 1 << 22
    data_shards: int = 1

    def __post_init__(self):
        weights.check(self.weighting, self.law)

    def init(self, key: jax.Array) -> dict:
        """Fresh trainable parameters."""
        return {"network": api.init(self.network, key)}

    def head_positions(self, rows: int, length: int) -> int:
        """Positions of a batch that pass through the head."""
        return rows * length

    def train_flops(self, rows: int, length: int) -> int:
        """Model FLOPs of one step on ``rows`` rows, forward and backward."""
        return flops.train_flops(self.network, rows * length, length, self.head_positions(rows, length))

    def loss(self, trainable: dict, batch: dict, key: jax.Array, rows: jax.Array, total_rows: int) -> LossParts:
        """The loss of some rows of a step's batch.

        Args:
          trainable: what `init` gave.
          batch: tokens, attention_mask, positions, noise_mask, loss_mask, each [B, L].
          key: the step's key.
          rows: [B] indices of these rows in the step's batch of ``total_rows``.
        """
        u = levels.unit_levels(jax.random.fold_in(key, _LEVEL), total_rows, self.coupling, rows)
        return self.loss_at(trainable, batch, key, rows, u)

    @abc.abstractmethod
    def loss_at(self, trainable: dict, batch: dict, key: jax.Array, rows: jax.Array, u: jax.Array) -> LossParts:
        """The loss at given levels: u [B] in (0, 1) is where each row stands in the law of the noise level."""

    def _noise_keys(self, key, rows, stream=_NOISE):
        return row_keys(jax.random.fold_in(key, stream), rows)

    def _denoise(self, trainable, batch, noisy, time, key, rows) -> Prediction:
        return self._run(trainable, batch, noisy, time, key, rows)[0]

    def _run(self, trainable, batch, noisy, time, key, rows) -> tuple[Prediction, jax.Array | None]:
        """The prediction, and what the routers of expert layers add to the summed loss (None without experts)."""
        dropout_key = jax.random.fold_in(jax.random.fold_in(key, _DROPOUT), rows[0])
        inputs = {
            "time": time if self.network.time_conditioning else None,
            "attention_mask": batch["attention_mask"],
            "positions": batch["positions"],
            "dropout_key": dropout_key,
        }
        if self.network.moe is None:
            return api.apply(self.network, trainable["network"], noisy, **inputs), None
        output, moe = api.forward(self.network, trainable["network"], noisy, **inputs), self.network.moe
        per_token = moe.balance_loss * balance_loss(output.router) + moe.z_loss * z_loss(output.router)
        return output.prediction, per_token.sum() * _scored(batch).sum()

    def _reduce(self, prediction: Prediction, **wanted) -> Reduced:
        rows_here = -(-prediction.hidden.shape[0] // self.data_shards)
        chunk = chunk_length(rows_here, prediction.num_columns, self.head_budget)
        return reduce(prediction, suppress=self.process.mask_id, chunk=chunk, **wanted)


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
            self._noise_keys(key, rows),
            u,
            batch["noise_mask"],
            self.law,
            weighting=self.weighting,
            complementary=self.complementary,
        )
        noisy = jnp.where(draw.masked, jnp.asarray(self.process.mask_id, tokens.dtype), tokens)
        time = None
        if self.network.time_conditioning:
            time = counts.time_given_count(self._noise_keys(key, rows, _TIME), draw, self.process.schedule)
        prediction, routers = self._run(trainable, batch, noisy, time, key, rows)
        log_prob = self._target_log_prob(prediction, tokens, draw.masked)
        loss = jnp.where(draw.masked, -draw.weight[:, None] * log_prob, 0.0)
        return LossParts.of(_scored(batch), routers, diffusion=loss)

    def _target_log_prob(self, prediction, tokens, masked):
        if not self.half_head:
            return self._reduce(prediction, target=tokens).target
        slots = counts.pair_slots(masked, counts.num_slots(tokens.shape[1], self.law))
        gathered = Prediction(counts.gather_pairs(prediction.hidden, slots), prediction.head)
        reduced = self._reduce(gathered, target=counts.gather_pairs(tokens, slots))
        return counts.scatter_pairs(reduced.target, slots, tokens.shape[0])


@dataclasses.dataclass(frozen=True)
class ContinuousObjective(Objective):
    """The continuous-time NELBO for any mixing: the integrand at one time a row, over [time_min, 1]."""

    time_min: float = 1e-3

    def loss_at(self, trainable, batch, key, rows, u):
        tokens = batch["tokens"]
        t, weight = levels.times(self.law, u, self.time_min)
        weight = weight[:, None] if self.weighting.is_bound else losses.level_weight(self.process, t, self.weighting)
        noisy = self.process.corrupt(self._noise_keys(key, rows), tokens, t, batch["noise_mask"])
        prediction, routers = self._run(trainable, batch, noisy, t, key, rows)
        reduced = self._reduce(
            prediction, target=tokens, current=noisy, offset=losses.softplus_offset(self.process, t, tokens.shape)
        )
        rate = losses.nelbo_rate(self.process, reduced, tokens, noisy, t)
        return LossParts.of(_scored(batch), routers, diffusion=weight * rate)

    def end_terms(self, trainable, batch, key, rows) -> LossParts:
        """What the diffusion term leaves out: reconstruction from time_min and the prior at t = 1."""
        tokens = batch["tokens"]
        t = jnp.full(rows.shape, self.time_min, jnp.float32)
        noisy = self.process.corrupt(self._noise_keys(key, rows), tokens, t, batch["noise_mask"])
        prediction = self._denoise(trainable, batch, noisy, t, key, rows)
        reduced = self._reduce(prediction, target=tokens, current=noisy)
        return LossParts.of(
            _scored(batch),
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
        _require_elbo(self)

    def loss_at(self, trainable, batch, key, rows, u):
        tokens = batch["tokens"]
        level = self.law.quantile(u)
        step = jnp.clip(jnp.ceil(level * self.num_steps), 1, self.num_steps)
        s, t = (step - 1) / self.num_steps, step / self.num_steps
        noisy = self.process.corrupt(self._noise_keys(key, rows), tokens, t, batch["noise_mask"])
        prediction, routers = self._run(trainable, batch, noisy, t, key, rows)
        reduced = self._reduce(
            prediction, target=tokens, current=noisy, offset=losses.softplus_offset(self.process, s, tokens.shape)
        )
        kl = losses.kl_step(self.process, reduced, tokens, noisy, s, t)
        probability = self.law.bin_probability(step, float(self.num_steps))
        return LossParts.of(_scored(batch), routers, diffusion=kl / probability[:, None])


@dataclasses.dataclass(frozen=True)
class GenMD4Objective(Objective):
    """The masked process with a learned schedule a token id; two masks a row and the RLOO gradient (`core.genmd4`)."""

    schedule: genmd4.VectorSchedule = genmd4.VectorSchedule()  # noqa: RUF009 (frozen)
    initial_power: float = 1.0

    def __post_init__(self):
        super().__post_init__()
        _require_elbo(self)

    def train_flops(self, rows, length):
        return 2 * super().train_flops(rows, length)

    def init(self, key):
        raw = self.schedule.init(self.network.head_size, self.initial_power)
        return {**super().init(key), "schedule": raw}

    def loss_at(self, trainable, batch, key, rows, u):
        powers = self.schedule.powers(trainable["schedule"])
        t, weight = levels.times(self.law, u, self.schedule.time_min)
        keys = self._noise_keys(key, rows)
        per_token, per_row, log_q = [], [], []
        for draw in range(2):
            own = jax.vmap(jax.random.fold_in, in_axes=(0, None))(keys, draw)
            own_key = jax.random.fold_in(key, _SECOND) if draw else key
            rate, masked = self._rate(trainable, powers, batch, own_key, own, rows, t)
            per_token.append(jnp.where(_scored(batch), weight[:, None] * rate, 0.0))
            per_row.append(per_token[-1].sum(-1))
            log_q.append(self.schedule.log_prob(powers, batch["tokens"], masked, t, batch["noise_mask"]))
        return LossParts.of(
            _scored(batch),
            surrogate=genmd4.rloo_surrogate(*per_row, *log_q).sum(),
            diffusion=0.5 * (per_token[0] + per_token[1]),
            reconstruction=self.schedule.reconstruction(powers, batch["tokens"]),
        )

    def _rate(self, trainable, powers, batch, key, keys, rows, t):
        """[B, L] each: the integrand L(t) under one mask a row, and the mask, which takes no gradient."""
        noisy, masked, prediction = self._masked(trainable, powers, batch, key, keys, rows, t)
        reduced = self._reduce(prediction, target=batch["tokens"], values=powers)
        return self.schedule.nelbo_rate(powers, reduced, batch["tokens"], masked, t), masked

    def _masked(self, trainable, powers, batch, key, keys, rows, t):
        """Rows masked at time t, where they are, and the denoiser's prediction for them."""
        mask_id, noise_mask = self.process.mask_id, batch["noise_mask"]
        noisy = self.schedule.corrupt(keys, jax.lax.stop_gradient(powers), batch["tokens"], t, mask_id, noise_mask)
        return noisy, (noisy == mask_id) & noise_mask, self._denoise(trainable, batch, noisy, t, key, rows)


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
        rate, _ = self._rate(trainable, powers, batch, key, self._noise_keys(key, rows), rows, t)
        return LossParts.of(_scored(batch), diffusion=weight[:, None] * rate)

    def end_terms(self, trainable, batch, key, rows) -> LossParts:
        """-log mu of the tokens masked at time_min; the prior is zero."""
        powers = self.schedule.powers(trainable["schedule"])
        t = jnp.full(rows.shape, self.schedule.time_min, jnp.float32)
        _, masked, prediction = self._masked(trainable, powers, batch, key, self._noise_keys(key, rows), rows, t)
        reduced = self._reduce(prediction, target=batch["tokens"])
        return LossParts.of(_scored(batch), reconstruction=jnp.where(masked, -reduced.target, 0.0))


def _scored(batch) -> jax.Array:
    """[B, L] bool: the tokens a loss counts."""
    return batch["loss_mask"] & batch["noise_mask"]


def _require_elbo(objective: Objective) -> None:
    if not objective.weighting.is_bound:
        raise ValueError(f"weighting={objective.weighting}: {type(objective).__name__} has only its own weight, Elbo()")
