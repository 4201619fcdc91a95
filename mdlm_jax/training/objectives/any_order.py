"""Any order: every token given those before it in an order of the row, in one forward pass."""

import dataclasses

import jax
import jax.numpy as jnp

from mdlm_jax.core import counts, lattice
from mdlm_jax.core.loss_parts import LossParts
from mdlm_jax.core.prediction import Prediction
from mdlm_jax.models import flops
from mdlm_jax.training.objectives.base import Objective, scored


@dataclasses.dataclass(frozen=True)
class AnyOrderObjective(Objective):
    """-log p(x_{s(i)} | x_{s(1)}, ..., x_{s(i-1)}) for a uniformly random order s of the positions noise may touch.

    The log-likelihood under each order is exact, and its mean over orders bounds that of the mixture of all (any-subset
    models: AS-ARM, arXiv 2504.20456; XLNet, 1906.08237). The other positions come first and see each other. The
    network sees [masks; clean] with the order under the two-stream contract: a mask sees itself and the clean tokens
    before it, a clean token the clean tokens up to itself. The masked process by counts has the same mean with L times
    fewer terms a pass.
    """

    one_level = False

    def __post_init__(self):
        super().__post_init__()
        if (self.network.attention, self.network.block_length) != ("two_stream", 1) or self.network.time_conditioning:
            raise ValueError(f"network={self.network}: must take two streams with blocks of one token, and no time")

    def network_flops(self, rows: int, length: int, head_positions: int) -> int:
        return flops.train_flops(self.network, 2 * rows * length, self.seen(length), head_positions)

    def seen(self, length: int) -> int:
        """Keys that a query of either half sees on average."""
        return (length + 1) // 2

    def order(self, keys: jax.Array, u: jax.Array, noise_mask: jax.Array) -> jax.Array:
        """[B, L] int32: when each token comes, from 1 on; 0: it is given, and no loss counts it.

        Args:
          keys: [B]. u: [B] in (0, 1), levels. noise_mask: [B, L] bool.
        """
        del u
        return jnp.where(noise_mask, counts.random_ranks(keys, noise_mask) + 1, 0).astype(jnp.int32)

    def loss_at(self, trainable, batch, key, rows, u):
        tokens = batch["tokens"]
        order = self.order(self.noise_keys(key, rows), u, batch["noise_mask"])
        masks = jnp.where(order > 0, jnp.asarray(self.process.mask_id, tokens.dtype), tokens)
        batch = batch | {"loss_mask": batch["loss_mask"] & (order > 0)}
        twice = {name: jnp.tile(batch[name], (1, 2)) for name in ("attention_mask", "positions")}
        prediction, routers = self.run(
            trainable,
            batch | twice,
            jnp.concatenate([masks, tokens], axis=1),
            None,
            key,
            rows,
            order=jnp.tile(order, (1, 2)),
        )
        noisy = Prediction(prediction.hidden[:, : tokens.shape[1]], prediction.head)
        return LossParts.of(scored(batch), *routers, diffusion=-self.reduce(noisy, target=tokens).target)


@dataclasses.dataclass(frozen=True)
class AnySubsetObjective(AnyOrderObjective):
    """-log p(x_i | prompt, targets left of i), of a random prompt and the rest of the row: AS-ARM, arXiv 2504.20456.

    The prompt is a share, uniform in [low, high], of the positions noise may touch, uniformly chosen; it comes first,
    sees itself and is not counted (`core.lattice`). Given a prompt the sum is the exact -log p(targets | prompt); its
    mean over prompts, a target token, is no bound of a row's likelihood unless high = 0: then it is the chain rule from
    left to right. The paper draws 1 to 10 % of a row of text; its warm-up from 85 % is another run with
    train.init_from.
    """

    low: float = 0.0
    high: float = 0.0

    def __post_init__(self):
        super().__post_init__()
        if not 0 <= self.low <= self.high <= 1:
            raise ValueError(f"low={self.low}, high={self.high}: must be shares of a row, 0 <= low <= high <= 1")

    @property
    def exact(self) -> bool:
        return self.high == 0

    def seen(self, length: int) -> int:
        return flops.lattice_seen(length, self.low, self.high)

    def order(self, keys: jax.Array, u: jax.Array, noise_mask: jax.Array) -> jax.Array:
        share = self.low + (self.high - self.low) * u
        return lattice.order(lattice.targets(keys, share, noise_mask))
