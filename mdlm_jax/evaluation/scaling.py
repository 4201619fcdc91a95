"""IsoFLOP studies: where at each budget the best size lies, and how optima move with compute.

Protocol of SMDM (arXiv 2410.18514; Hoffmann et al., 2203.15556, approach 2). At a budget of C FLOPs networks of several
sizes N (parameters without embedding and head) are trained on D = C / (6 N) tokens. Their held-out losses are fitted by
a parabola in log N, whose vertex is the best size N* with loss L*; over budgets, by least squares,

    log L* = a log C + b,        log N* = n log C + m,

from the vertices that lie among the sizes of their budget: those beyond them are extrapolated, and told apart.
Intervals are parametric: the losses are drawn again around their parabolas with the spread that the runs of a family
have about theirs, and everything is fitted anew. Numpy alone; losses in nats a token.
"""

import dataclasses
import math
from collections.abc import Iterable, Sequence

import numpy as np

REPLICATES = 2000
_LEAST_SIZES = 3


@dataclasses.dataclass(frozen=True)
class Run:
    """One trained network: its family, budget and size, the held-out loss with its standard error, and the tokens it
    was trained on."""

    family: str
    flops: float
    parameters: int
    loss: float
    stderr: float
    tokens: int = 0


@dataclasses.dataclass(frozen=True)
class Parabola:
    """loss = curvature (log N - log N*)^2 + L*, by least squares over the sizes of a budget.

    Attributes:
      flops: the budget. low, high: the smallest and the largest N. ``size``: N*; ``loss``: L*.
      residual: sum of the squares that is left.
    """

    flops: float
    low: float
    high: float
    curvature: float
    size: float
    loss: float
    residual: float

    @property
    def opens_upwards(self) -> bool:
        return self.curvature > 0

    @property
    def inside(self) -> bool:
        """Whether the best size lies among those that were trained, and is not extrapolated."""
        return self.opens_upwards and self.low <= self.size <= self.high

    def __call__(self, size) -> np.ndarray:
        return self.curvature * (np.log(size) - math.log(self.size)) ** 2 + self.loss


@dataclasses.dataclass(frozen=True)
class Law:
    """value = exp(intercept) C^exponent."""

    exponent: float
    intercept: float

    def __call__(self, flops) -> np.ndarray:
        return np.exp(self.intercept) * np.asarray(flops, np.float64) ** self.exponent

    def inverse(self, value) -> np.ndarray:
        """The budget that gives ``value``."""
        return (np.asarray(value, np.float64) / math.exp(self.intercept)) ** (1 / self.exponent)


@dataclasses.dataclass(frozen=True)
class Family:
    """The fits of a family: a parabola a budget; the laws of L* and N*, None where fewer than two vertices lie
    inside."""

    name: str
    runs: tuple[Run, ...]
    parabolas: tuple[Parabola, ...]
    loss_law: Law | None
    size_law: Law | None

    @property
    def spread(self) -> float:
        """Standard deviation of a run about its parabola; where no degree of freedom is left, the runs' own error."""
        free = len(self.runs) - _LEAST_SIZES * len(self.parabolas)
        own = math.sqrt(np.mean([run.stderr**2 for run in self.runs]))
        return math.sqrt(sum(p.residual for p in self.parabolas) / free) if free > 0 else own


def fit(name: str, runs: Sequence[Run]) -> Family:
    """The fits of one family's runs. Budgets of fewer than three sizes are left out."""
    by_budget: dict[float, list[Run]] = {}
    for run in runs:
        by_budget.setdefault(run.flops, []).append(run)
    whole = [sorted(found, key=lambda run: run.parameters) for _, found in sorted(by_budget.items())
             if len({run.parameters for run in found}) >= _LEAST_SIZES]
    parabolas = tuple(parabola(found) for found in whole)
    good = [p for p in parabolas if p.inside]
    laws = [power_law([p.flops for p in good], [value(p) for p in good]) if len(good) > 1 else None
            for value in (lambda p: p.loss, lambda p: p.size)]
    return Family(name, tuple(run for found in whole for run in found), parabolas, *laws)


def parabola(runs: Sequence[Run]) -> Parabola:
    """Least squares of the runs of one budget."""
    x, y = np.log([run.parameters for run in runs]), np.array([run.loss for run in runs])
    centre = x.mean()
    curvature, slope, level = np.polyfit(x - centre, y, 2)
    vertex = -slope / (2 * curvature) if curvature else math.nan
    left = y - np.polyval([curvature, slope, level], x - centre)
    size = float(np.exp(np.clip(centre + vertex, -700, 700)))
    return Parabola(runs[0].flops, float(np.exp(x.min())), float(np.exp(x.max())), float(curvature), size,
                    float(level - slope**2 / (4 * curvature)) if curvature else math.nan, float((left**2).sum()))


def power_law(flops: Sequence[float], values: Sequence[float]) -> Law | None:
    """Least squares of log value on log C; None where a value is not positive."""
    if min(values) <= 0:
        return None
    exponent, intercept = np.polyfit(np.log(flops), np.log(values), 1)
    return Law(float(exponent), float(intercept))


@dataclasses.dataclass(frozen=True)
class Estimate:
    """A figure and its 95 % interval; ``valid``: share of the replicates that have one at all."""

    value: float
    low: float
    high: float
    valid: float

    def __str__(self) -> str:
        said = f"{self.value:.3g} ({self.low:.3g} to {self.high:.3g})"
        return said if self.valid > 0.95 else f"{said}, of {self.valid:.0%} of the draws alone"


def estimates(families: Sequence[Family], replicates: int = REPLICATES, seed: int = 0) -> dict[str, Estimate]:
    """Exponents of every family; of a pair, masked and autoregressive, the gap and the ratio of sizes.

    ``gap at C``: how many times autoregressive's budget C masked needs for its loss, by masked's law; ``size ratio at
    C``: N* of masked over that of autoregressive. Of families of other names: the first for masked.
    """
    rng = np.random.default_rng(seed)
    found = _figures(families)
    draws: dict[str, list[float]] = {name: [] for name in found}
    for _ in range(replicates):
        again = _figures([fit(family.name, list(_redrawn(family, rng))) for family in families])
        for name in found:
            draws[name].append(again.get(name, math.nan))
    return {name: _estimate(value, np.array(draws[name])) for name, value in found.items()}


def _estimate(value: float, draws: np.ndarray) -> Estimate:
    finite = draws[np.isfinite(draws)]
    low, high = np.percentile(finite, [2.5, 97.5]) if len(finite) else (math.nan, math.nan)
    return Estimate(value, float(low), float(high), len(finite) / max(len(draws), 1))


def _redrawn(family: Family, rng: np.random.Generator) -> Iterable[Run]:
    curves = {p.flops: p for p in family.parabolas}
    for run in family.runs:
        fitted = float(curves[run.flops](run.parameters))
        yield dataclasses.replace(run, loss=fitted + family.spread * rng.standard_normal())


def masked_first(families: Sequence[Family]) -> list[Family]:
    """As they are, but for autoregressive, the last."""
    return sorted(families, key=lambda family: family.name == "autoregressive")


def _figures(families: Sequence[Family]) -> dict[str, float]:
    found = {}
    for family in families:
        if family.loss_law and family.size_law:
            found[f"{family.name}: exponent of L*"] = family.loss_law.exponent
            found[f"{family.name}: exponent of N*"] = family.size_law.exponent
    if len(families) != 2 or not all(family.loss_law and family.size_law for family in families):
        return found
    first, second = masked_first(families)
    assert first.loss_law and first.size_law and second.loss_law and second.size_law
    for flops in (p.flops for p in second.parabolas):
        found[f"gap at {flops:.2g}"] = float(first.loss_law.inverse(second.loss_law(flops)) / flops)
        found[f"size ratio at {flops:.2g}"] = float(first.size_law(flops) / second.size_law(flops))
    return found
