"""The autoregressive twin of a masked network, of the same tokenizer, as decoders hold it; and the masked network read
from left to right.

The twin is causal, and its row i scores token i + 1. It is fed the token before each, ``start_id`` before the first of
a row, as it was trained (`models.denoise.one_before`): its output at i says p(x_i | x_<i).
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp

from mdlm_jax.core.prediction import Prediction
from mdlm_jax.models import api
from mdlm_jax.models import cache as caches
from mdlm_jax.models.cache import Cache
from mdlm_jax.models.config import TransformerConfig
from mdlm_jax.models.denoise import Call, Denoiser, one_before


def check_network(network: TransformerConfig) -> None:
    """Refuses what is no such network.

    Raises:
      ValueError: it is not causal, does not score the next token, or reads the time or a class.
    """
    if network.attention != "causal" or not network.logit_shift:
        raise ValueError(f"twin: attention={network.attention!r}, logit_shift={network.logit_shift}; must be causal "
                         "and score the next token, as runs of train.objective=autoregressive do")
    if network.time_conditioning or network.classes:
        raise ValueError("twin: reads a noise level or a class, and nobody tells it any; take one that reads text "
                         "alone")


def hidden_before(network: TransformerConfig, params: dict, tokens: jax.Array, start_id: int,
                  segment: jax.Array | None, positions: jax.Array | None) -> Prediction:
    """The twin's prediction of each of the tokens [B, L] from those before it."""
    before = one_before(tokens, segment, start_id)
    return api.apply(network, params, before, attention_mask=segment, positions=positions, raw=True)


@functools.partial(jax.tree_util.register_dataclass, data_fields=("params",), meta_fields=("network", "start_id"))
@dataclasses.dataclass(frozen=True)
class Twin:
    """An autoregressive network for a pass from left to right beside a cache, a position of every row at a time.

    Attributes:
      params: its weights.
      network: static; its shape.
      start_id: static; what stands before the first token of a row.
    """

    params: dict = dataclasses.field(repr=False)
    network: TransformerConfig = dataclasses.field(repr=False)
    start_id: int

    def __post_init__(self):
        check_network(self.network)

    def check_length(self, length: int) -> None:
        """ValueError where a row has more positions than the twin learned."""
        if 0 < self.network.learned_positions < length:
            raise ValueError(f"twin: learned {self.network.learned_positions} positions, and the row has {length}; "
                             "write shorter rows")

    def cache(self, rows: int, length: int) -> Cache:
        """An empty one."""
        return caches.empty(self.network, rows, length)

    def begin(self, tokens: jax.Array, segment: jax.Array, places: jax.Array) -> Cache:
        """The cache after one pass over rows as they stand, [B, L] each: right up to the first token that changes."""
        before = one_before(tokens, segment, self.start_id)
        return api.forward(self.network, self.params, before, attention_mask=segment, positions=places,
                           cache=self.cache(*tokens.shape), start=jnp.zeros((), jnp.int32), raw=True).cache

    def step(self, cache: Cache, before: jax.Array, segment: jax.Array, places: jax.Array,
             slots: jax.Array) -> tuple[Prediction, Cache]:
        """The prediction of one token of each row, and the cache with it.

        Args:
          before: [B, 1], the token before it. segment, places: [B, 1], of the token.
          slots: [B, 1], its index in the row; beyond the last the row's cache stays as it is.
        """
        found = api.forward(self.network, self.params, before, attention_mask=segment, positions=places, cache=cache,
                            start=slots, raw=True)
        return found.prediction, found.cache


@functools.partial(jax.tree_util.register_dataclass, data_fields=("params",), meta_fields=("network",))
@dataclasses.dataclass(frozen=True)
class LeftReading:
    """A masked network under a causal mask: the same weights, and every position sees those up to its own alone.

    Attributes:
      params: its weights. network: static; its shape.
    """

    params: dict = dataclasses.field(repr=False)
    network: TransformerConfig = dataclasses.field(repr=False)

    def run(self, call: Call, columns: int) -> Prediction:
        """Of the call's tokens; row i scores token i. ``columns``: ids that are scored."""
        network = dataclasses.replace(self.network, attention="causal", block_length=1)
        return Denoiser(network, columns).run(self.params, call)[0]
