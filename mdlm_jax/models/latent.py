"""A latent that a network reads, so that its law is a mixture of products (Di4C, arXiv 2410.08709):

    p(x | x_t) = E_{lambda ~ U[0, 1]} prod_i p(x_i | x_t, lambda)
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from mdlm_jax.models.config import TransformerConfig
from mdlm_jax.models.layers import bias, fan_in, weight


class LatentEmbedding(nn.Module):
    """[B] latents and [B, L] positions -> [B, L, D], to be added to every token's input.

    second silu(first w + bias), with the F = ``latent`` waves cos(pi k lambda), k = 1..F, of the latent, and as many
    cos and sin(pi i / 10000^(2 j / F)), j = 0..F/2 - 1, of the position i. Of the latent alone, all masks of an empty
    canvas would be alike to a network with rotary positions, and it could say nothing of one that it does not say of
    all. Fresh weights make components differ much: where all are equal no gradient tells them apart, and near there
    what one can learn is lost in the noise of what all do.

    The paper appends the embedding of the latent as one more token. Added, it needs no place in caches, segments and
    meshes that split the length, and windows that are read beside a cache see the latent of their own step.
    """

    config: TransformerConfig

    @nn.compact
    def __call__(self, latent: jax.Array, positions: jax.Array) -> jax.Array:
        c, features = self.config, self.config.latent
        first = weight(self, "first", (2, features, c.d_model), (None, None, "condition"), fan_in(2 * features, 4.0))
        second = weight(self, "second", (c.d_model, c.d_model), ("condition", "norm"), fan_in(c.d_model))
        of_latent = jnp.cos(np.pi * latent.astype(jnp.float32)[:, None] * jnp.arange(1, features + 1)) @ first[0]
        of_position = _waves(positions, features) @ first[1] + bias(self, "bias", (c.d_model,), ("condition",),
                                                                    first.dtype)
        return (jax.nn.silu(of_latent[:, None] + of_position) @ second).astype(jnp.dtype(c.dtype))


def _waves(positions: jax.Array, features: int) -> jax.Array:
    """[B, L, F] float32."""
    frequency = np.pi * 10000.0 ** (-np.arange(features // 2, dtype=np.float32) / (features // 2))
    angle = positions.astype(jnp.float32)[..., None] * frequency
    return jnp.concatenate([jnp.cos(angle), jnp.sin(angle)], axis=-1)
