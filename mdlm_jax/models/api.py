"""The networks as functions: ``init(config, key) -> params``, ``apply(config, params, tokens) -> Prediction``.

Parameters are plain nested dicts of float32 arrays. `abstract` and `shardings` come from the same declarations as
`init`, without running anything.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from mdlm_jax.core.prediction import Prediction
from mdlm_jax.models.config import TransformerConfig
from mdlm_jax.models.sharding import weight_sharding
from mdlm_jax.models.transformer import Transformer


def init(config: TransformerConfig, key: jax.Array) -> dict:
    """Fresh parameters."""
    return nn.unbox(_boxed_init(config, key))


def abstract(config: TransformerConfig) -> dict:
    """The parameter tree as ``ShapeDtypeStruct``s."""
    return jax.eval_shape(lambda: init(config, jax.random.key(0)))


def logical_axes(config: TransformerConfig) -> dict:
    """The parameter tree with a tuple of logical axis names at each leaf."""
    boxed = jax.eval_shape(lambda: _boxed_init(config, jax.random.key(0)))
    return jax.tree.map(lambda box: tuple(box.names), boxed, is_leaf=lambda x: isinstance(x, nn.meta.AxisMetadata))


def shardings(config: TransformerConfig, mesh: Mesh) -> dict:
    """The parameter tree with a ``NamedSharding`` at each leaf."""
    return jax.tree.map(
        lambda names, leaf: weight_sharding(mesh, names, leaf.shape),
        logical_axes(config),
        abstract(config),
        is_leaf=lambda node: isinstance(node, tuple),
    )


def num_parameters(config: TransformerConfig) -> int:
    return sum(leaf.size for leaf in jax.tree.leaves(abstract(config)))


def apply(
    config: TransformerConfig,
    params: dict,
    tokens: jax.Array,
    *,
    time: jax.Array | None = None,
    attention_mask: jax.Array | None = None,
    positions: jax.Array | None = None,
    dropout_key: jax.Array | None = None,
) -> Prediction:
    """Runs the network.

    Args:
      tokens: [B, L] int32, noisy ids.
      time: [B] noise level in [0, 1]; required if, and only if, the network is conditioned on it.
      attention_mask: [B, L] int32 or bool; positions see those with the same non-zero number. None: all see all.
      positions: [B, L] int32 rotary positions; None: 0..L-1.
      dropout_key: turns dropout on.
    Returns:
      `Prediction` with hidden [B, L, D] in the compute dtype.
    Raises:
      ValueError: ``time`` missing or superfluous.
    """
    if config.time_conditioning != (time is not None):
        state = "is conditioned on time and got none" if config.time_conditioning else "takes no time and got one"
        raise ValueError(f"time: the network {state}")
    if positions is None:
        positions = jnp.broadcast_to(jnp.arange(tokens.shape[1]), tokens.shape)
    deterministic = dropout_key is None or config.dropout == 0.0
    rngs = {} if deterministic else {"dropout": dropout_key}
    return Transformer(config, deterministic).apply(
        {"params": params}, tokens, time, attention_mask, positions, rngs=rngs
    )


def _boxed_init(config: TransformerConfig, key: jax.Array):
    tokens = jnp.zeros((1, 2), jnp.int32)
    time = jnp.zeros((1,), jnp.float32) if config.time_conditioning else None
    return Transformer(config).init(key, tokens, time, None, tokens)["params"]
