"""Rotary position embedding: tables in float32, half-split or interleaved, whole heads or their first part, scaled.

Angles are position * frequency_j with frequency_j = theta^(-2j/R), R the rotated components (arXiv 2104.09864).
"""

import math

import jax
import jax.numpy as jnp
import numpy as np

from mdlm_jax.models.config import RopeConfig

Tables = tuple[jax.Array, jax.Array]


def frequencies(rope: RopeConfig, rotary_dim: int) -> np.ndarray:
    """[R/2] float32, with the scaling of ``rope`` applied.

    linear: all divided by the factor (2306.15595). llama3: those with fewer than ``low_frequency`` turns over the
    original length divided, those with more than ``high_frequency`` kept, a straight line between. yarn (2309.00071):
    the same idea with the line drawn over the index j.
    """
    index = np.arange(0, rotary_dim, 2, dtype=np.float32)
    plain = 1.0 / np.float32(rope.theta) ** (index / np.float32(rotary_dim))
    if rope.scaling == "none":
        return plain
    if rope.scaling == "linear":
        return plain / np.float32(rope.factor)
    if rope.scaling == "llama3":
        turns = rope.original_length * plain / (2 * np.pi)
        kept = (turns - rope.low_frequency) / (rope.high_frequency - rope.low_frequency)
    else:
        low, high = (_yarn_index(rope, rotary_dim, turns) for turns in (rope.high_frequency, rope.low_frequency))
        low, high = max(math.floor(low), 0), min(math.ceil(high), rotary_dim - 1)
        kept = 1.0 - (index / 2 - low) / max(high - low, 1e-3)
    kept = np.clip(kept, 0.0, 1.0).astype(np.float32)
    return plain * kept + plain / np.float32(rope.factor) * (1.0 - kept)


def _yarn_index(rope: RopeConfig, rotary_dim: int, turns: float) -> float:
    """The j whose frequency makes ``turns`` turns over the original length."""
    return rotary_dim * math.log(rope.original_length / (turns * 2 * math.pi)) / (2 * math.log(rope.theta))


def tables(rope: RopeConfig, rotary_dim: int, positions: jax.Array) -> Tables:
    """cos and sin, [B, L, 1, R/2] float32 each."""
    angle = positions[..., None, None].astype(jnp.float32) * frequencies(rope, rotary_dim)
    scale = 1.0
    if rope.scaling == "yarn":
        scale = rope.attention_factor or 0.1 * math.log(rope.factor) + 1.0
    return jnp.cos(angle) * scale, jnp.sin(angle) * scale


def rotate(x: jax.Array, cos_sin: Tables, interleaved: bool) -> jax.Array:
    """Rotates the leading R components of x [B, L, N, H], in float32 or wider."""
    cos, sin = cos_sin
    rotary_dim = 2 * cos.shape[-1]
    wide = x[..., :rotary_dim].astype(jnp.promote_types(x.dtype, jnp.float32))
    if interleaved:
        first, second = wide[..., ::2], wide[..., 1::2]
    else:
        first, second = jnp.split(wide, 2, axis=-1)
    parts = first * cos - second * sin, second * cos + first * sin
    turned = jnp.stack(parts, axis=-1).reshape(wide.shape) if interleaved else jnp.concatenate(parts, axis=-1)
    turned = turned.astype(x.dtype)
    return turned if rotary_dim == x.shape[-1] else jnp.concatenate([turned, x[..., rotary_dim:]], axis=-1)
