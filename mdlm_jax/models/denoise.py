"""A network as the function a sampling loop calls."""

import dataclasses

import jax

from mdlm_jax.core.genmd4 import ScheduledPrediction, VectorSchedule
from mdlm_jax.core.prediction import Head, Prediction
from mdlm_jax.models import api
from mdlm_jax.models.config import TransformerConfig


@dataclasses.dataclass(frozen=True)
class Denoiser:
    """``denoiser(params, tokens [B, L], time [B]) -> Prediction``; hashable, so a loop is compiled once for it.

    ``columns``: ids there are; a head that is wider, to be shared evenly by devices, loses the rest. 0: all.
    """

    network: TransformerConfig
    columns: int = 0

    def __call__(self, params: dict, tokens: jax.Array, time: jax.Array) -> Prediction:
        found = api.apply(self.network, params, tokens, time=time if self.network.time_conditioning else None)
        if not 0 < self.columns < found.num_columns:
            return found
        bias = None if found.head.bias is None else found.head.bias[: self.columns]
        return Prediction(found.hidden, Head(found.head.kernel[:, : self.columns], bias))


@dataclasses.dataclass(frozen=True)
class ScheduledDenoiser:
    """As `Denoiser`, for params {"network", "schedule"} of GenMD4: the learned powers come with the prediction."""

    network: TransformerConfig

    def __call__(self, params: dict, tokens: jax.Array, time: jax.Array) -> ScheduledPrediction:
        found = Denoiser(self.network)(params["network"], tokens, time)
        return ScheduledPrediction(found.hidden, found.head, VectorSchedule().powers(params["schedule"]))
