"""A network as the function a sampling loop calls."""

import dataclasses

import jax

from mdlm_jax.core.genmd4 import ScheduledPrediction, VectorSchedule
from mdlm_jax.core.prediction import Prediction
from mdlm_jax.models import api
from mdlm_jax.models.config import TransformerConfig


@dataclasses.dataclass(frozen=True)
class Denoiser:
    """``denoiser(params, tokens [B, L], time [B]) -> Prediction``; hashable, so a loop is compiled once for it."""

    network: TransformerConfig

    def __call__(self, params: dict, tokens: jax.Array, time: jax.Array) -> Prediction:
        return api.apply(self.network, params, tokens, time=time if self.network.time_conditioning else None)


@dataclasses.dataclass(frozen=True)
class ScheduledDenoiser:
    """As `Denoiser`, for params {"network", "schedule"} of GenMD4: the learned powers come with the prediction."""

    network: TransformerConfig

    def __call__(self, params: dict, tokens: jax.Array, time: jax.Array) -> ScheduledPrediction:
        found = Denoiser(self.network)(params["network"], tokens, time)
        return ScheduledPrediction(found.hidden, found.head, VectorSchedule().powers(params["schedule"]))
