"""The networks as functions: ``init(config, key) -> params``, ``apply(config, params, tokens) -> Prediction``.

Parameters are plain nested dicts, float32 when fresh. `abstract`, `logical_axes`, `shardings` and `num_parameters` come
from the same declarations as `init`, without running anything (`models.declared`).
"""

from typing import Any

import jax
import jax.numpy as jnp

from mdlm_jax.core.prediction import Prediction
from mdlm_jax.models.attention.visibility import Places
from mdlm_jax.models.cache import Cache
from mdlm_jax.models.config import TransformerConfig
from mdlm_jax.models.declared import Declared
from mdlm_jax.models.sharding import check_split
from mdlm_jax.models.transformer import Inputs, Output, Transformer


def apply(config: TransformerConfig, params: dict, tokens: jax.Array | None, **inputs) -> Prediction:
    """Runs the network; `forward` lists the arguments and returns more."""
    return forward(config, params, tokens, **inputs).prediction


def forward(
    config: TransformerConfig,
    params: dict,
    tokens: jax.Array | None,
    *,
    time: jax.Array | None = None,
    condition: jax.Array | None = None,
    latent: jax.Array | None = None,
    attention_mask: jax.Array | None = None,
    positions: jax.Array | None = None,
    order: jax.Array | None = None,
    embeddings: jax.Array | None = None,
    cache: Cache | None = None,
    start: jax.Array | int | None = None,
    dropout_key: jax.Array | None = None,
    raw: bool = False,
    keep_layers: bool = False,
    shadow: jax.Array | None = None,
) -> Output:
    """Runs the network.

    Args:
      tokens: [B, L] int32, noisy ids; [noisy; clean] for the two-stream contract.
      time: [B] noise level in [0, 1]; required if, and only if, the network is conditioned on it.
      condition: [B] int32, the class of each row, `conditioning.NO_CLASS` for none; None: none for all. For networks
        with classes. One beyond them cannot be seen here.
      latent: [B] float32 in [0, 1]; required if, and only if, the network reads one (`models.latent`).
      attention_mask: [B, L] int32 or bool segments; positions see those with the same non-zero number. None: all one.
      positions: [B, L] int32 rotary positions; None: 0..L-1 (twice in the two-stream contract), from ``start`` on.
      order: [B, L] int32, what contracts other than bidirectional compare; None: the index in the row, from ``start``
        on. Required by the permutation contract.
      embeddings: [B, L, D] in place of ``tokens`` (which may then be None).
      cache, start: run the tokens as a window at slots [start, start + L) of a `Cache`; start is [] or [B]. A traced
        start cannot be checked: beyond the last slot the window is written over the slots before. start [B, L]: each
        token at a slot of its own, no two at one; beyond the last it is dropped.
      dropout_key: turns dropout on.
      raw: with ``logit_shift``: the network's own output, row i scoring token i+1. Else rows are aligned: row i scores
        token i, row 0 keeps its own output.
      keep_layers: also return every layer's input.
      shadow: [B, S] int32, indices of tokens that the last S of ``tokens`` [B, L + S] are shadows of
        (`attention.visibility`), usually masks; -1: nobody's, a place that is left empty. Positions and order are of
        the L tokens alone: a shadow stands where its token does. So is the attention mask, unless it is [B, L + S].
        Not for two streams, nor beside a cache.
    Returns:
      `Output`, hidden states in the compute dtype; those of shadows behind the tokens'.
    Raises:
      ValueError: neither tokens nor embeddings, ``time``, ``latent`` or ``order`` missing or superfluous, classes for a
        network without, a cache without ``start`` or too small for it, two streams of odd length, more positions than
        were learned, rows or positions that the mesh cannot split, aligned rows of a shifted network beside a cache or
        with shadows, shadows where there are none.
    """
    source = tokens if embeddings is None else embeddings
    if source is None:
        raise ValueError("tokens=None: give tokens, or embeddings in their place")
    rows, length = source.shape[0], source.shape[1] - (0 if shadow is None else shadow.shape[1])
    _check(config, (rows, length), time, condition, latent, order)
    _check_cache(config, length, cache, start, raw)
    _check_shadow(config, shadow, cache, raw)
    check_split(*source.shape[:2])
    offset = None if start is None else jnp.asarray(start)
    index = _index(config, rows, length, offset)
    segment = None if attention_mask is None else attention_mask.astype(jnp.int32)
    if cache is not None:
        segment = jnp.ones((rows, length), jnp.int32) if segment is None else segment
        order = index if order is None else order
    pooled = index if config.moe is not None and config.moe.block else None
    positions, places = index if positions is None else positions, Places(segment, order, index=pooled)
    if shadow is not None:
        positions, places = _shadowed(shadow, positions, places, index)
    inputs = Inputs(tokens, positions, places, time, condition, embeddings, latent, cache, offset)
    deterministic = dropout_key is None or config.dropout == 0.0
    output: Any = Transformer(config, deterministic, keep_layers).apply(
        {"params": params}, inputs, rngs={} if dropout_key is None or deterministic else {"dropout": dropout_key}
    )
    return output if raw or not config.logit_shift else _aligned(output)


def _aligned(output: Output) -> Output:
    """Hidden states one to the right; logits follow, being a function of each position's own."""
    hidden = output.prediction.hidden
    shifted = jnp.concatenate([hidden[:, :1], hidden[:, :-1]], axis=1)
    return Output(Prediction(shifted, output.prediction.head), output.cache, output.layers, output.router)


def _shadowed(shadow: jax.Array, positions: jax.Array, places: Places, index: jax.Array) -> tuple[jax.Array, Places]:
    """Positions and places [B, L + S] of tokens and their shadows."""
    taken = jnp.maximum(shadow, 0)

    def behind(x):
        if x.shape[1] == index.shape[1] + shadow.shape[1]:
            return x
        x = jnp.broadcast_to(x, index.shape)
        return jnp.concatenate([x, jnp.take_along_axis(x, taken, axis=1)], axis=1)

    segment = behind(jnp.ones_like(index) if places.segment is None else places.segment)
    whose = jnp.concatenate([jnp.full_like(index, -1), shadow], axis=1)
    somebody = (whose >= 0) | (jnp.arange(whose.shape[1]) < index.shape[1])
    order = behind(index if places.order is None else places.order)
    return behind(positions), Places(jnp.where(somebody, segment, 0), order, whose)


def _index(config, rows, length, offset) -> jax.Array:
    """[B, L]: each token's place in its row."""
    index = jnp.arange(length)
    if config.attention == "two_stream":
        index = index % (length // 2)
    if offset is not None:
        index = offset if offset.ndim == 2 else index + offset[..., None]
    return jnp.broadcast_to(index, (rows, length))


def _check(config, shape, time, condition, latent, order) -> None:
    if config.time_conditioning != (time is not None):
        remedy = "reads it; give one" if config.time_conditioning else "takes none; leave it out"
        raise ValueError(f"time: the network {remedy}")
    if condition is not None and not config.classes:
        raise ValueError("condition: the network has no classes; leave it out")
    if condition is not None and condition.shape != shape[:1]:
        raise ValueError(f"condition: has shape {list(condition.shape)}; it must be {list(shape[:1])}, a class a row")
    if bool(config.latent) != (latent is not None):
        state = "reads one; give latent" if config.latent else "reads none; leave it out"
        raise ValueError(f"latent: the network {state}")
    if latent is not None and latent.shape != shape[:1]:
        raise ValueError(f"latent: has shape {list(latent.shape)}; it must be {list(shape[:1])}, a latent a row")
    if config.attention == "permutation" and order is None:
        raise ValueError("order: the permutation contract needs one; give order=[B, L]")
    if config.attention == "bidirectional" and order is not None:
        raise ValueError("order: the bidirectional contract compares none; leave it out")
    if config.attention == "two_stream" and shape[1] % 2:
        raise ValueError(f"tokens: the two-stream contract takes [noisy; clean] and no cache, got length {shape[1]}")
    length = shape[1] // 2 if config.attention == "two_stream" else shape[1]
    if 0 < config.learned_positions < length:
        raise ValueError(f"tokens: {length} positions, and the network learned {config.learned_positions}; cut them")


def _check_cache(config, length, cache, start, raw) -> None:
    if (cache is None) != (start is None):
        raise ValueError("start: goes with a cache, and a cache with a start; give both or neither")
    if cache is None:
        return
    if config.attention == "two_stream":
        raise ValueError(f"tokens: the two-stream contract takes [noisy; clean] and no cache, got length {length}")
    last = length + (0 if isinstance(start, jax.core.Tracer) else int(jnp.max(jnp.asarray(start))))
    if jnp.ndim(start) < 2 and last > cache.slots:
        raise ValueError(f"cache: has {cache.slots} slots and the window ends at {last}; make it larger")
    if config.logit_shift and not raw:
        raise ValueError("raw: row 0 of an aligned window needs the position before it, which a cache does not keep; "
                         "pass raw=True, where row i scores token i+1")


def _check_shadow(config, shadow, cache, raw) -> None:
    if shadow is None:
        return
    if config.attention == "two_stream" or cache is not None:
        where = "beside a cache" if cache is not None else "in two streams"
        raise ValueError(f"shadow: there are none {where}; leave it out")
    if config.moe is not None and config.moe.block:
        raise ValueError(f"shadow: {config.moe.block} positions share a pool of experts (moe.block), which shadows "
                         "would choose too; leave it out")
    if config.logit_shift and not raw:
        raise ValueError("shadow: row i of this network scores token i+1, which has no shadow before it; pass raw=True")


def _boxed(config: TransformerConfig, key: jax.Array) -> dict:
    tokens = jnp.zeros((1, 2), jnp.int32)
    time = jnp.zeros((1,), jnp.float32) if config.time_conditioning else None
    latent = jnp.zeros((1,), jnp.float32) if config.latent else None
    order = tokens if config.attention == "permutation" else None
    inputs = Inputs(tokens, tokens, Places(None, order), time, latent=latent)
    return Transformer(config).init(key, inputs)["params"]


_declared = Declared(_boxed)
init, abstract, logical_axes = _declared.init, _declared.abstract, _declared.logical_axes
shardings, num_parameters = _declared.shardings, _declared.num_parameters
