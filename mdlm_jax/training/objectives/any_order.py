"""Any order: every token given those before it in a random order, in one forward pass."""

import dataclasses

import jax.numpy as jnp

from mdlm_jax.core import counts
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
        """A query sees (L + 1) / 2 keys on average, in either half."""
        return flops.train_flops(self.network, 2 * rows * length, (length + 1) // 2, head_positions)

    def loss_at(self, trainable, batch, key, rows, u):
        del u
        tokens, noise_mask = batch["tokens"], batch["noise_mask"]
        ranks = counts.random_ranks(self.noise_keys(key, rows), noise_mask)
        order = jnp.where(noise_mask, ranks + 1, 0).astype(jnp.int32)
        masks = jnp.where(noise_mask, jnp.asarray(self.process.mask_id, tokens.dtype), tokens)
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
