"""ADJUST's recurrent layer: it tells a frozen network's last hidden states what was just written (arXiv 2509.22738).

After one forward of the network tokens are drawn one by one, each from the law that knows the ones before it. Between
two draws one small layer, the same each time, runs over the row:

    h_0 = the network's final hidden states (after its last norm, aligned to the tokens they score)
    u   = [RMSNorm(E[x_j]), RMSNorm(h_{j-1})] W + b        x_j: the row with j tokens written; E: the network's table
    h_j = h_{j-1} + gain * normalise(Layer(u))             Layer: one dense layer of the network's own dimensions

and the network's head reads h_j. The gain begins at zero: the untrained layer changes nothing, and tokens are drawn
from the product of marginals. Attention is full, among the positions of one segment.
"""

import dataclasses
import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.sharding import AbstractMesh, Mesh

from mdlm_jax.models import rotary
from mdlm_jax.models.attention.visibility import Places, Visibility
from mdlm_jax.models.attention_layer import Surroundings
from mdlm_jax.models.config import TransformerConfig
from mdlm_jax.models.layers import Norm, bias, fan_in, product, rms_normalise, weight
from mdlm_jax.models.sharding import constrain_tokens, weight_sharding
from mdlm_jax.models.transformer import Block
from mdlm_jax.models.vocabulary import lookup


def layer_config(network: TransformerConfig) -> TransformerConfig:
    """One dense layer of the network's dimensions that sees everything and is told neither time nor class."""
    return dataclasses.replace(network, layers=1, attention="bidirectional", block_length=1, moe=None, dropout=0.0,
                               conditioning="none", condition_dim=0, time_features=0, classes=0, logit_shift=False)


class Recurrent(nn.Module):
    """(E[x] [B, L, D], h [B, L, D]) -> h [B, L, D]."""

    config: TransformerConfig

    @nn.compact
    def __call__(self, embedded: jax.Array, hidden: jax.Array, around: Surroundings) -> jax.Array:
        c = self.config
        d, rms = c.d_model, dataclasses.replace(c, norm="rms", norm_bias=False)
        parts = [Norm(rms, name="token_norm")(embedded), Norm(rms, name="hidden_norm")(hidden)]
        both = jnp.concatenate(parts, axis=-1)
        mixed = product(self, "mix", both, (2 * d, d), ("mlp", "embed"), fan_in(2 * d))
        mixed = mixed + bias(self, "mix_bias", (d,), ("norm",), mixed.dtype)
        found, _ = Block(c, expert=False, deterministic=True, keep_input=False, name="layer")(mixed, None, around, None)
        gain = weight(self, "gain", (d,), ("norm",), nn.initializers.zeros)
        normal = rms_normalise(found, c.norm_eps)
        return constrain_tokens(hidden + (normal * gain.astype(normal.dtype)).astype(hidden.dtype))


def step(network: TransformerConfig, params: dict, table: jax.Array, tokens: jax.Array, hidden: jax.Array, *,
         attention_mask: jax.Array | None = None, positions: jax.Array | None = None) -> jax.Array:
    """h_j [B, L, D] from h_{j-1} and the tokens [B, L] that now stand there.

    Args:
      params: of `init`. table: [V, D], the network's embedding, which gets no gradient.
      attention_mask: [B, L] int32 segments; positions see those with the same non-zero number. None: all one.
      positions: [B, L] int32; None: 0..L-1.
    """
    config = layer_config(network)
    rows, length = tokens.shape
    positions = jnp.broadcast_to(jnp.arange(length), (rows, length)) if positions is None else positions
    around = _surroundings(config, positions, None if attention_mask is None else attention_mask.astype(jnp.int32))
    table = jax.lax.stop_gradient(table).astype(hidden.dtype)
    embedded = lookup(table, tokens, ("vocab", "embed"))
    return Recurrent(config).apply({"params": params}, embedded, hidden, around)


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

    params: dict
    table: jax.Array
    network: TransformerConfig
    most: int
    scope: str = "row"

    def step(self, tokens: jax.Array, hidden: jax.Array, **places) -> jax.Array:
        """As the function `step`."""
        return step(self.network, self.params, self.table, tokens, hidden, **places)


def init(network: TransformerConfig, key: jax.Array) -> dict:
    """Fresh parameters, float32."""
    return nn.unbox(_boxed_init(network, key))


def abstract(network: TransformerConfig) -> dict:
    """The parameter tree as ``ShapeDtypeStruct``s."""
    return jax.tree.map(lambda box: box.value, _declared(network), is_leaf=_is_box)


def shardings(network: TransformerConfig, mesh: Mesh) -> dict:
    """The parameter tree with a ``NamedSharding`` at each leaf."""
    return jax.tree.map(lambda box: weight_sharding(mesh, tuple(box.names), box.value.shape), _declared(network),
                        is_leaf=_is_box)


def num_parameters(network: TransformerConfig) -> int:
    return sum(leaf.size for leaf in jax.tree.leaves(abstract(network)))


def _surroundings(config: TransformerConfig, positions: jax.Array, segment: jax.Array | None) -> Surroundings:
    tables = rotary.tables(config.rope, config.rotary_dim, positions) if config.rope.theta else None
    places = Places(segment, None)
    return Surroundings(tables, Visibility(places, places, config.attention, 1), None)


def _is_box(node) -> bool:
    return isinstance(node, nn.meta.AxisMetadata)


@functools.lru_cache(maxsize=16)
def _declared(network: TransformerConfig) -> dict:
    return jax.eval_shape(lambda: _boxed_init(network, jax.random.key(0)))


def _boxed_init(network: TransformerConfig, key: jax.Array):
    config = layer_config(network)
    hidden, positions = jnp.zeros((1, 2, network.d_model)), jnp.zeros((1, 2), jnp.int32)
    around = _surroundings(config, positions, None)
    with jax.sharding.use_abstract_mesh(AbstractMesh((), ())):  # two tokens cannot be split over devices
        return Recurrent(config).init(key, hidden, hidden, around)["params"]
