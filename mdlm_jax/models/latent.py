"""A latent that a network reads, so that its law is a mixture of products (Di4C, arXiv 2410.08709):

    p(x | x_t) = E_{lambda ~ U[0, 1]} prod_i p(x_i | x_t, lambda)
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from mdlm_jax.models import rotary
from mdlm_jax.models.config import TransformerConfig
from mdlm_jax.models.layers import bias, fan_in, weight


class LatentEmbedding(nn.Module):
    """[B] latents and [B, L] positions -> [B, L, D], to be added to every token's input.

    R_i second silu(first w + bias) with w_k = cos(pi k lambda), k = 1..``latent``, and R_i the rotation by the position
    that queries and keys have too, over all of D. Without it all rows of a canvas of masks would be alike, whatever the
    latent, and could say nothing of one position that they do not say of all; learned positions do as well.
    ``second`` is zero at the start: a network that begins with the weights of another is that one, exactly.

    The paper appends the embedding as one more token. Added, it needs no place in caches, segments and meshes that
    split the length, and windows that are read beside a cache see the latent of their own step.
    """

    config: TransformerConfig

    @nn.compact
    def __call__(self, latent: jax.Array, positions: jax.Array) -> jax.Array:
        c, features = self.config, self.config.latent
        number = jnp.arange(1, features + 1, dtype=jnp.float32)
        waves = jnp.cos(np.pi * latent.astype(jnp.float32)[:, None] * number) / number
        first = weight(self, "first", (features, c.d_model), (None, "condition"), fan_in(features))
        second = weight(self, "second", (c.d_model, c.d_model), ("condition", "norm"), nn.initializers.zeros)
        hidden = jax.nn.silu(waves @ first + bias(self, "first_bias", (c.d_model,), ("condition",), first.dtype))
        made = (hidden @ second)[:, None, None]
        if c.rope.theta:
            made = rotary.rotate(made, rotary.tables(c.rope, c.d_model, positions), interleaved=False)
        return made[:, :, 0].astype(jnp.dtype(c.dtype))
