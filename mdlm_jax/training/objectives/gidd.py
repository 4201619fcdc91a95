"""GIDD: the continuous-time bound of its process, and its two weightings of a token."""

import dataclasses

from mdlm_jax.core import gidd, weights
from mdlm_jax.training.objectives.continuous import ContinuousObjective


@dataclasses.dataclass(frozen=True)
class GiddObjective(ContinuousObjective):
    """The bound of `core.gidd.GiddProcess` (arXiv 2503.04482), at times in [1e-4, 1 - 1e-4] unless told otherwise.

    Weightings: the bound's own; `weights.Clipped`, which cuts it off a token; `weights.Dynamic`. With ``time_max`` 1
    and `end_terms` it is the true bound: at t = 1 everything is the mask, so the prior is 0.
    """

    time_min: float = gidd.FIRST
    time_max: float = gidd.LAST

    def __post_init__(self):
        super().__post_init__()
        if not isinstance(self.process, gidd.GiddProcess):
            raise ValueError(f"process={self.process}: must be a GiddProcess")
        if not isinstance(self.weighting, weights.Elbo | weights.Clipped | weights.Dynamic):
            raise ValueError(f"weighting={self.weighting}: choose Elbo, Clipped or Dynamic")

    def weighed(self, reduced, tokens, noisy, t, weight):
        assert isinstance(self.process, gidd.GiddProcess)
        match self.weighting:
            case weights.Clipped(maximum=maximum):
                return gidd.clipped_loss(self.process, reduced, tokens, noisy, t, maximum)
            case weights.Dynamic():
                return gidd.dynamic_loss(self.process, reduced, tokens, noisy, t)
        return super().weighed(reduced, tokens, noisy, t, weight)
