"""What all objectives share: levels, the run of the network, the reduction, and which tokens count."""

import abc
import dataclasses
from collections.abc import Callable
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp

from mdlm_jax.core import draws, levels, weights
from mdlm_jax.core.keys import row_keys
from mdlm_jax.core.loss_parts import LossParts
from mdlm_jax.core.prediction import Asked, Prediction
from mdlm_jax.core.process import Process
from mdlm_jax.core.reduction import Reduced, chunk_length
from mdlm_jax.models import api, flops, vocabulary
from mdlm_jax.models.conditioning import NO_CLASS
from mdlm_jax.models.config import TransformerConfig
from mdlm_jax.models.moe.routing import RouterStats, balance_loss, z_loss

LEVEL, NOISE, TIME, DROPOUT, SECOND, EDIT, DRAFT, TURNS, CLASS, LATENT = range(10)  # streams folded into the step's key


class Routers(NamedTuple):
    """What the routers of expert layers add to the summed loss, and their sums over tokens; None without experts."""

    loss: Asked = None
    stats: RouterStats | Any = None

    def __add__(self, other: "Routers") -> "Routers":  # type: ignore[override]  # sums, where tuples would be joined
        return self if self.loss is None else Routers(self.loss + other.loss, self.stats + other.stats)


LEVEL_BINS = 4


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
      class_dropout: share of rows whose class the network is not told, where it has classes.
    """

    network: TransformerConfig
    process: Process
    law: levels.Law = levels.Uniform()  # noqa: RUF009 (frozen)
    coupling: str = "antithetic"
    weighting: weights.Weighting = weights.Elbo()  # noqa: RUF009 (frozen)
    head_budget: int = 1 << 22
    data_shards: int = 1
    class_dropout: float = 0.0

    one_level = True  # whether a row has one noise level
    # What `loss_at` leaves out of a bound: (trainable, batch, key, rows) -> LossParts
    end_terms: ClassVar[Callable[..., LossParts] | None] = None

    def __post_init__(self):
        weights.check(self.weighting, self.law)

    @property
    def twin(self) -> TransformerConfig | None:
        """The shape of the autoregressive network beside it, of objectives that have one."""
        return None

    @property
    def exact(self) -> bool:
        """Whether the loss is the same whatever the noise, so that one draw measures it."""
        return False

    def at(self, step: int) -> "Objective":
        """The objective of the step after ``step`` steps are done; steps with equal objectives share a compilation."""
        del step
        return self

    def init(self, key: jax.Array) -> dict:
        """Fresh trainable parameters."""
        return {"network": api.init(self.network, key)}

    def head_positions(self, rows: int, length: int) -> int:
        """Positions of a batch that pass through the head."""
        return rows * length

    def train_flops(self, rows: int, length: int) -> int:
        """Model FLOPs of one step on ``rows`` rows, forward and backward."""
        return self.network_flops(rows, length, self.head_positions(rows, length))

    def network_flops(self, rows: int, length: int, head_positions: int) -> int:
        """Of ``rows`` rows through the network, forward and backward."""
        return flops.train_flops(self.network, rows * length, length, head_positions)

    def loss(self, trainable: dict, batch: dict, key: jax.Array, rows: jax.Array, total_rows: int) -> LossParts:
        """The loss of some rows of a step's batch.

        Args:
          trainable: what `init` gave.
          batch: tokens, attention_mask, positions, noise_mask, loss_mask, each [B, L]; label [B] for networks with
            classes.
          key: the step's key.
          rows: [B] indices of these rows in the step's batch of ``total_rows``.
        """
        return self.loss_at(trainable, batch, key, rows, self._unit_levels(key, rows, total_rows))

    def by_level(self, parts: LossParts, key: jax.Array, rows: jax.Array, total_rows: int) -> jax.Array | None:
        """[2, LEVEL_BINS]: the sum of `loss`'s result and its tokens by the noise, least first; None without levels.

        The bins have equal probability under the law of the level.
        """
        if not self.one_level:
            return None
        bins = jax.nn.one_hot(self.level_bins(key, rows, total_rows), LEVEL_BINS, dtype=jnp.float32)
        return jnp.stack([parts.per_row() @ bins, parts.row_counts() @ bins])

    def level_bins(self, key: jax.Array, rows: jax.Array, total_rows: int) -> jax.Array:
        """The bin of each row of `loss`'s result, int32."""
        return (self._unit_levels(key, rows, total_rows) * LEVEL_BINS).astype(jnp.int32)

    def _unit_levels(self, key: jax.Array, rows: jax.Array, total_rows: int) -> jax.Array:
        return levels.unit_levels(jax.random.fold_in(key, LEVEL), total_rows, self.coupling, rows)

    @abc.abstractmethod
    def loss_at(self, trainable: dict, batch: dict, key: jax.Array, rows: jax.Array, u: jax.Array) -> LossParts:
        """The loss at given levels: u [B] in (0, 1) is where each row stands in the law of the noise level."""

    def noise_keys(self, key, rows, stream=NOISE):
        return row_keys(jax.random.fold_in(key, stream), rows)

    def denoise(self, trainable, batch, noisy, time, key, rows) -> Prediction:
        return self.run(trainable, batch, noisy, time, key, rows)[0]

    def run(self, trainable, batch, noisy, time, key, rows, **more) -> tuple[Prediction, Routers]:
        """The prediction, and what the routers say. ``more``: further arguments of `api.forward`."""
        dropout_key = jax.random.fold_in(jax.random.fold_in(key, DROPOUT), rows[0])
        inputs = {
            "time": time if self.network.time_conditioning else None,
            "condition": self.condition(batch, key, rows),
            "latent": self.latent(key, rows) if self.network.latent else None,
            "attention_mask": batch["attention_mask"],
            "positions": batch["positions"],
            "dropout_key": dropout_key,
        } | more
        if self.network.moe is None:
            return api.apply(self.network, trainable["network"], noisy, **inputs), Routers()
        output, moe = api.forward(self.network, trainable["network"], noisy, **inputs), self.network.moe
        per_token = moe.balance_loss * balance_loss(output.router) + moe.z_loss * z_loss(output.router)
        return output.prediction, Routers(per_token.sum() * scored(batch).sum(), output.router)

    def condition(self, batch: dict, key: jax.Array, rows: jax.Array) -> jax.Array | None:
        """[B] int32: what the network is told of each row's class; None for networks without classes."""
        if not self.network.classes or not self.class_dropout:
            return batch["label"] if self.network.classes else None
        keys = self.noise_keys(key, rows, CLASS)
        hidden = jax.vmap(lambda key: jax.random.bernoulli(key, self.class_dropout))(keys)
        return jnp.where(hidden, NO_CLASS, batch["label"])

    def latent(self, key: jax.Array, rows: jax.Array) -> jax.Array:
        """[B]: what a network that reads a latent is told of each row, where the objective has no more to say. Its loss
        is then on average above that of the mixture, as log is concave."""
        return jax.vmap(jax.random.uniform)(self.noise_keys(key, rows, LATENT))

    def reduce(self, prediction: Prediction, **wanted) -> Reduced:
        return vocabulary.reduce(prediction, suppress=self.process.mask_id, chunk=self._chunk(prediction), **wanted)

    def own_draws(self, prediction: Prediction, key: jax.Array, rows: jax.Array, turn: int) -> jax.Array:
        """[B, L]: a draw from the network's own law at every position, without gradient."""
        return self.drawn(prediction, key, rows, turn, ("sample",)).sample

    def drawn(self, prediction: Prediction, key: jax.Array, rows: jax.Array, turn: int, wants: tuple[str, ...],
              **law) -> draws.Drawn:
        """What ``wants`` names of the network's own law at every position, without gradient. ``law``: further arguments
        of `core.draws.draw`."""
        keys = self.noise_keys(turn_key(key, turn + 1), rows, DRAFT)
        return draws.draw(prediction, keys, suppress=self.process.mask_id, chunk=self._chunk(prediction), wants=wants,
                          **law)

    def _chunk(self, prediction: Prediction) -> int:
        rows_here = -(-prediction.hidden.shape[0] // self.data_shards)
        return chunk_length(rows_here, prediction.num_columns, self.head_budget)


def turn_key(key: jax.Array, turn: int) -> jax.Array:
    """The step's key as a turn of several sees it, the first as it is; none of the streams' keys is among them."""
    return jax.random.fold_in(jax.random.fold_in(key, TURNS), turn) if turn else key


def scored(batch) -> jax.Array:
    """[B, L] bool: the tokens a loss counts."""
    return batch["loss_mask"] & batch["noise_mask"]


def require_elbo(objective: Objective) -> None:
    if not objective.weighting.is_bound:
        raise ValueError(f"weighting={objective.weighting}: {type(objective).__name__} has only its own weight; leave "
                         "it at Elbo()")
