"""CoDD's circuit (arXiv 2603.00045): a hidden Markov model whose product with a network's marginals is a joint law.

    p(x_M | row) = 1/Z  sum_z w(z, x)  prod_{i in M} pi_i(x_i)
    w(z, x) = start(z_1) prod_i step(z_i, z_{i+1}) end(z_L)  prod_i e_{z_i}(x_i)

M are the masks of a row, pi_i the network's law there. At tokens that are seen the circuit reads their emissions, so
that it is conditioned on them as the network is. Z takes one pass over the row, with sum_c e_z(c) pi_i(c) at each mask.

State 0 begins silent: it emits all ids alike, which cancels in the product, a chain begins in it with probability
1 - 1e-3 and leaves it with 1e-3 a token. So tokens come from the product of marginals at first, up to about 1e-3 a
token in total variation, though the other states emit unevenly from the start: without that gradients cannot tell them
apart. All of it trains. The silent state is not in the paper, nor is the weight of an end, with which a chain can want
something of a row's end (a sum, a closing bracket) that it would otherwise need states for at every distance to it.
"""

import dataclasses
import functools
import math

import flax.linen as nn
import jax
import jax.numpy as jnp

from mdlm_jax.core import hmm
from mdlm_jax.models.declared import Declared
from mdlm_jax.models.layers import weight

LOUD = 1e-3  # probability that a chain begins in a state other than 0, and of leaving it, at first
_SPREAD = 3.0  # standard deviation of fresh logits
_TINY = 1.2e-38  # the smallest normal float32
_EXACT = jax.lax.Precision.HIGHEST


@dataclasses.dataclass(frozen=True)
class CircuitConfig:
    """What is declared: states S, and ids V that are emitted, the columns of the network's head."""

    states: int
    columns: int

    def __post_init__(self):
        for name in ("states", "columns"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)}: must be at least 1")


class _Weights(nn.Module):
    """The circuit's parameters by name."""

    config: CircuitConfig

    @nn.compact
    def __call__(self) -> dict:
        s, v = self.config.states, self.config.columns
        return {
            "start": weight(self, "start", (s,), ("norm",), _silent_first),
            "step": weight(self, "step", (s, s), (None, None), _silent_stays),
            "end": weight(self, "end", (s,), ("norm",), nn.initializers.zeros),
            "leaf": weight(self, "leaf", (s, v), (None, "vocab"), _silent),
        }


def _fresh(key: jax.Array, shape: tuple[int, ...], dtype) -> jax.Array:
    return _SPREAD * jax.random.normal(key, shape, dtype)


def _silent_first(key: jax.Array, shape: tuple[int], dtype) -> jax.Array:
    """The others share `LOUD`."""
    others = jax.nn.log_softmax(_fresh(key, (shape[0] - 1,), dtype)) + math.log(LOUD / (1 - LOUD))
    return jnp.concatenate([jnp.zeros((1,), dtype), others])


def _silent_stays(key: jax.Array, shape: tuple[int, int], dtype) -> jax.Array:
    first, rest = jax.random.split(key)
    others = _fresh(rest, (shape[0] - 1, shape[1]), dtype)
    return jnp.concatenate([_silent_first(first, shape[:1], dtype)[None], others])


def _silent(key: jax.Array, shape: tuple[int, int], dtype) -> jax.Array:
    return jnp.concatenate([jnp.zeros((1, shape[1]), dtype), _fresh(key, (shape[0] - 1, shape[1]), dtype)])


def _boxed(config: CircuitConfig, key: jax.Array) -> dict:
    return _Weights(config).init(key)["params"]


_declared = Declared(_boxed)
init, abstract, shardings = _declared.init, _declared.abstract, _declared.shardings
num_parameters = _declared.num_parameters


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Emissions:
    """log e_z(c) [V, S], an id a row."""

    log: jax.Array

    def of(self, tokens: jax.Array) -> jax.Array:
        """log e_z(x) [..., S] of tokens [...]; 0, which says nothing, of ids that are never emitted."""
        columns = self.log.shape[0]
        return jnp.where((tokens < columns)[..., None], self.log[jnp.minimum(tokens, columns - 1)], 0.0)

    def expected(self, log_probs: jax.Array) -> jax.Array:
        """log sum_c e_z(c) p(c) [..., S] of laws [..., columns], of the first ids; -inf where one is impossible.

        What the likeliest state says of an id is taken out of the sum, so that no state need be likely by itself.
        """
        log, peak = self._peaked(log_probs.shape[-1])
        tilted = log_probs + peak
        total = jax.nn.logsumexp(tilted, axis=-1, keepdims=True)
        return total + _log(jnp.matmul(jnp.exp(tilted - total), jnp.exp(log), precision=_EXACT))

    def mixed(self, log_states: jax.Array, columns: int) -> jax.Array:
        """log sum_z p(z) e_z(c) [..., columns] of laws of the state [..., S], of the first ids."""
        log, peak = self._peaked(columns)
        return peak + _log(jnp.matmul(jnp.exp(log_states), jnp.exp(log).T, precision=_EXACT))

    def _peaked(self, columns: int) -> tuple[jax.Array, jax.Array]:
        """log e - its largest over states, and that [columns], of the first ids."""
        log = self.log[:columns]
        peak = jax.lax.stop_gradient(log.max(-1))
        return log - peak[:, None], peak


def _log(x: jax.Array) -> jax.Array:
    return jnp.log(jnp.maximum(x, _TINY))


def parts(params: dict) -> tuple[hmm.Chain, Emissions]:
    """The normalised chain and emissions of what `init` gives."""
    chain = hmm.Chain(jax.nn.log_softmax(params["start"]), jax.nn.log_softmax(params["step"], axis=-1), params["end"])
    return chain, Emissions(jax.nn.log_softmax(params["leaf"], axis=-1).T)


@functools.partial(jax.tree_util.register_dataclass, data_fields=("params",), meta_fields=("config",))
@dataclasses.dataclass(frozen=True)
class Circuit:
    """A trained one.

    Attributes:
      params: of `init`.
      config: static.
    """

    params: dict = dataclasses.field(repr=False)
    config: CircuitConfig

    def parts(self) -> tuple[hmm.Chain, Emissions]:
        """As the function `parts`."""
        return parts(self.params)
