"""The ``process`` section of a run."""

import dataclasses

from mdlm_jax.config.choices import SCHEDULES, parse_spec
from mdlm_jax.errors import require


@dataclasses.dataclass(frozen=True)
class ProcessConfig:
    """The noise: how a clean token becomes mask or a random token."""

    mixing: float = 0.0  # share of uniform noise: 0 masked (MDLM), 1 uniform (UDLM), between them XDLM
    schedule: str = "linear"  # how alpha(t) = (1 - eps) a(t) + eps, the chance of being kept, falls; one of SCHEDULES
    eps: float = 1e-3  # alpha(1), the chance that a token survives to t=1; may be 0 (not used by geometric)

    def __post_init__(self):
        require(0.0 <= self.mixing <= 1.0, "process.mixing", self.mixing, "must lie in [0, 1]")
        require(0.0 <= self.eps < 0.5, "process.eps", self.eps, "must lie in [0, 0.5); 1e-3 is usual")
        name, numbers = parse_spec("process.schedule", self.schedule, SCHEDULES)
        if name == "polynomial":
            require(numbers[0] > 0, "process.schedule", self.schedule, "the power must be positive")
        if name == "geometric":
            require(0 < numbers[0] < numbers[1] <= 80, "process.schedule", self.schedule,
                     "needs 0 < sigma_min < sigma_max <= 80, beyond which float32 knows no exp(-sigma)")
            require(self.eps == ProcessConfig.eps, "process.eps", self.eps,
                     "has no meaning with the geometric schedule, whose ends are its two sigmas; leave it out")
