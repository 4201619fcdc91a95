"""How a batch's noise levels are drawn: the law of the level and the coupling between rows.

A level is a number in (0, 1]: the time of the continuous losses, the masked share of the count losses. It is
``law.quantile(u)``; the coupling decides how the u of different rows hang together. Every row's u is uniform on average
over the batch, so all couplings estimate the same mean, with less and less spread:

    iid          u_i independent
    stratified   u_i uniform in [i/B, (i+1)/B)              (MDLM's low-discrepancy sampler, arXiv 2406.07524)
    antithetic   rows 2i, 2i+1 have u and 1 - u, u stratified over the pairs; a fair coin says which comes first
"""

import dataclasses
import math

import jax
import jax.numpy as jnp

from mdlm_jax.core import specs
from mdlm_jax.core.keys import row_keys

COUPLINGS = ("iid", "stratified", "antithetic")
_BELOW_ONE = 1.0 - 2.0**-24


@dataclasses.dataclass(frozen=True)
class Uniform:
    """Level uniform on [low, high]."""

    low: float = 0.0
    high: float = 1.0

    def __post_init__(self):
        if not 0.0 <= self.low < self.high <= 1.0:
            raise ValueError(f"low={self.low}, high={self.high}: need 0 <= low < high <= 1")

    @property
    def covers_all(self) -> bool:
        """Whether every level has positive density, without which no weight gives a bound."""
        return self.low == 0.0 and self.high == 1.0

    @property
    def pair_share(self) -> float:
        """The largest value of quantile(u) + quantile(1 - u)."""
        return self.low + self.high

    def quantile(self, u):
        return self.low + (self.high - self.low) * u

    def density(self, level):
        return jnp.full_like(level, 1.0 / (self.high - self.low))

    def bin_probability(self, number, size):
        """P((number - 1) / size < level <= number / size) for whole numbers in floats, without cancellation."""
        part = jnp.minimum(number, size * self.high) - jnp.maximum(number - 1.0, size * self.low)
        return jnp.maximum(part, 0.0) / (size * (self.high - self.low))


@dataclasses.dataclass(frozen=True)
class Cosine:
    """Level = sin(pi u / 2): MaskGIT's law (arXiv 2202.04200), which favours heavy masking."""

    covers_all = True
    pair_share = math.sqrt(2.0)

    def quantile(self, u):
        return jnp.sin(jnp.pi / 2 * u)

    def density(self, level):
        return 2.0 / (jnp.pi * jnp.sqrt(jnp.maximum(1.0 - level**2, jnp.finfo(level.dtype).tiny)))

    def bin_probability(self, number, size):
        """As for `Uniform`: 2 / pi (arcsin a - arcsin b) with sin(A - B) = (a^2 - b^2) / (a cos B + b cos A)."""
        before = number - 1.0
        cos_a = jnp.sqrt((size - number) * (size + number)) / size
        cos_b = jnp.sqrt((size - before) * (size + before)) / size
        sine = (2.0 * number - 1.0) / size / (number * cos_b + before * cos_a)
        return 2.0 / jnp.pi * jnp.arcsin(jnp.minimum(sine, 1.0))


@dataclasses.dataclass(frozen=True)
class Fixed:
    """One level for every row: BERT's 15 %, say."""

    level: float
    covers_all = False

    def __post_init__(self):
        if not 0.0 < self.level <= 1.0:
            raise ValueError(f"level={self.level}: must lie in (0, 1]")

    @property
    def pair_share(self) -> float:
        return 2.0 * self.level

    def quantile(self, u):
        return jnp.full_like(u, self.level)


Law = Uniform | Cosine | Fixed


def from_spec(spec: str) -> Law:
    """The law named by ``TrainConfig.level_law``: ``"uniform"``, ``"cosine"``, ``"band:0.3,0.8"``, ``"fixed:0.15"``."""
    name, numbers = specs.parse("level law", spec, {"uniform": 0, "cosine": 0, "band": 2, "fixed": 1})
    return {"uniform": Uniform, "cosine": Cosine, "band": Uniform, "fixed": Fixed}[name](*numbers)


def unit_levels(key: jax.Array, total_rows: int, coupling: str, rows: jax.Array | None = None) -> jax.Array:
    """u in (0, 1) for each of ``rows`` of a global batch of ``total_rows``. [len(rows)] float32.

    Args:
      key: the step's key; the result for a row depends on it and on the row's index only.
      rows: [B] int32 indices in the global batch; for antithetic levels whole pairs 2i, 2i+1 side by side. None: all.
    Raises:
      ValueError: an unknown coupling, or antithetic rows that are not whole pairs.
    """
    rows = jnp.arange(total_rows) if rows is None else rows
    if coupling not in COUPLINGS:
        raise ValueError(f"coupling={coupling!r}: choose one of {', '.join(COUPLINGS)}")
    if coupling != "antithetic":
        own = jax.vmap(_open_unit)(row_keys(key, rows))
        return own if coupling == "iid" else jnp.minimum((rows + own) / total_rows, _BELOW_ONE)
    if rows.shape[0] % 2 or total_rows % 2:
        raise ValueError(f"{rows.shape[0]} of {total_rows} rows: antithetic levels come in pairs, so both must be even")
    pairs = rows[::2] // 2
    keys = row_keys(key, pairs)
    low = (pairs + jax.vmap(_open_unit)(keys)) / total_rows  # in (0, 1/2), one stratum a pair
    high = jnp.minimum(1.0 - low, _BELOW_ONE)  # a multiple of 2^-24, so 1 - high is exact
    flip = jax.vmap(lambda k: jax.random.bernoulli(jax.random.fold_in(k, 1)))(keys)
    first = jnp.where(flip, high, 1.0 - high)
    return jnp.stack([first, 1.0 - first], axis=1).reshape(rows.shape[0])


def _open_unit(key: jax.Array) -> jax.Array:
    """Uniform on the midpoints of 2^23 cells: never 0, never 1, and 1 - u is exact."""
    bits = jax.random.bits(key, (), jnp.uint32) >> 9
    return (bits.astype(jnp.float32) + 0.5) * 2.0**-23


def times(law: Law, u: jax.Array, time_min: float, time_max: float = 1.0) -> tuple[jax.Array, jax.Array]:
    """Times t in [time_min, time_max] and the weight 1 / density that makes their mean an integral over t.

    The largest t is the float32 below 1, where no schedule's rate is zero yet. For `Fixed` there is no density; the
    weight is 1 and the result is no bound.
    """
    level = law.quantile(u)
    t = jnp.minimum(time_min + (time_max - time_min) * level, min(time_max, _BELOW_ONE))
    if isinstance(law, Fixed):
        return t, jnp.ones_like(t)
    return t, (time_max - time_min) / law.density(level)
