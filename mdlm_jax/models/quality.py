"""Small networks beside a frozen one that tell which tokens of a row are right: P2's planner and PRISM's head.

    planner   (P2, arXiv 2502.03540) reads a full row, the network's draws among it. It is not told which tokens the
              network saw, as the paper's own planner is not, a network that reads the row alone: given that, a token
              that was seen is right for certain when rows are noised by masks, and none would ever be taken back.
    prism     (PRISM, arXiv 2510.01384) reads the row that the network sees, masks among it, and the network's final
              hidden states there: scores come with the forward that also draws.

    u = [RMSNorm(E[x]), with prism also RMSNorm(h)] W + c
    s = w . RMSNorm(Layers(u)) + b,    P(right) = 1 / (1 + e^-s)

E is the network's table. The weights w begin at zero: an untrained one says 1/2 everywhere.
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
from mdlm_jax.models.layers import Norm, weight

KINDS = ("planner", "prism")


@dataclasses.dataclass(frozen=True)
class QualityConfig:
    """What is declared: the shape of the network it stands beside, its kind, one of `KINDS`, and its layers."""

    network: TransformerConfig = dataclasses.field(repr=False)
    kind: str
    layers: int = 1

    def __post_init__(self):
        if self.kind not in KINDS:
            raise ValueError(f"kind={self.kind!r}: choose one of {', '.join(KINDS)}")
        if self.layers < 1:
            raise ValueError(f"layers={self.layers}: must be at least 1")

    @property
    def stack(self) -> TransformerConfig:
        """Its layers."""
        return layers_beside(self.network, self.layers)


class Quality(nn.Module):
    """(``E[x]`` [B, L, D], h [B, L, D] or None) -> s [B, L] float32."""

    config: TransformerConfig

    @nn.compact
    def __call__(self, embedded: jax.Array, hidden: jax.Array | None, around: Surroundings) -> jax.Array:
        c = self.config
        read = {"token": embedded} | ({} if hidden is None else {"hidden": hidden})
        x = beside.mixed(self, c, **read)
        for number in range(c.layers):
            x = beside.layer(c, f"layer_{number}", x, around)
        normal = Norm(beside.rms_config(c), name="norm")(x).astype(jnp.float32)
        scale = weight(self, "score", (c.d_model,), ("norm",), nn.initializers.zeros)
        return normal @ scale + weight(self, "score_bias", (1,), ("norm",), nn.initializers.zeros)


def logits(config: QualityConfig, params: dict, table: jax.Array, tokens: jax.Array, hidden: jax.Array | None = None, *,
           attention_mask: jax.Array | None = None, positions: jax.Array | None = None) -> jax.Array:
    """s [B, L] float32, the log-odds that each of the tokens [B, L] is right.

    Args:
      params: of `init`. table: [V, D], the network's embedding, which gets no gradient.
      hidden: [B, L, D], the network's, for the kind prism; else None.
      attention_mask, positions: as of `beside.surroundings`.
    """
    stack, dtype = config.stack, jnp.dtype(config.network.dtype)
    around = beside.surroundings(stack, tokens, attention_mask, positions)
    embedded = beside.embedded(table, tokens, dtype if hidden is None else hidden.dtype)
    found: Any = Quality(stack).apply({"params": params}, embedded, hidden, around)
    return found


@functools.partial(jax.tree_util.register_dataclass, data_fields=("params", "table"), meta_fields=("config",))
@dataclasses.dataclass(frozen=True)
class QualityHead:
    """A trained one, and what it reads of its network.

    Attributes:
      params: of `init`. table: [V, D], the network's embedding.
      config: static.
    """

    params: dict = dataclasses.field(repr=False)
    table: jax.Array = dataclasses.field(repr=False)
    config: QualityConfig

    @property
    def kind(self) -> str:
        return self.config.kind

    def logits(self, tokens: jax.Array, hidden: jax.Array | None = None, **places) -> jax.Array:
        """As the function `logits`."""
        return logits(self.config, self.params, self.table, tokens, hidden, **places)


def check_kind(head: QualityHead | None, kind: str, reader: str) -> None:
    """Refuses what was not trained by the objective ``kind``, which ``reader`` needs.

    Raises:
      ValueError: another kind, or none.
    """
    found = None if head is None else head.kind
    if found != kind:
        raise ValueError(f"quality={found}: {reader} needs what train.objective={kind}:1 trained for this network; "
                         "load a run of it")


def _boxed(config: QualityConfig, key: jax.Array) -> dict:
    x, tokens = jnp.zeros((1, 2, config.network.d_model)), jnp.zeros((1, 2), jnp.int32)
    around = beside.surroundings(config.stack, tokens)
    return Quality(config.stack).init(key, x, x if config.kind == "prism" else None, around)["params"]


_declared = Declared(_boxed)
init, abstract, shardings = _declared.init, _declared.abstract, _declared.shardings
num_parameters = _declared.num_parameters
