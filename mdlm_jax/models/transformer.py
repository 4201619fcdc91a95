"""A bidirectional Llama-style Transformer in Flax Linen: pre-norm, rotary, SwiGLU, grouped heads, optional AdaLN.

Every weight is declared once, by `_weight`, with its logical axes beside its shape; abstract tree, shardings and init
follow from that declaration (`models.api`). Layers are scanned: their weights carry a leading axis ``layers``.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp

from mdlm_jax.core.linear import project
from mdlm_jax.core.prediction import Head, Prediction
from mdlm_jax.models.attention import attend
from mdlm_jax.models.config import TransformerConfig
from mdlm_jax.models.sharding import constrain_rows, gather_weight


def _weight(module: nn.Module, name: str, shape: tuple[int, ...], axes: tuple[str | None, ...], init) -> jax.Array:
    """Declares a float32 parameter with one logical axis name a dimension."""
    return module.param(name, nn.with_logical_partitioning(init, axes), shape, jnp.float32)


def _fan_in(fan: int, scale: float = 1.0):
    return nn.initializers.normal(scale * fan**-0.5)


class RMSNorm(nn.Module):
    """x / rms(x) * scale, computed in float32."""

    eps: float

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        scale = _weight(self, "scale", x.shape[-1:], ("norm",), nn.initializers.ones)
        wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))
        rms = jax.lax.rsqrt(jnp.mean(wide**2, axis=-1, keepdims=True) + self.eps)
        return (wide * rms * scale.astype(wide.dtype)).astype(x.dtype)


def rotary_tables(positions: jax.Array, head_dim: int, theta: float) -> tuple[jax.Array, jax.Array]:
    """cos and sin, [B, L, 1, H/2] float32 each."""
    frequency = theta ** (-jnp.arange(0, head_dim, 2, dtype=jnp.float32) / head_dim)
    angle = positions[..., None, None].astype(jnp.float32) * frequency
    return jnp.cos(angle), jnp.sin(angle)


def rotate(x: jax.Array, tables: tuple[jax.Array, jax.Array]) -> jax.Array:
    """Rotary embedding of x [B, L, N, H] in half-split layout (Llama, GPT-NeoX), in float32."""
    cos, sin = tables
    first, second = jnp.split(x.astype(jnp.promote_types(x.dtype, jnp.float32)), 2, axis=-1)
    rotated = jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)
    return rotated.astype(x.dtype)


class Attention(nn.Module):
    """Bidirectional attention with grouped key/value heads. ``mask``: [B, 1, L, L] bool or None."""

    config: TransformerConfig

    @nn.compact
    def __call__(self, x, tables, mask):
        c = self.config
        d, h = c.d_model, c.head_dim
        q = _weight(self, "query", (d, c.heads, h), ("embed", "heads", "head_dim"), _fan_in(d))
        k = _weight(self, "key", (d, c.kv_heads, h), ("embed", "kv_heads", "head_dim"), _fan_in(d))
        v = _weight(self, "value", (d, c.kv_heads, h), ("embed", "kv_heads", "head_dim"), _fan_in(d))
        out_scale = (2 * c.layers) ** -0.5
        out = _weight(self, "out", (c.heads, h, d), ("heads", "head_dim", "embed"), _fan_in(d, out_scale))
        query, key, value = (_to_heads(x, weight) for weight in (q, k, v))
        query, key = rotate(query, tables), rotate(key, tables)
        context = attend(query, key, value, mask)
        return project(context.reshape(*x.shape[:2], c.heads * h), out.reshape(c.heads * h, d))


def _to_heads(x: jax.Array, weight: jax.Array) -> jax.Array:
    """[B, L, D], [D, N, H] -> [B, L, N, H]."""
    d, heads, h = weight.shape
    return project(x, weight.reshape(d, heads * h)).reshape(*x.shape[:2], heads, h)


class FeedForward(nn.Module):
    """SwiGLU: (silu(x gate) * (x up)) down."""

    config: TransformerConfig

    @nn.compact
    def __call__(self, x):
        c = self.config
        gate = _weight(self, "gate", (c.d_model, c.d_ff), ("embed", "mlp"), _fan_in(c.d_model))
        up = _weight(self, "up", (c.d_model, c.d_ff), ("embed", "mlp"), _fan_in(c.d_model))
        down = _weight(self, "down", (c.d_ff, c.d_model), ("mlp", "embed"), _fan_in(c.d_ff, (2 * c.layers) ** -0.5))
        return project(jax.nn.silu(project(x, gate)) * project(x, up), down)


class Modulation(nn.Module):
    """AdaLN-zero (DiT, arXiv 2212.09748): shift, scale and gate for the two halves of a layer, zero at the start."""

    config: TransformerConfig

    @nn.compact
    def __call__(self, condition):
        c = self.config
        shape, axes = (c.condition_dim, 6, c.d_model), ("condition", None, "norm")
        kernel = _weight(self, "kernel", shape, axes, nn.initializers.zeros)
        parts = jnp.einsum("bc,csd->sbd", condition, kernel.astype(condition.dtype))[:, :, None, :]
        return tuple(parts[:3]), tuple(parts[3:])


class Layer(nn.Module):
    """One block, in the (carry, out) form of `nn.scan`."""

    config: TransformerConfig
    deterministic: bool

    @nn.compact
    def __call__(self, x, tables, mask, condition):
        c = self.config
        parts = Modulation(c, name="modulation")(condition) if c.time_conditioning else (None, None)
        x = self._residual(x, "attention", lambda y: Attention(c, name="attention")(y, tables, mask), parts[0])
        x = self._residual(x, "mlp", FeedForward(c, name="mlp"), parts[1])
        return constrain_rows(x), None

    def _residual(self, x, name, branch, modulation):
        y = RMSNorm(self.config.norm_eps, name=f"{name}_norm")(x)
        if modulation is not None:
            shift, scale, _ = modulation
            y = y * (1 + scale) + shift
        y = branch(y)
        y = nn.Dropout(self.config.dropout, deterministic=self.deterministic, name=f"{name}_dropout")(y)
        return x + (y if modulation is None else modulation[2] * y)


class TimeEmbedding(nn.Module):
    """Sinusoids of the noise level through a two-layer perceptron: [B] in [0, 1] -> [B, C]."""

    config: TransformerConfig

    @nn.compact
    def __call__(self, time):
        c = self.config.condition_dim
        frequency = 1000.0 * 10000.0 ** (-jnp.arange(c // 2, dtype=jnp.float32) / (c // 2))
        angle = time.astype(jnp.float32)[:, None] * frequency
        features = jnp.concatenate([jnp.cos(angle), jnp.sin(angle)], axis=-1)
        first = _weight(self, "first", (features.shape[-1], c), (None, "condition"), _fan_in(c))
        second = _weight(self, "second", (c, c), (None, "condition"), _fan_in(c))
        hidden = jax.nn.silu(features @ first) @ second
        return jax.nn.silu(hidden).astype(jnp.dtype(self.config.dtype))


class Transformer(nn.Module):
    """tokens [B, L] -> Prediction(hidden [B, L, D], head)."""

    config: TransformerConfig
    deterministic: bool = True

    @nn.compact
    def __call__(self, tokens, time, attention_mask, positions):
        c = self.config
        dtype = jnp.dtype(c.dtype)
        # Unit scale keeps the token visible beside what the layers add; a tied table is also the head and starts small.
        embedding_init = nn.initializers.normal(0.02 if c.tied else 1.0)
        table = _weight(self, "embedding", (c.vocab_size, c.d_model), ("vocab", "embed"), embedding_init)
        x = constrain_rows(jnp.take(gather_weight(table, ("vocab", "embed")).astype(dtype), tokens, axis=0))
        tables = rotary_tables(positions, c.head_dim, c.rope_theta)
        condition = TimeEmbedding(c, name="time")(time) if c.time_conditioning else None
        layer = nn.remat(Layer, prevent_cse=False) if c.remat else Layer
        stack = nn.scan(
            layer,
            variable_axes={"params": 0},
            split_rngs={"params": True, "dropout": True},
            in_axes=(nn.broadcast, nn.broadcast, nn.broadcast),
            length=c.layers,
            metadata_params={nn.PARTITION_NAME: "layers"},
        )(c, self.deterministic, name="layers")
        x, _ = stack(x, tables, pairwise_mask(attention_mask), condition)
        hidden = constrain_rows(RMSNorm(c.norm_eps, name="final_norm")(x))
        if c.tied:
            return Prediction(hidden, Head(gather_weight(table[: c.head_size].T, ("embed", "vocab"))))
        kernel = _weight(self, "head", (c.d_model, c.head_size), ("embed", "vocab"), nn.initializers.normal(0.02))
        return Prediction(hidden, Head(gather_weight(kernel, ("embed", "vocab"))))


def pairwise_mask(attention_mask: jax.Array | None) -> jax.Array | None:
    """[B, L] numbers -> [B, 1, L, L] bool: equal numbers see each other, 0 is seen by nothing."""
    if attention_mask is None:
        return None
    seen = attention_mask != 0
    same = attention_mask[:, :, None] == attention_mask[:, None, :]
    return (same & seen[:, None, :])[:, None]
