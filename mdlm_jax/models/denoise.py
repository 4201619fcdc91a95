"""A network as the function a sampling loop calls."""

import dataclasses

import jax
import jax.numpy as jnp

from mdlm_jax.core.genmd4 import ScheduledPrediction, VectorSchedule
from mdlm_jax.core.prediction import Head, Prediction
from mdlm_jax.models import api
from mdlm_jax.models.config import TransformerConfig


@dataclasses.dataclass(frozen=True)
class Denoiser:
    """``denoiser(params, tokens [B, L], time [B]) -> Prediction``; hashable, so a loop is compiled once for it.

    A network of the permutation contract reads from left to right.
    ``columns``: ids there are; a head that is wider, to be shared evenly by devices, loses the rest. 0: all.
    """

    network: TransformerConfig
    columns: int = 0

    def __call__(self, params: dict, tokens: jax.Array, time: jax.Array) -> Prediction:
        order = None
        if self.network.attention == "permutation":
            order = jnp.broadcast_to(jnp.arange(tokens.shape[1]), tokens.shape)
        time = time if self.network.time_conditioning else None
        return _narrow(api.apply(self.network, params, tokens, time=time, order=order), self.columns)


@dataclasses.dataclass(frozen=True)
class CausalDenoiser:
    """As `Denoiser`, for a causal network whose row i scores token i+1: row i of the prediction scores token i.

    Token i is scored from the tokens before it alone; the first from ``start_id``, which stands before every row.
    """

    network: TransformerConfig
    start_id: int
    columns: int = 0

    def __call__(self, params: dict, tokens: jax.Array, time: jax.Array) -> Prediction:
        del time
        before = one_before(tokens, None, self.start_id)
        return _narrow(api.apply(self.network, params, before, raw=True), self.columns)


def one_before(tokens: jax.Array, segment: jax.Array | None, start_id: int) -> jax.Array:
    """[B, L]: the token before each, ``start_id`` before the first of a row and of every segment [B, L] int32."""
    before = jnp.roll(tokens, 1, axis=1)
    first = jnp.arange(tokens.shape[1])[None] == 0
    if segment is not None:
        first = first | (segment != jnp.roll(segment, 1, axis=1))
    return jnp.where(first, jnp.asarray(start_id, tokens.dtype), before)


def _narrow(found: Prediction, columns: int) -> Prediction:
    if not 0 < columns < found.num_columns:
        return found
    bias = None if found.head.bias is None else found.head.bias[:columns]
    return Prediction(found.hidden, Head(found.head.kernel[:, :columns], bias))


@dataclasses.dataclass(frozen=True)
class ScheduledDenoiser:
    """As `Denoiser`, for params {"network", "schedule"} of GenMD4: the learned powers come with the prediction."""

    network: TransformerConfig

    def __call__(self, params: dict, tokens: jax.Array, time: jax.Array) -> ScheduledPrediction:
        found = Denoiser(self.network)(params["network"], tokens, time)
        return ScheduledPrediction(found.hidden, found.head, VectorSchedule().powers(params["schedule"]))
