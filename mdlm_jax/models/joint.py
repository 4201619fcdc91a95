"""ADJUST's recurrent layer: it tells a frozen network's last hidden states what was just written (arXiv 2509.22738).

After one forward of the network tokens are drawn one by one, each from the law that knows the ones before it. Between
two draws one small layer, the same each time, runs over the row:

    h_0 = the network's final hidden states (after its last norm, aligned to the tokens they score)
    u   = [RMSNorm(E[x_j]), RMSNorm(h_{j-1})] W + b        x_j: the row with j tokens written; E: the network's table
    h_j = h_{j-1} + gain * normalise(Layer(u))             Layer: one dense layer of the network's own dimensions

and the network's head reads h_j. The gain begins at zero: the untrained layer changes nothing, and tokens are drawn
from the product of marginals.
"""

import dataclasses
import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from mdlm_jax.models import beside
from mdlm_jax.models.attention_layer import Surroundings
from mdlm_jax.models.config import TransformerConfig, layers_beside
from mdlm_jax.models.declared import Declared
from mdlm_jax.models.layers import rms_normalise, weight
from mdlm_jax.models.sharding import constrain_tokens


class Recurrent(nn.Module):
    """(``E[x]`` [B, L, D], h [B, L, D]) -> h [B, L, D]."""

    config: TransformerConfig

    @nn.compact
    def __call__(self, embedded: jax.Array, hidden: jax.Array, around: Surroundings) -> jax.Array:
        c = self.config
        found = beside.layer(c, "layer", beside.mixed(self, c, token=embedded, hidden=hidden), around)
        gain = weight(self, "gain", (c.d_model,), ("norm",), nn.initializers.zeros)
        normal = rms_normalise(found, c.norm_eps)
        return constrain_tokens(hidden + (normal * gain.astype(normal.dtype)).astype(hidden.dtype))


def step(network: TransformerConfig, params: dict, table: jax.Array, tokens: jax.Array, hidden: jax.Array, *,
         attention_mask: jax.Array | None = None, positions: jax.Array | None = None) -> jax.Array:
    """h_j [B, L, D] from h_{j-1} and the tokens [B, L] that now stand there.

    Args:
      params: of `init`. table: [V, D], the network's embedding, which gets no gradient.
      attention_mask, positions: as of `beside.surroundings`.
    """
    config = layers_beside(network)
    around = beside.surroundings(config, tokens, attention_mask, positions)
    embedded = beside.embedded(table, tokens, hidden.dtype)
    found: Any = Recurrent(config).apply({"params": params}, embedded, hidden, around)
    return found


def silent(params: dict) -> dict:
    """Those of a layer that says nothing, as before training: tokens come from the product of marginals."""
    return params | {"gain": jnp.zeros_like(params["gain"])}


@functools.partial(jax.tree_util.register_dataclass, data_fields=("params", "table"),
                   meta_fields=("network", "most", "scope"))
@dataclasses.dataclass(frozen=True)
class JointSampler:
    """A trained joint layer and what it reads of its network.

    Attributes:
      params: of `init`. table: [V, D], the network's embedding.
      network: static; the network's shape.
      most: static; tokens a forward that it was trained for: one more than the passes it was unrolled over.
      scope: static; row: it sees the whole row. block: the block that is being written alone, as beside a cache.
    """

    params: dict = dataclasses.field(repr=False)
    table: jax.Array = dataclasses.field(repr=False)
    network: TransformerConfig = dataclasses.field(repr=False)
    most: int
    scope: str = "row"

    def step(self, tokens: jax.Array, hidden: jax.Array, **places) -> jax.Array:
        """As the function `step`."""
        return step(self.network, self.params, self.table, tokens, hidden, **places)


def _boxed(network: TransformerConfig, key: jax.Array) -> dict:
    config, hidden = layers_beside(network), jnp.zeros((1, 2, network.d_model))
    around = beside.surroundings(config, jnp.zeros((1, 2), jnp.int32))
    return Recurrent(config).init(key, hidden, hidden, around)["params"]


_declared = Declared(_boxed)
init, abstract, shardings = _declared.init, _declared.abstract, _declared.shardings
num_parameters = _declared.num_parameters
