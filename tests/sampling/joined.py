"""A masked network and its autoregressive twin, tiny, and what they say by whole forwards: no cache, no scan."""

import dataclasses
import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np

from mdlm_jax.core.process import Process
from mdlm_jax.core.schedules import Linear
from mdlm_jax.models import api
from mdlm_jax.models.config import TransformerConfig
from mdlm_jax.models.twin import LeftReading, Twin
from mdlm_jax.sampling.canvas import canvas

TEXT, MASK, LENGTH = 3, 3, 4
PROCESS = Process(TEXT + 1, MASK, schedule=Linear(1e-3))
NETWORK = TransformerConfig(TEXT + 1, TEXT + 1, layers=1, d_model=16, heads=2, kv_heads=2, d_ff=24, head_bias=True)
TWIN_NETWORK = TransformerConfig(TEXT + 1, TEXT + 1, layers=2, d_model=8, heads=2, kv_heads=2, d_ff=16,
                                 attention="causal", logit_shift=True)
EVERY = np.array(list(itertools.product(range(TEXT), repeat=LENGTH)), np.int32)


def weights(tree, seed, scale=0.6):
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda leaf: jnp.asarray(scale * rng.standard_normal(leaf.shape), jnp.float32), tree)


NET, LEFT_NET = weights(api.abstract(NETWORK), 0), weights(api.abstract(TWIN_NETWORK), 1, 0.8)
TWIN, CAUSAL = Twin(LEFT_NET, TWIN_NETWORK, MASK), LeftReading(NET, NETWORK)


def log_softmax(logits: np.ndarray) -> np.ndarray:
    """float64, without the mask."""
    logits = np.array(logits, np.float64)
    logits[..., MASK] = -np.inf
    return logits - np.logaddexp.reduce(logits, -1, keepdims=True)


@functools.partial(jax.jit, static_argnums=(0, 3))
def said(network, params, tokens, raw: bool = False):
    """Hidden states and logits."""
    found = api.apply(network, params, tokens, raw=raw)
    return found.hidden, found.logits()


def hidden(network, params, tokens, raw: bool = False) -> np.ndarray:
    return np.asarray(said(network, params, jnp.asarray(tokens), raw)[0], np.float64)


def masked_law(tokens, causal: bool = False) -> np.ndarray:
    """[N, L, V], nats, of the masked network on canvases [N, L]."""
    network = dataclasses.replace(NETWORK, attention="causal") if causal else NETWORK
    return log_softmax(said(network, NET, jnp.asarray(tokens))[1])


def before(tokens) -> np.ndarray:
    return np.concatenate([np.full((len(tokens), 1), MASK), tokens[:, :-1]], axis=1)


def twin_law(tokens) -> np.ndarray:
    """[N, L, V], nats: log p(. | x_<i) of whole rows [N, L]."""
    return log_softmax(said(TWIN_NETWORK, LEFT_NET, jnp.asarray(before(tokens)), True)[1])


def copula_law(canvases, rows, exponent: float = 1.0) -> np.ndarray:
    """[N, L, V], nats: of each position of the canvases given what the rows have before it."""
    marginal, known = masked_law(canvases), masked_law(canvases, causal=True)
    floor = np.log(1e-16)
    law = log_softmax(twin_law(rows) + exponent * (np.maximum(marginal, floor) - np.maximum(known, floor)))
    law[:, 0] = marginal[:, 0]
    return law


def at(law, rows) -> np.ndarray:
    """[N, L]: of the rows' own tokens."""
    return np.take_along_axis(law, np.asarray(rows)[..., None], -1)[..., 0]


def partly(rows, where):
    """A canvas for each row with masks ``where`` [N, L] or [L]."""
    where = np.broadcast_to(where, rows.shape)
    return canvas(np.where(where, MASK, rows), where)
