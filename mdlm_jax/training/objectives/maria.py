"""MARIA: a linear head learns to join a masked network and its autoregressive twin (`models.fused`)."""

import dataclasses

import jax

from mdlm_jax.core.prediction import Prediction
from mdlm_jax.models import api, flops, fused, twin
from mdlm_jax.models.config import TransformerConfig
from mdlm_jax.training.objectives.base import Routers
from mdlm_jax.training.objectives.count import CountObjective


@dataclasses.dataclass(frozen=True)
class MariaObjective(CountObjective):
    """-log p(x_i | the visible tokens, x_<i) at every masked i (arXiv 2502.06901), masks drawn by number.

    The masked network sees the row with its masks, the twin the true tokens before; a forward of each, and no gradient
    into either. By the chain rule the sum over a row's masks is -log p(what is masked | what is visible), exactly. With
    the bound's own weights the loss a token is the mean of the nats a masked token over all numbers of masks; the paper
    counts every masked token alike (train.weighting=constant).

    Attributes:
      twin: the shape of the autoregressive network.
    """

    twin: TransformerConfig | None = None

    def __post_init__(self):
        super().__post_init__()
        if not self.process.masked_only:
            raise ValueError(f"mixing={self.process.mixing}: MariaObjective knows no noise but the mask; set it to 0")
        if self.network.attention != "bidirectional" or self.network.classes:
            raise ValueError(f"network={self.network}: must be bidirectional, without classes")
        if self.twin is None:
            raise ValueError("twin=None: needs the shape of an autoregressive network; give it with train.twin")
        twin.check_network(self.twin)

    @property
    def fused(self) -> fused.FusedConfig:
        """What trains."""
        return fused.FusedConfig(self.network, self.twin)

    def init(self, key: jax.Array) -> dict:
        weights = super().init(key) | {"twin": api.init(self.twin, jax.random.fold_in(key, 1))}
        return weights | {"fused": fused.averaged(self.fused, weights["network"], weights["twin"])}

    def network_flops(self, rows: int, length: int, head_positions: int) -> int:
        """A forward of each network without its head, and the fused one with the gradient of its weights."""
        return flops.maria_train_flops(self.network, self.twin, rows, length, head_positions)

    def run(self, trainable, batch, noisy, time, key, rows, **more) -> tuple[Prediction, Routers]:
        """The fused prediction of the batch's tokens."""
        masked = super().run(trainable, batch, noisy, time, key, rows, **more)[0].hidden
        before = twin.hidden_before(self.twin, trainable["twin"], batch["tokens"], self.process.mask_id,
                                    batch["attention_mask"], batch["positions"]).hidden
        return fused.prediction(trainable["fused"], *jax.lax.stop_gradient((masked, before))), Routers()
