"""From an autoregressive network to a diffusion one: a mask token, open attention, rows shifted or not.

Opening can be at once (Dream, arXiv 2508.15487) or gradual (DiffuGPT anneals the mask entry by entry, 2410.17891). The
gradual form here merges neighbours into blocks that see each other: every boundary between two positions is removed
with a probability, the openness, that grows from 0 (causal) to 1 (everything visible). It is the block-size warm-up of
LLaDA2.0 with random blocks, and needs no attention contract of its own: `permutation` with `opening_order`.
"""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp

from mdlm_jax.errors import ConfigError
from mdlm_jax.models.config import TransformerConfig


class Adapted(NamedTuple):
    """What `adapt` makes; ``mask_id`` is the token that stands for noise."""

    config: TransformerConfig
    params: dict
    mask_id: int


def opened(
    config: TransformerConfig,
    *,
    mask_token: bool = True,
    mask_column: bool = False,
    keep_shift: bool = True,
    gradual: bool = False,
    multiple: int = 1,
) -> TransformerConfig:
    """The diffusion network of a causal one.

    Args:
      mask_token: one more row of the embedding table for the mask; False: an existing row serves.
      mask_column: the head can score the mask too; otherwise its columns stay, and the mask cannot be predicted.
      keep_shift: row i of the network goes on scoring token i+1, as Dream keeps it; callers see aligned rows anyway.
      gradual: attention by the permutation contract, to be called with ``order=opening_order(...)``.
      multiple: the table's rows are rounded up to this, so that devices can share them; added ones stand for nothing.
    Raises:
      ConfigError: the network is not causal, or the arguments contradict each other.
    """
    if config.attention != "causal":
        raise ConfigError(f"attention={config.attention!r}: only causal networks are opened, and this one is already; "
                          "use it as it is")
    if mask_column and not mask_token:
        raise ConfigError("mask_column=True: needs mask_token=True; an existing token has its column already")
    if multiple < 1:
        raise ConfigError(f"multiple={multiple}: must be at least 1")
    rows = config.vocab_size + mask_token
    return dataclasses.replace(
        config,
        vocab_size=-(-rows // multiple) * multiple,
        head_size=config.head_size if not mask_column else rows,
        attention="permutation" if gradual else "bidirectional",
        logit_shift=config.logit_shift and keep_shift,
    )


def adapt(config: TransformerConfig, params: dict, *, mask_id: int | None = None, **options) -> Adapted:
    """Configuration and parameters of the diffusion network; ``options`` as in `opened`.

    New rows (and the mask's column) are the mean of the trained ones: a row of zeros has no direction, and gradients
    through its norm explode (LLaDA2.0 reports the same of unused rows).

    Args:
      mask_id: an existing token that shall be the mask; None: a new one after the last row.
    """
    if mask_id is not None and not 0 <= mask_id < config.vocab_size:
        raise ConfigError(f"mask_id={mask_id}: must lie in [0, {config.vocab_size}), the embedding's rows; or leave "
                          "it out for a new one")
    target = opened(config, mask_token=mask_id is None, **options)
    adapted = dict(params)
    adapted["embedding"] = _with_means(params["embedding"], target.vocab_size, 0)
    if "head" in params:
        adapted["head"] = _with_means(params["head"], target.head_size, 1)
    if "head_bias" in params:
        adapted["head_bias"] = _with_means(params["head_bias"], target.head_size, 0)
    return Adapted(target, adapted, config.vocab_size if mask_id is None else mask_id)


def finished(config: TransformerConfig) -> TransformerConfig:
    """The network once gradual opening has come to its end: the same function as openness 1, without an order."""
    if config.attention != "permutation":
        raise ConfigError(f"attention={config.attention!r}: only a gradual opening can be finished; begin one with "
                          "opened(gradual=True)")
    return dataclasses.replace(config, attention="bidirectional")


def opening_order(keys: jax.Array, length: int, openness: jax.Array | float) -> jax.Array:
    """The order to call a gradually opened network with, [B, L] int32.

    Args:
      keys: [B] keys, one a row. With the same keys, what was visible stays visible as the openness grows.
      openness: in [0, 1]; 0 gives 0..L-1, the causal order, and 1 gives zeros, everything visible.
    """
    boundaries = jax.vmap(lambda key: jax.random.uniform(key, (length - 1,)))(keys) >= openness
    first = jnp.zeros((keys.shape[0], 1), jnp.int32)
    return jnp.concatenate([first, jnp.cumsum(boundaries.astype(jnp.int32), axis=1)], axis=1)


def openness(step: jax.Array | int, steps: int) -> jax.Array:
    """Linear from 0 at the first step to 1 after ``steps`` of them."""
    return jnp.clip(jnp.asarray(step, jnp.float32) / max(steps, 1), 0.0, 1.0)


def _with_means(table: jax.Array, size: int, axis: int) -> jax.Array:
    """``table`` with its mean along ``axis`` appended until it has ``size`` entries there."""
    missing = size - table.shape[axis]
    if missing == 0:
        return table
    mean = jnp.mean(table.astype(jnp.promote_types(table.dtype, jnp.float32)), axis=axis, keepdims=True)
    return jnp.concatenate([table, jnp.repeat(mean.astype(table.dtype), missing, axis=axis)], axis=axis)
