"""The attention branch: projections, norms of heads, rotation, cache, and the backend that attends."""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from mdlm_jax.core.prediction import Asked
from mdlm_jax.models import cache as caches
from mdlm_jax.models import rotary
from mdlm_jax.models.attention.dispatch import attend
from mdlm_jax.models.attention.visibility import Visibility
from mdlm_jax.models.config import TransformerConfig
from mdlm_jax.models.layers import add_bias, bias, fan_in, product, rms_normalise, weight

KeyValue = tuple[jax.Array, jax.Array]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Surroundings:
    """What all layers share: rotary tables (None without), who sees whom, where a window starts in the cache."""

    tables: rotary.Tables | None
    visibility: Visibility
    start: Asked


class Attention(nn.Module):
    """x [B, L, D], cached (keys, values) [B, S, K, H] or None -> ([B, L, D], the new keys and values or None)."""

    config: TransformerConfig

    @nn.compact
    def __call__(self, x: jax.Array, around: Surroundings, cached: KeyValue | None):
        c = self.config
        query, key = self._heads("query", x, c.heads), self._heads("key", x, c.kv_heads)
        value = self._heads("value", x, c.kv_heads)
        if c.qk_norm:
            query, key = self._head_norm("query_norm", query), self._head_norm("key_norm", key)
        if around.tables is not None:
            query, key = (rotary.rotate(y, around.tables, c.rope.interleaved) for y in (query, key))
        if cached is not None:
            key, value = (caches.constrain_layer(caches.write(slots, y, around.start))
                          for slots, y in zip(cached, (key, value), strict=True))
            cached = key, value
            key, value = key.astype(x.dtype), value.astype(x.dtype)
        context = checkpoint_name(attend(c.backend, query, key, value, around.visibility), "context")
        shape, axes = (c.heads, c.head_dim, c.d_model), ("heads", "head_dim", "embed")
        init = fan_in(c.heads * c.head_dim, (2 * c.layers) ** -0.5)
        y = product(self, "out", context.reshape(*x.shape[:2], -1), shape, axes, init, contracted=2)
        if c.out_bias:
            y = add_bias(y, bias(self, "out_bias", (c.d_model,), ("norm",), jnp.float32))
        return y, cached

    def _heads(self, name: str, x: jax.Array, heads: int) -> jax.Array:
        """[B, L, D] -> [B, L, heads, H]."""
        c = self.config
        axis = "heads" if name == "query" else "kv_heads"
        shape = (c.d_model, heads, c.head_dim)
        y = product(self, name, x, shape, ("embed", axis, "head_dim"), fan_in(c.d_model))
        y = y.reshape(*x.shape[:2], heads, c.head_dim)
        return add_bias(y, bias(self, f"{name}_bias", shape[1:], (axis, "head_dim"), jnp.float32)) if c.qkv_bias else y

    def _head_norm(self, name: str, x: jax.Array) -> jax.Array:
        scale = weight(self, name, x.shape[-1:], ("head_dim",), nn.initializers.ones)
        normal = rms_normalise(x, self.config.norm_eps)
        return (normal * scale.astype(normal.dtype)).astype(x.dtype)
