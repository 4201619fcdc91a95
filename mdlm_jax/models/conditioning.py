"""AdaLN conditioning on the noise level and the class (DiT, arXiv 2212.09748), as in MDLM.

Everything a modulation makes is zero at the start, so a fresh conditioned network is a fresh plain one with closed
branches.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from mdlm_jax.errors import ConfigError
from mdlm_jax.models.config import TransformerConfig
from mdlm_jax.models.layers import bias, fan_in, weight

NO_CLASS = -1  # a row of which nothing is said


def checked_classes(given, classes: int, rows: int) -> np.ndarray:
    """int32 [rows]: ``given``, a class for each row or one for all, `NO_CLASS` for none.

    Raises:
      ConfigError: the network has no classes, another number of them, a class that it does not have.
    """
    if not classes:
        raise ConfigError(f"class={given}: the network was trained without classes; leave label or condition out")
    found = np.asarray(given)
    if found.ndim > 1 or not np.issubdtype(found.dtype, np.integer) or found.ndim and len(found) != rows:
        raise ConfigError(f"classes: {found.dtype}{list(found.shape)} for {rows} row(s); give a whole number for each, "
                          "or one for all")
    outside = (found < NO_CLASS) | (found >= classes)
    if outside.any():
        raise ConfigError(f"class {found[outside].flat[0]}: must lie in 0..{classes - 1}, or be {NO_CLASS} for none")
    return np.broadcast_to(found, (rows,)).astype(np.int32)


class TimeEmbedding(nn.Module):
    """Sinusoids of the noise level through a two-layer perceptron: [B] -> silu(...) [B, C]; None is one row at 0.

    ``also``: [B, C] or [1, C], added before the last silu: the embedding of the class.
    """

    config: TransformerConfig

    @nn.compact
    def __call__(self, time: jax.Array | None, also: jax.Array | None = None) -> jax.Array:
        c, features = self.config.condition_dim, self.config.time_features
        time = jnp.zeros((1,), jnp.float32) if time is None else time
        frequency = 10000.0 ** (-jnp.arange(features // 2, dtype=jnp.float32) / (features // 2))
        angle = self.config.time_scale * time.astype(jnp.float32)[:, None] * frequency
        waves = jnp.concatenate([jnp.cos(angle), jnp.sin(angle)], axis=-1)
        first = weight(self, "first", (features, c), (None, "condition"), fan_in(features))
        second = weight(self, "second", (c, c), (None, "condition"), fan_in(c))
        hidden = waves @ first + bias(self, "first_bias", (c,), ("condition",), first.dtype)
        hidden = jax.nn.silu(hidden) @ second + bias(self, "second_bias", (c,), ("condition",), first.dtype)
        hidden = hidden if also is None else hidden + also.astype(hidden.dtype)
        return jax.nn.silu(hidden).astype(jnp.dtype(self.config.dtype))


class Modulation(nn.Module):
    """``parts`` vectors of size D from the condition: [B, C] -> tuple of [B, 1, D]."""

    config: TransformerConfig
    parts: int

    @nn.compact
    def __call__(self, condition: jax.Array) -> tuple[jax.Array, ...]:
        c = self.config
        shape, axes = (c.condition_dim, self.parts, c.d_model), ("condition", None, "norm")
        kernel = weight(self, "kernel", shape, axes, nn.initializers.zeros).astype(condition.dtype)
        made = jnp.einsum("bc,csd->sbd", condition, kernel)
        made = made + bias(self, "bias", shape[1:], axes[1:], condition.dtype)[:, None]
        return tuple(made[:, :, None, :])


def modulate(x: jax.Array, shift: jax.Array, scale: jax.Array) -> jax.Array:
    """In float32 or wider, since the gradients of shift and scale are sums over positions."""
    wide = jnp.promote_types(x.dtype, jnp.float32)
    return (x.astype(wide) * (1 + scale.astype(wide)) + shift.astype(wide)).astype(x.dtype)


def gated(y: jax.Array, gate: jax.Array) -> jax.Array:
    """gate * y, for the same reason in float32 or wider."""
    wide = jnp.promote_types(y.dtype, jnp.float32)
    return (y.astype(wide) * gate.astype(wide)).astype(y.dtype)
