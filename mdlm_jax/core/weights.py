"""How much a corrupted token's cross-entropy counts, by the noise level.

The noise level of a corrupted token is its masked share: n / L_i where n of the L_i positions that noise may touch are
masked (`counts`), 1 - alpha(t) in continuous time. `Elbo` is the bound's own weight, corrected for the law from which
the levels are drawn. Every other weighting w multiplies each corrupted token's cross-entropy as it is and is *not*
corrected for that law p, so that training minimises

    E_{level ~ p} [ w(level) sum_{corrupted} CE ],

which bounds nothing: level law and weighting act as one product p(level) w(level). With p uniform,
w(level) = 1 / level is the bound itself (of counts; in time, of the linear schedule with eps = 0).
"""

import abc
import dataclasses
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from mdlm_jax.core import levels, specs

SMALLEST_LEVEL = 1e-7  # levels below it count as it
LARGEST_POWER = 5.0  # SMALLEST_LEVEL ** -LARGEST_POWER is a float32


@dataclasses.dataclass(frozen=True)
class Elbo:
    """The bound's own weight: L_i / n of uniform counts, rate / (1 - alpha) in time, over the density of the level."""

    is_bound = True


@dataclasses.dataclass(frozen=True)
class Multiplier(abc.ABC):
    """A weighting that is a function of the level alone."""

    is_bound = False

    def __call__(self, level: jax.Array) -> jax.Array:
        """w(level), the shape of ``level``; for levels in [0, 1], those below `SMALLEST_LEVEL` taken for it."""
        return self._at(jnp.maximum(level, SMALLEST_LEVEL))

    @abc.abstractmethod
    def _at(self, level: jax.Array) -> jax.Array: ...


@dataclasses.dataclass(frozen=True)
class Power(Multiplier):
    """level^-power. 0: every corrupted token counts alike (MaskGIT, arXiv 2202.04200); 1: LLaDA's 1 / t (2502.09992).

    Negative powers favour heavily masked rows, powers above 1 lightly masked ones even more than the bound does.
    """

    power: float

    def __post_init__(self):
        if not abs(self.power) <= LARGEST_POWER:
            raise ValueError(f"power={self.power}: must lie in [-{LARGEST_POWER:g}, {LARGEST_POWER:g}]")

    def _at(self, level):
        return level**-self.power if self.power else jnp.ones_like(level)


@dataclasses.dataclass(frozen=True)
class Clipped(Multiplier):
    """min(1 / level, maximum): lightly masked rows cannot dominate a batch (as GIDD clips its weights, 2503.04482)."""

    maximum: float

    def __post_init__(self):
        if not 0.0 < self.maximum < math.inf:
            raise ValueError(f"maximum={self.maximum}: must be positive and finite")

    def _at(self, level):
        return jnp.minimum(1.0 / level, self.maximum)


@dataclasses.dataclass(frozen=True)
class Dynamic:
    """GIDD's dynamic weight (arXiv 2503.04482), no function of the level alone: `gidd.dynamic_weight`."""

    is_bound = False


@dataclasses.dataclass(frozen=True, eq=False)
class Custom(Multiplier):
    """Any function from levels to weights, of any shape and elementwise; compiled once for each function object.

    Raises:
      ValueError: it cannot be called or traced, changes the shape, or gives something negative or not finite on
        [1e-3, 1].
    """

    function: Callable[[jax.Array], jax.Array]

    def __post_init__(self):
        if not callable(self.function):
            raise ValueError(f"function={self.function!r}: must take an array of levels and return their weights")
        tried = np.asarray([[1e-3, 0.1], [0.5, 1.0]], np.float32)
        try:
            found = np.asarray(jax.jit(lambda level: self.function(level))(tried))
        except jax.errors.JAXTypeError as error:
            raise ValueError(f"function={self.function!r}: cannot be traced; write it with jax.numpy") from error
        if found.shape != tried.shape:
            raise ValueError(f"function={self.function!r}: gives shape {found.shape} for levels of shape "
                             f"{tried.shape}; it must be elementwise")
        if not (np.isfinite(found) & (found >= 0)).all():
            raise ValueError(f"function={self.function!r}: gives {found.ravel()} for the levels {tried.ravel()}; "
                             "weights must be finite and not negative")

    def __eq__(self, other):
        return type(other) is Custom and self.function is other.function

    def __hash__(self):
        return hash((Custom, id(self.function)))

    def _at(self, level):
        return self.function(level)


Weighting = Elbo | Power | Clipped | Dynamic | Custom


def check(weighting: Weighting, law: levels.Law) -> None:
    """ValueError where ``weighting`` is the bound's and no weight can make one of levels drawn from ``law``."""
    if weighting.is_bound and not law.covers_all:
        raise ValueError(f"law={law}: leaves out noise levels, so no weight makes it a bound; choose a weighting other "
                         "than Elbo(), such as Power(0)")


def from_spec(spec: str) -> Weighting:
    """The weighting of ``TrainConfig.weighting``: ``"elbo"``, ``"constant"``, ``"power:0.5"``, ``"clipped:10"``."""
    name, numbers = specs.parse("weighting", spec, {"elbo": 0, "constant": 0, "power": 1, "clipped": 1, "dynamic": 0})
    makers: dict[str, Callable[..., Weighting]] = {
        "elbo": Elbo, "constant": lambda: Power(0.0), "power": Power, "clipped": Clipped, "dynamic": Dynamic}
    return makers[name](*numbers)
