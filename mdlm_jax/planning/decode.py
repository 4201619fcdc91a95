"""One decoding step, lowered: a window of tokens against a cache, and what a decoder asks of the head."""

import functools

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from mdlm_jax.models import api
from mdlm_jax.models import cache as caches
from mdlm_jax.models.config import TransformerConfig
from mdlm_jax.models.sharding import batch_sharding
from mdlm_jax.planning.decoding import Decoding


def step(network: TransformerConfig, params: dict, cache: caches.Cache, tokens: jax.Array, start: jax.Array):
    """tokens [B, W] -> the likeliest id of each position [B, W], its log-probability, and the new cache."""
    latent = jnp.zeros(tokens.shape[:1]) if network.latent else None
    output = api.forward(network, params, tokens, cache=cache, start=start, latent=latent)
    logits = output.prediction.logits()
    log_prob = logits.max(-1) - jax.nn.logsumexp(logits, axis=-1)
    return logits.argmax(-1), log_prob, output.cache


def lower(network: TransformerConfig, decoding: Decoding, mesh: Mesh) -> jax.stages.Lowered:
    """Weights in the compute dtype; the cache is split by rows and heads, and its memory used again."""
    dtype = jnp.dtype(network.dtype)
    params = jax.tree.map(lambda leaf, layout: jax.ShapeDtypeStruct(leaf.shape, dtype, sharding=layout),
                          api.abstract(network), api.shardings(network, mesh))
    rows = batch_sharding(mesh)
    tokens = jax.ShapeDtypeStruct((decoding.rows, decoding.window), jnp.int32, sharding=rows)
    layout = caches.shardings(network, mesh)
    empty = jax.eval_shape(lambda: caches.empty(network, decoding.rows, decoding.slots))
    cache = jax.tree.map(lambda leaf, on: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=on), empty, layout)
    start = jax.ShapeDtypeStruct((), jnp.int32)
    run = jax.jit(functools.partial(step, network), donate_argnums=1, out_shardings=(rows, rows, layout))
    with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
        return run.lower(params, cache, tokens, start)
