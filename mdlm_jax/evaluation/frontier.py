"""Which decoder to take: settings of all of them, their frontier of quality against forwards, and the cheapest that is
good enough.

Quality is one of two figures. Cross-entropy of samples under a judge (`evaluation.judges`), in nats a token, is better
when it is lower, but a decoder that keeps to the likely lowers it and writes dull rows; so a setting counts only while
the entropy of its rows stays near that of text. The share of right answers is better when it is higher, and needs no
such guard. Numpy and matplotlib alone.
"""

import dataclasses
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from mdlm_jax.sampling import registry

_GREY = "#666666"
_EACH = (1, 2, 4, 8)  # tokens a step of decoders with a quota
_QUOTA: tuple[dict, ...] = ({},)

# What is tried of each decoder: values of its dial; those that write several tokens a step are in `_BY_STEPS`.
DIALS: dict[str, tuple[Mapping[str, Any], ...]] = {
    "ancestral": ({"reuse": True},),
    "first_hitting": ({"parallel": True},),
    "remdm_cap": _QUOTA,
    "remdm_rescale": _QUOTA,
    "remdm_conf": _QUOTA,
    "remdm_loop": _QUOTA,
    "p2": ({}, {"planner": "trained"}),
    "prism": _QUOTA,
    "low_confidence": ({"remasking": "top"}, {"remasking": "random"}, {}),
    "dream": _QUOTA,
    "margin": _QUOTA,
    "draft_edit": _QUOTA,
    "threshold": tuple({"threshold": value} for value in (0.5, 0.7, 0.8, 0.9, 0.97)),
    "smoothed": tuple({"threshold": value} for value in (0.5, 0.7, 0.9)),
    "factor": tuple({"factor": value} for value in (0.5, 1.0, 2.0, 4.0)),
    "hierarchy": ({"threshold": 0.7, "low": 0.4}, {"threshold": 0.92, "low": 0.62}),
    "credit": tuple({"threshold": value} for value in (0.5, 0.7, 0.9)),
    "entropy_bound": tuple({"gamma": value} for value in (0.01, 0.1, 0.5, 1.0, 2.0)),
    "klass": tuple({"threshold": value} for value in (0.4, 0.6, 0.9)),
    "saber": tuple({"num_to_transfer": value} for value in (1, 2, 4)),
    "slow_fast": tuple({"threshold": value} for value in (0.5, 0.7, 0.9)),
    "prophet": ({"early": 7.5, "middle": 5.0, "late": 2.5}, {"early": 3.0, "middle": 2.0, "late": 1.0}),
    "lopa": tuple({"threshold": value, "branches": 3} for value in (0.5, 0.7, 0.9)),
    "wino": ({"threshold": 0.6, "keep": 0.9}, {"threshold": 0.4, "keep": 0.6}, {"threshold": 0.8, "keep": 0.9}),
    "free_dave": ({"drafts": 4, "temperature": 0.0},),
    "assd": tuple({"drafts": value} for value in (2, 5, 8)),
    "d2f": tuple({"threshold": value} for value in (0.5, 0.7, 0.9)),
    "block_threshold": tuple({"threshold": value} for value in (0.5, 0.7, 0.9, 0.95)),
    "joint_threshold": ({},),
    "joint_speedy": ({},),
    "soft_parallel": tuple({"threshold": value} for value in (0.0, 0.5, 0.8)),
    "levenshtein": ({"threshold": 0.5, "edit_threshold": 0.0}, {"threshold": 0.7, "edit_threshold": 0.5}),
    "adjust": tuple({"tokens": value} for value in (2, 4, 8)),
    "adjust_verified": ({},),
    "copula": _QUOTA,
    "maria": ({},),
    "codd": tuple({"tokens": value} for value in (2, 4, 8)),
}
_BY_STEPS = {name for name, dial in DIALS.items() if dial is _QUOTA} | {
    "ancestral", "first_hitting", "p2", "low_confidence"}


@dataclasses.dataclass(frozen=True)
class Setting:
    """A decoder, its numbers, and the tokens it writes a step; 0: it is given a step for each, or needs none.
    ``plain``: by the model's own way, whatever cache the others have."""

    decoder: str
    numbers: Mapping[str, Any]
    each: int = 0
    plain: bool = False

    @property
    def label(self) -> str:
        told = [f"{name} {value:g}" if isinstance(value, float) else f"{name} {str(value).lower()}"
                for name, value in self.numbers.items()]
        return ", ".join([self.decoder, *told, *([f"{self.each} a step"] if self.each else []),
                          *(["plain"] if self.plain else [])])

    def steps(self, tokens: int, size: int) -> int | None:
        """Reverse steps for ``tokens`` in blocks of ``size``; None: as many as the decoder takes."""
        if not registry.require(self.decoder).reads_steps:
            return None
        return -(-tokens // size) * -(-size // max(self.each, 1))


@dataclasses.dataclass(frozen=True)
class Point:
    """What a setting gave.

    Attributes:
      forwards: of the network, a token. ``work``: whole rows it was run on, a token: more where a forward asks of
        several copies of a row, less where it runs on a window alone. Small networks beside it are not counted.
      quality: mean and standard error. ``entropy``: of the tokens of a row, nats, likewise; None: no guard.
      speed: tokens a second, once compiled.
    """

    setting: Setting
    forwards: float
    work: float
    quality: tuple[float, float]
    entropy: tuple[float, float] | None
    speed: float


@dataclasses.dataclass(frozen=True)
class Wanted:
    """What is good enough.

    Attributes:
      floor: quality to be reached: at most so many nats, or at least this share of right answers.
      higher: whether more is better.
      entropy: the least entropy of a row, nats; 0: any.
    """

    floor: float
    higher: bool
    entropy: float = 0.0

    def met(self, point: Point) -> bool:
        value = point.quality[0]
        return self.lively(point) and (value >= self.floor and value > 0 if self.higher else value <= self.floor)

    def lively(self, point: Point) -> bool:
        return point.entropy is None or point.entropy[0] >= self.entropy


def settings(names: Iterable[str] = (), temperature: float | None = None) -> list[Setting]:
    """The settings that are tried, of the named decoders or of all.

    Args:
      temperature: for all decoders that have one, but those that decode greedily; None: their own.
    Raises:
      ValueError: a decoder that does not exist.
    """
    found = []
    for name in names or DIALS:
        has = registry.require(name).numbers
        told = {"temperature": temperature} if temperature is not None and "temperature" in has else {}
        found += [Setting(name, {**dial, **told, **dial}, each) for dial in DIALS[name]
                  for each in (_EACH if name in _BY_STEPS else (0,))]
    return found


def usual_floor(points: Sequence[Point], usual: Point, higher: bool) -> float:
    """What is good enough unless told otherwise, within two standard errors: of right answers the most that any setting
    gets; in nats what the ``usual`` decoder gives at one token a step, since the least is that of dull rows."""
    point = max(points, key=lambda point: point.quality[0]) if higher else usual
    value, error = point.quality
    error = 0.0 if math.isnan(error) else error
    return value - 2 * error if higher else value + 2 * error


def frontier(points: Sequence[Point], wanted: Wanted) -> list[Point]:
    """The points with lively rows that no other beats in both, cheapest first."""
    sign = -1.0 if wanted.higher else 1.0
    found: list[Point] = []
    for point in sorted(filter(wanted.lively, points), key=lambda point: (point.work, sign * point.quality[0])):
        if math.isfinite(point.quality[0]) and (
                not found or sign * point.quality[0] < sign * found[-1].quality[0]):
            found.append(point)
    return found


def recommended(points: Sequence[Point], wanted: Wanted, by: str = "work") -> Point | None:
    """The cheapest that is good enough: by ``work`` or by the clock, ``time``. None: none is."""
    good = [point for point in points if wanted.met(point)]
    return min(good, key=lambda point: point.work if by == "work" else -point.speed, default=None)


def table(points: Sequence[Point], wanted: Wanted, refused: Mapping[str, str], by: str = "work") -> str:
    """Markdown, cheapest first: which are on the frontier, dull, and recommended; then what does not fit the model."""
    edge, best = frontier(points, wanted), recommended(points, wanted, by)
    what = "right answers" if wanted.higher else "nats a token"
    guarded = any(point.entropy for point in points)
    heads = ["", "decoder", "forwards a token", "network rows a token", what,
             *(["entropy of a row"] if guarded else []), "tokens a second"]
    lines = [f"| {' | '.join(heads)} |", "|" + "---|" * len(heads)]
    for point in sorted(points, key=lambda point: point.work):
        marks = {"recommended": point is best, "frontier": point in edge, "dull": not wanted.lively(point)}
        cells = [", ".join(mark for mark, holds in marks.items() if holds), point.setting.label,
                 f"{point.forwards:.3f}", f"{point.work:.3f}", _said(point.quality),
                 *([_said(point.entropy)] if guarded and point.entropy else []), f"{point.speed:,.0f}"]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join([*lines, *(f"left out: {label}: {why}" for label, why in refused.items())])


def _said(value: tuple[float, float]) -> str:
    return f"{value[0]:.3f}" if math.isnan(value[1]) else f"{value[0]:.3f} +- {value[1]:.3f}"


def draw(points: Sequence[Point], wanted: Wanted, path: str | Path, by: str = "work") -> None:
    """Quality against rows of the network a token, one colour a decoder; hollow: dull rows. PNG."""
    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 5.5), dpi=140, facecolor="white", layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    names, colours = list(dict.fromkeys(point.setting.decoder for point in points)), matplotlib.colormaps["tab20"]
    for number, name in enumerate(names):
        own = sorted((point for point in points if point.setting.decoder == name and
                      math.isfinite(point.quality[0])), key=lambda point: point.work)
        colour, marker = colours(number % 20), "osv^D"[number // 5 % 5]
        for lively in (True, False):
            some = [point for point in own if wanted.lively(point) == lively]
            axes.errorbar([p.work for p in some], [p.quality[0] for p in some],
                          [0.0 if math.isnan(p.quality[1]) else p.quality[1] for p in some], fmt=marker, color=colour,
                          markerfacecolor=colour if lively else "none", markersize=5, linewidth=1,
                          label=name if lively or not any(map(wanted.lively, own)) else None)
    edge = frontier(points, wanted)
    axes.plot([p.work for p in edge], [p.quality[0] for p in edge], color="black", linewidth=1, zorder=0,
              label="frontier")
    axes.axhline(wanted.floor, color=_GREY, linestyle=":", linewidth=1.2, label="floor")
    if (best := recommended(points, wanted, by)) is not None:
        axes.plot(best.work, best.quality[0], "*", color="black", markersize=15, zorder=3, label="recommended")
    if edge:
        axes.set_xscale("log", base=2)
    axes.set_xlabel("rows of the network a token")
    axes.set_ylabel("right answers" if wanted.higher else "cross-entropy of samples, nats a token")
    axes.grid(color="#e8e8e8", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    figure.legend(loc="outside right upper", frameon=False, fontsize=8)
    figure.savefig(path, format="png")
