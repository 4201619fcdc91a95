"""The ``process`` section of a run."""

import dataclasses

from mdlm_jax.config.choices import SCHEDULES, parse_spec
from mdlm_jax.errors import require

_OTHERS = {"stationary": ("p_uniform", "gamma"), "gidd": ("mixing", "schedule", "eps")}  # what a family does not read


@dataclasses.dataclass(frozen=True)
class ProcessConfig:
    """The noise: how a clean token becomes mask or a random token."""

    family: str = "stationary"  # stationary: by mixing, schedule and eps | gidd: by p_uniform and gamma, GIDD's noise
    mixing: float = 0.0  # share of uniform noise: 0 masked (MDLM), 1 uniform (UDLM), between them XDLM
    schedule: str = "linear"  # how alpha(t) = (1 - eps) a(t) + eps, the chance of being kept, falls; one of SCHEDULES
    eps: float = 1e-3  # alpha(1), the chance that a token survives to t=1; may be 0 (not used by geometric)
    p_uniform: float = 0.1  # gidd only: share of uniform noise at t = 1/2, its most, in [0, 1)
    gamma: float = 1.0  # gidd only: how it rises and falls, (t (1 - t))^(gamma / 2), in (0, 2]

    def __post_init__(self):
        require(self.family in _OTHERS, "process.family", self.family, f"choose one of {', '.join(_OTHERS)}")
        for name in _OTHERS[self.family]:
            require(getattr(self, name) == getattr(ProcessConfig, name), f"process.{name}", getattr(self, name),
                     f"is not read with process.family={self.family}; leave it out")
        require(0.0 <= self.p_uniform < 1.0, "process.p_uniform", self.p_uniform, "must lie in [0, 1)")
        require(0.0 < self.gamma <= 2.0, "process.gamma", self.gamma, "must lie in (0, 2]")
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

    @property
    def masked_only(self) -> bool:
        """Whether every corrupted token is the mask."""
        return self.family == "stationary" and self.mixing == 0.0

    @property
    def title(self) -> str:
        """What is said of it in pictures and errors."""
        return f"mixing {self.mixing:g}" if self.family == "stationary" else f"GIDD, p_uniform {self.p_uniform:g}"
