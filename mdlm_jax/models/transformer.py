"""The Transformer of every backbone here, in Flax Linen: pre-norm blocks in scanned stacks.

Use it through `models.api`; the parameter tree is listed in this package's README.
"""

import dataclasses
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from mdlm_jax.core.prediction import Asked, Head, Prediction
from mdlm_jax.models import rotary
from mdlm_jax.models.attention.visibility import Places, Visibility
from mdlm_jax.models.attention_layer import Attention, KeyValue, Surroundings
from mdlm_jax.models.cache import Cache, write
from mdlm_jax.models.conditioning import NO_CLASS, Modulation, TimeEmbedding, gated, modulate
from mdlm_jax.models.config import TransformerConfig
from mdlm_jax.models.latent import LatentEmbedding
from mdlm_jax.models.layers import FeedForward, Norm, bias, weight
from mdlm_jax.models.moe.experts import MixtureOfExperts
from mdlm_jax.models.moe.routing import RouterStats
from mdlm_jax.models.remat import rematerialised
from mdlm_jax.models.sharding import constrain_tokens
from mdlm_jax.models.vocabulary import lookup


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Inputs:
    """What one call feeds the network; None where it has none.

    Attributes:
      tokens: [B, L] int32.
      positions: [B, L] int32 rotary or learned positions.
      places: segments and orders of these tokens.
      time: [B].
      condition: [B] int32, the class of each row.
      embeddings: [B, L, D], in place of the table's rows.
      latent: [B] in [0, 1].
      cache, start: slots to read and where the window goes.
    """

    tokens: Asked
    positions: jax.Array
    places: Places
    time: jax.Array | None = None
    condition: jax.Array | None = None
    embeddings: jax.Array | None = None
    latent: Asked = None
    cache: Cache | None = None
    start: Asked = None


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Output:
    """What `api.forward` returns.

    Attributes:
      prediction: hidden [B, L, D] and head.
      cache: with the window written, where one was given.
      layers: [layers + 1, B, L, D], each layer's input and the final hidden states, where asked for.
      router: sums over tokens for each expert layer, where there are experts.
    """

    prediction: Prediction
    cache: Cache | Any = None
    layers: jax.Array | None = None
    router: RouterStats | Any = None


class Block(nn.Module):
    """One layer in the (carry, per-layer input) -> (carry, per-layer output) form of `nn.scan`."""

    config: TransformerConfig
    expert: bool
    deterministic: bool
    keep_input: bool

    @nn.compact
    def __call__(self, x, cached: KeyValue | None, around: Surroundings, condition):
        c = self.config
        before = x if self.keep_input else None
        x = checkpoint_name(x, "layer_input")
        parts = Modulation(c, 6, name="modulation")(condition) if c.conditioning != "none" else None
        y = self._normalised("attention_norm", x, parts and parts[:2])
        y, cached = Attention(c, name="attention")(y, around, cached)
        x = x + self._branch("attention", y, parts and parts[2])
        y, stats = self._normalised("mlp_norm", x, parts and parts[3:5]), None
        if self.expert:
            places = around.visibility.query
            y, stats = MixtureOfExperts(c, name="moe")(y, places.segment, places.index)
        else:
            y = FeedForward(c, name="mlp")(y)
        x = x + self._branch("mlp", y, parts and parts[5])
        return constrain_tokens(x), (cached, before, stats)

    def _normalised(self, name, x, shift_scale):
        y = Norm(self.config, name=name)(x)
        return y if shift_scale is None else modulate(y, *shift_scale)

    def _branch(self, name, y, gate):
        y = nn.Dropout(self.config.dropout, deterministic=self.deterministic, name=f"{name}_dropout")(y)
        return y if gate is None else gated(y, gate)


class Transformer(nn.Module):
    """`Inputs` -> `Output`."""

    config: TransformerConfig
    deterministic: bool = True
    keep_layers: bool = False

    @nn.compact
    def __call__(self, inputs: Inputs) -> Output:
        c = self.config
        x, table = self._embed(inputs)
        around, cache = self._surroundings(inputs, x.shape)
        condition = None
        if c.conditioning != "none":
            condition = TimeEmbedding(c, name="time")(inputs.time, self._class(inputs.condition))
        keys_values = None if cache is None else (cache.key, cache.value)
        outputs, stats = [], None
        for name, expert, first, last in _stacks(c):
            of_stack = jax.tree.map(lambda slots, a=first, b=last: slots[a:b], keys_values)
            x, (written, before, stats) = self._stack(name, expert, last - first)(x, of_stack, around, condition)
            outputs.append((written, before))
        written, before = jax.tree.map(lambda *parts: jnp.concatenate(parts), *outputs)
        x = Norm(c, name="final_norm")(x)
        if condition is not None:
            x = modulate(x, *Modulation(c, 2, name="final_modulation")(condition))
        hidden = constrain_tokens(x)
        if cache is not None:
            cache = dataclasses.replace(cache, key=written[0], value=written[1])
        layers = jnp.concatenate([before, hidden[None]]) if self.keep_layers else None
        return Output(Prediction(hidden, self._head(table)), cache, layers, stats)

    def _embed(self, inputs: Inputs) -> tuple[jax.Array, jax.Array]:
        c, dtype = self.config, jnp.dtype(self.config.dtype)
        # Unit scale keeps the token visible beside what the layers add; a tied table is also the head and starts small.
        init = nn.initializers.normal(0.02 if c.tied else 1.0)
        table = weight(self, "embedding", (c.vocab_size, c.d_model), ("vocab", "embed"), init)
        if inputs.embeddings is None:
            x = lookup(table.astype(dtype), inputs.tokens, ("vocab", "embed"))
        else:
            x = inputs.embeddings.astype(dtype)
        if c.learned_positions:
            shape, axes = (c.learned_positions, c.d_model), (None, "embed")
            learned = weight(self, "positions", shape, axes, init)  # as visible as the token
            x = x + lookup(learned.astype(dtype), inputs.positions, axes)
        if c.latent:
            x = x + LatentEmbedding(c, name="latent")(inputs.latent, inputs.positions)
        return constrain_tokens(x), table

    def _class(self, condition: jax.Array | None) -> jax.Array | None:
        """[B, C]: the row of each class, the last one for none; [1, C] where nothing is said of any."""
        c = self.config
        if not c.classes:
            return None
        table = weight(self, "classes", (c.classes + 1, c.condition_dim), (None, "condition"),
                       nn.initializers.normal(1.0))
        return table[-1:] if condition is None else table[jnp.where(condition == NO_CLASS, c.classes, condition)]

    def _surroundings(self, inputs: Inputs, shape) -> tuple[Surroundings, Cache | None]:
        c, cache, places = self.config, inputs.cache, inputs.places
        tables = rotary.tables(c.rope, c.rotary_dim, inputs.positions) if c.rope.theta else None
        key_places = places
        if cache is not None:
            segment = write(cache.segment, places.segment, inputs.start)
            order = write(cache.order, places.order, inputs.start)
            cache, key_places = dataclasses.replace(cache, segment=segment, order=order), Places(segment, order)
        visibility = Visibility(places, key_places, c.attention, c.block_length)
        return Surroundings(tables, visibility, inputs.start), cache

    def _stack(self, name: str, expert: bool, length: int):
        c = self.config
        scanned = nn.scan(
            rematerialised(Block, c.remat),
            variable_axes={"params": 0},
            split_rngs={"params": True, "dropout": True},
            in_axes=(0, nn.broadcast, nn.broadcast),
            length=length,
            metadata_params={nn.PARTITION_NAME: "layers"},
        )
        return scanned(c, expert, self.deterministic, self.keep_layers, name=name)

    def _head(self, table: jax.Array) -> Head:
        c, dtype = self.config, jnp.dtype(self.config.dtype)
        if c.tied:
            kernel = table[: c.head_size].T
        else:
            init = nn.initializers.normal(0.02)
            kernel = weight(self, "head", (c.d_model, c.head_size), ("embed", "vocab"), init)
        offset = bias(self, "head_bias", (c.head_size,), ("vocab",), jnp.float32) if c.head_bias else None
        return Head(kernel.astype(dtype), offset)


def _stacks(config: TransformerConfig) -> list[tuple[str, bool, int, int]]:
    """Name, whether its layers are experts, first and last layer, of each stack of equal layers."""
    if config.moe is None:
        return [("layers", False, 0, config.layers)]
    dense = config.dense_layers
    leading = [("dense_layers", False, 0, dense)] if dense else []
    return [*leading, ("layers", True, dense, config.layers)]
