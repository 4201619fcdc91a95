"""Block diffusion: a masked process in every block, given the clean blocks before it."""

import dataclasses

import jax
import jax.numpy as jnp

from mdlm_jax.core import block_counts, counts
from mdlm_jax.core.prediction import Prediction
from mdlm_jax.models import flops
from mdlm_jax.training.objectives.base import Objective
from mdlm_jax.training.objectives.count import CountObjective


@dataclasses.dataclass(frozen=True)
class BlockObjective(CountObjective):
    """Block diffusion (BD3-LM, arXiv 2503.09573) by number of masks in each block: the bound of `core.block_counts`.

    The network sees [noisy; clean] under the two-stream contract, and the loss is read off the noisy half. A row that
    is one block needs no clean half, and gets none: the network is then bidirectional, which is the same function.

    Attributes:
      sizes: the block length by step, ((length, steps), ...), the last for ever (LLaDA2's warm-up, stable phase and
        decay, 2512.15745); empty: ``network.block_length`` throughout. `at` gives the objective of a step.
    """

    sizes: tuple[tuple[int, int], ...] = ()
    one_level = False  # each block has its own

    def __post_init__(self):
        super().__post_init__()
        if self.network.attention != "two_stream" or self.network.time_conditioning:
            raise ValueError(f"network={self.network}: must take two streams, and one level a block")
        if not self.process.masked_only or self.complementary:
            raise ValueError("process, complementary: must be masked, and rows paired by ``both`` alone")

    @property
    def exact(self) -> bool:
        """Blocks of one token are always masked: no noise."""
        return self.network.block_length == 1

    def at(self, step: int) -> Objective:
        size, begin = self.network.block_length, 0
        for stage, steps in self.sizes:
            if step >= begin:
                size = stage
            begin += steps
        return dataclasses.replace(self, network=dataclasses.replace(self.network, block_length=size), sizes=())

    def blocks(self, length: int) -> int:
        """How many a row has.

        Raises:
          ValueError: a length that blocks do not divide.
        """
        size = self.network.block_length
        if length % size:
            raise ValueError(f"block_length={size}: must divide the length {length}")
        return length // size

    def pair_slots(self, length: int) -> int:
        if self.both:
            return length
        return min(2 * length, self.blocks(length) * counts.num_slots(self.network.block_length, self.law))

    def network_flops(self, rows: int, length: int, head_positions: int) -> int:
        """A query of block b sees (b + 1) K keys, (L + K) / 2 on average, in either half."""
        if self.blocks(length) == 1:
            return super().network_flops(rows, length, head_positions)
        seen = (length + self.network.block_length) // 2
        return flops.train_flops(self.network, 2 * rows * length, seen, head_positions)

    def draws(self, keys: jax.Array, u: jax.Array, noise_mask: jax.Array) -> tuple[counts.CountDraw, ...]:
        levels = block_counts.block_levels(u, self.blocks(noise_mask.shape[1]), self.coupling == "antithetic")
        return block_counts.draw_block_counts(
            keys, levels, noise_mask, self.law, weighting=self.weighting, both=self.both
        )

    def run(self, trainable, batch, noisy, time, key, rows, **more):
        length = noisy.shape[1]
        if self.blocks(length) == 1:
            whole = dataclasses.replace(self.network, attention="bidirectional", block_length=1)
            return _plain(self, whole).run(trainable, batch, noisy, time, key, rows)
        twice = {name: jnp.tile(batch[name], (1, 2)) for name in ("attention_mask", "positions")}
        streams = jnp.concatenate([noisy, batch["tokens"]], axis=1)
        prediction, routers = super().run(trainable, batch | twice, streams, time, key, rows)
        return Prediction(prediction.hidden[:, :length], prediction.head), routers


def _plain(objective: BlockObjective, network) -> CountObjective:
    return CountObjective(network, objective.process, data_shards=objective.data_shards,
                          class_dropout=objective.class_dropout)
