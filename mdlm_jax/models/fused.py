"""MARIA's fused head (arXiv 2502.06901): one linear decoder on the hidden states of a masked network and of its
autoregressive twin, both of which stay as they are.

    logits = [h_masked; h_twin] W + b,    at first W = [W_masked / 2; W_twin / 2], b = (b_masked + b_twin) / 2

h_masked sees the row with its masks, h_twin the tokens before; both score the same token. At first logits are the mean
of the two networks', a product of experts. An id that the twin's head has no column for begins with the masked
network's own logit; ids beyond the masked network's are left out.
"""

import dataclasses
import functools

import flax.linen as nn
import jax
import jax.numpy as jnp

from mdlm_jax.core.prediction import Head, Prediction
from mdlm_jax.models.config import TransformerConfig
from mdlm_jax.models.declared import Declared
from mdlm_jax.models.layers import bias, weight
from mdlm_jax.models.twin import Twin


@dataclasses.dataclass(frozen=True)
class FusedConfig:
    """What is declared: the shapes of the two networks."""

    network: TransformerConfig
    twin: TransformerConfig

    @property
    def width(self) -> int:
        return self.network.d_model + self.twin.d_model


class Fused(nn.Module):
    """Declares the weights."""

    config: FusedConfig

    @nn.compact
    def __call__(self) -> Head:
        shape, zeros = (self.config.width, self.config.network.head_size), nn.initializers.zeros
        kernel = weight(self, "kernel", shape, ("embed", "vocab"), zeros)
        return Head(kernel, bias(self, "bias", shape[1:], ("vocab",), jnp.float32))


def prediction(params: dict, masked: jax.Array, before: jax.Array) -> Prediction:
    """Of the hidden states [B, L, D] of the masked network and of the twin."""
    dtype = jnp.promote_types(masked.dtype, before.dtype)
    hidden = jnp.concatenate([masked.astype(dtype), before.astype(dtype)], axis=-1)
    return Prediction(hidden, Head(params["kernel"], params["bias"]))


def averaged(config: FusedConfig, network: dict, twin: dict) -> dict:
    """Fresh weights, float32: logits are the mean of those of the networks with these parameters."""
    first, size = head_of(config.network, network), config.network.head_size
    share = jnp.where(jnp.arange(size) < config.twin.head_size, 0.5, 0.0)
    second = [_columns(x, size) for x in head_of(config.twin, twin)]
    kernel = jnp.concatenate([first[0] * (1.0 - share), second[0] * share])
    return {"kernel": kernel, "bias": first[1] * (1.0 - share) + second[1] * share}


def head_of(network: TransformerConfig, params: dict) -> tuple[jax.Array, jax.Array]:
    """A network's kernel [D, V] and bias [V], zeros where it has none; float32."""
    kernel = params["embedding"][: network.head_size].T if network.tied else params["head"]
    own = params["head_bias"] if network.head_bias else jnp.zeros((network.head_size,))
    return kernel.astype(jnp.float32), own.astype(jnp.float32)


def _columns(x: jax.Array, size: int) -> jax.Array:
    """The last axis cut, or filled up with zeros, to ``size``."""
    x = x[..., :size]
    return jnp.pad(x, [(0, 0)] * (x.ndim - 1) + [(0, size - x.shape[-1])])


@functools.partial(jax.tree_util.register_dataclass, data_fields=("params", "twin", "bias"), meta_fields=())
@dataclasses.dataclass(frozen=True)
class FusedHead:
    """A trained one with its twin.

    Attributes:
      params: as of `averaged`. twin: the autoregressive network.
      bias: [V], that of the masked network's own head, None where it has none: it tells what a call adds to logits.
    """

    params: dict = dataclasses.field(repr=False)
    twin: Twin = dataclasses.field(repr=False)
    bias: jax.Array | None = dataclasses.field(default=None, repr=False)

    def prediction(self, masked: jax.Array, before: jax.Array) -> Prediction:
        """As the function `prediction`."""
        return prediction(self.params, masked, before)


def _boxed(config: FusedConfig, key: jax.Array) -> dict:
    return Fused(config).init(key)["params"]


_declared = Declared(_boxed)
abstract, shardings, num_parameters = _declared.abstract, _declared.shardings, _declared.num_parameters
