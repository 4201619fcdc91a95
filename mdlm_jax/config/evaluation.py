"""The ``eval`` and ``sample`` sections of a run."""

import dataclasses

from mdlm_jax.config.choices import require_seed
from mdlm_jax.errors import require

NEW_TOKENS = 128  # of an answer, unless it is told otherwise or there is less room


@dataclasses.dataclass(frozen=True)
class EvalConfig:
    """The held-out bound, with the averaged weights."""

    every: int = 500  # steps between held-out evaluations during training
    rows: int = 64  # held-out rows in each of them
    final_rows: int = 512  # held-out rows after the last step (fewer if there are fewer)
    draws: int = 4  # noise draws a row

    def __post_init__(self):
        for field in dataclasses.fields(self):
            require(getattr(self, field.name) > 0, f"eval.{field.name}", getattr(self, field.name), "must be positive")


@dataclasses.dataclass(frozen=True)
class SampleConfig:
    """What is drawn after the last step, and by launch.sample unless it is told otherwise."""

    num: int = 4  # how many samples
    steps: int = 64  # denoising steps, one network call each
    temperature: float = 1.0  # below 1 sharper, 0 greedy
    top_p: float = 1.0  # draw from the likeliest tokens that hold this much probability
    top_k: int = 0  # draw from the so many likeliest tokens; 0: from all
    guidance: float = 0.0  # strength w of guidance towards the class, or the prompt (launch.sample only); 0: none
    seed: int = 0  # the same seed gives the same samples

    def __post_init__(self):
        require_seed("sample.seed", self.seed)
        require(self.num > 0, "sample.num", self.num, "must be positive")
        require(self.steps > 0, "sample.steps", self.steps, "must be positive")
        require(self.temperature >= 0, "sample.temperature", self.temperature, "must not be negative; 0 is greedy")
        require(0.0 < self.top_p <= 1.0, "sample.top_p", self.top_p, "must lie in (0, 1]")
        require(self.top_k >= 0, "sample.top_k", self.top_k, "must not be negative; 0 draws from all tokens")
        require(self.guidance >= 0, "sample.guidance", self.guidance, "must not be negative; 0 is none")
