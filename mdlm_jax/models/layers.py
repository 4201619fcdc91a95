"""What the blocks are made of: declared weights, norms, projections, feed-forward, dropout-free and attention-free.

Every weight is declared once, by `weight`, with its logical axes beside its shape; abstract tree, shardings and init
follow from that declaration (`models.api`).
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from mdlm_jax.models.config import TransformerConfig
from mdlm_jax.models.projection import project


def weight(module: nn.Module, name: str, shape: tuple[int, ...], axes: tuple[str | None, ...], init) -> jax.Array:
    """Declares a parameter, float32 when fresh, with one logical axis name a dimension."""
    declared: Any = nn.with_logical_partitioning(init, axes)  # a box around it, which linen takes off again
    return module.param(name, declared, shape, jnp.float32)


def fan_in(fan: int, scale: float = 1.0):
    """Normal with standard deviation scale / sqrt(fan)."""
    return nn.initializers.normal(scale * fan**-0.5)


def product(module: nn.Module, name: str, x: jax.Array, shape, axes, init, contracted: int = 1) -> jax.Array:
    """x [B, L, D] times a weight declared here -> [B, L, F]. It is cast, then gathered: the narrow form travels.

    Its leading ``contracted`` axes hold D, its others F.
    """
    y = project(x, weight(module, name, shape, axes, init).astype(x.dtype), axes, contracted)
    return checkpoint_name(y, "product")


def bias(module: nn.Module, name: str, shape, axes, dtype) -> jax.Array:
    return weight(module, name, shape, axes, nn.initializers.zeros).astype(dtype)


def add_bias(y: jax.Array, offset: jax.Array) -> jax.Array:
    """y + offset in float32 or wider, in the dtype of y: the gradient of a bias is a sum over all tokens."""
    wide = jnp.promote_types(y.dtype, jnp.float32)
    return (y.astype(wide) + offset.astype(wide)).astype(y.dtype)


def rms_normalise(x: jax.Array, eps: float) -> jax.Array:
    """x / sqrt(mean x^2 + eps) over the last axis, in float32 or wider."""
    wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    return wide * jax.lax.rsqrt(jnp.mean(wide**2, axis=-1, keepdims=True) + eps)


def layer_normalise(x: jax.Array, eps: float) -> jax.Array:
    """(x - mean) / sqrt(variance + eps) over the last axis, in float32 or wider."""
    wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    centred = wide - jnp.mean(wide, axis=-1, keepdims=True)
    return centred * jax.lax.rsqrt(jnp.mean(centred**2, axis=-1, keepdims=True) + eps)


class Norm(nn.Module):
    """RMSNorm or LayerNorm times a scale, plus a bias where the configuration has one."""

    config: TransformerConfig

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        c = self.config
        normal = rms_normalise(x, c.norm_eps) if c.norm == "rms" else layer_normalise(x, c.norm_eps)
        scale = weight(self, "scale", x.shape[-1:], ("norm",), nn.initializers.ones)
        y = normal * scale.astype(normal.dtype)
        if c.norm_bias:
            y = y + bias(self, "bias", x.shape[-1:], ("norm",), y.dtype)
        return y.astype(x.dtype)


class FeedForward(nn.Module):
    """SwiGLU, (silu(x gate) * (x up)) down (arXiv 2002.05202), or gelu(x up) down."""

    config: TransformerConfig

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        c = self.config
        d, f = c.d_model, c.d_ff
        up = self._project("up", x, (d, f), ("embed", "mlp"), fan_in(d))
        if c.activation == "swiglu":
            up = jax.nn.silu(self._project("gate", x, (d, f), ("embed", "mlp"), fan_in(d), biased=False)) * up
        else:
            up = jax.nn.gelu(up, approximate=c.activation == "gelu_tanh")
        return self._project("down", up, (f, d), ("mlp", "embed"), fan_in(f, (2 * c.layers) ** -0.5))

    def _project(self, name, x, shape, axes, init, biased=True):
        y = product(self, name, x, shape, axes, init)
        if biased and self.config.mlp_bias:
            axis = axes[1] if axes[1] == "mlp" else "norm"
            y = add_bias(y, bias(self, f"{name}_bias", shape[1:], (axis,), jnp.float32))
        return y
