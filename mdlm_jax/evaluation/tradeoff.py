"""Understanding against few-step generation: records of several models as one table and one figure.

A record is what launch.evaluate writes. Records with the same values of some configuration fields (process.mixing, say)
are one group: seeds of one recipe, which must agree in everything else that makes a model. A group's figure is the mean
over its records; its error is the standard error over them, or of a single record its own. Numpy and matplotlib alone.
"""

import dataclasses
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mdlm_jax.config import ConfigError
from mdlm_jax.config.run import HOW_FIELDS, REPORT_SECTIONS

Value = tuple[float, float]  # mean and standard error
_GREY = "#666666"


@dataclasses.dataclass(frozen=True)
class Group:
    """Models of one recipe.

    Attributes:
      label: values of the fields that tell it from the others, as in ``0.1``; key: the same for sorting.
      records: of its seeds.
    """

    label: str
    key: tuple
    records: tuple[Mapping[str, Any], ...]

    def likelihood(self, text: str, kind: str = "bound") -> Value | None:
        """Nats a token of a text; ``kind``: bound or published."""
        return self._mean([record["likelihood"][text][kind]["nats"] for record in self.records
                           if kind in record["likelihood"].get(text, {})])

    def entropy(self, steps: str) -> Value | None:
        """Nats a row of samples in so many steps; ``held-out``: of rows of the data."""
        return self._mean([part["entropy"] for part in self._parts(steps)])

    def cross_entropy(self, steps: str, judge: str) -> Value | None:
        """Nats a token of the judge."""
        return self._mean([part["cross_entropy"][judge] for part in self._parts(steps)
                           if judge in part["cross_entropy"]])

    def _parts(self, steps: str) -> list[Mapping[str, Any]]:
        return [record["generation"][steps] for record in self.records if steps in record["generation"]]

    def _mean(self, values: Sequence[Sequence[float]]) -> Value | None:
        """None unless every record has one: a mean over some of the seeds would be compared with others over all."""
        if not values or len(values) < len(self.records):
            return None
        if len(values) == 1:
            mean, error = values[0]
            return mean, error
        means = np.array([value[0] for value in values])
        return float(means.mean()), float(means.std(ddof=1) / math.sqrt(len(means)))


_OF_A_SEED = ("train.seed", "data.seed", "train.init_from")  # the last: seeds that are adapted begin from their own


def grouped(records: Iterable[Mapping[str, Any]], fields: Sequence[str]) -> list[Group]:
    """Groups by configuration fields, as in ``("process.mixing",)``, sorted by their values.

    Raises:
      ConfigError: records of one group differ in something else that makes a model, or were measured otherwise.
    """
    found: dict[tuple, list] = {}
    for record in records:
        found.setdefault(tuple(_field(record, field) for field in fields), []).append(record)
    for key, group in found.items():
        _require_alike(key, group)
    return [Group(", ".join(f"{v:g}" if isinstance(v, float) else str(v) for v in key), key, tuple(found[key]))
            for key in sorted(found)]


def _require_alike(key: tuple, group: Sequence[Mapping[str, Any]]) -> None:
    told = ", ".join(map(str, key))
    first = _recipe(group[0])
    for other in group[1:]:
        second = _recipe(other)
        for name in sorted(first.keys() | second.keys()):
            if first.get(name) != second.get(name):
                raise ConfigError(f"group {told}: its models differ in {name}, {first.get(name)!r} and "
                                  f"{second.get(name)!r}, and are no seeds of one recipe; group by it too, or leave "
                                  "one of them out")


def _recipe(record: Mapping[str, Any]) -> dict[str, Any]:
    return {f"{section}.{name}": value for section, fields in record["model"]["config"].items()
            if section not in REPORT_SECTIONS for name, value in fields.items()
            if f"{section}.{name}" not in (*HOW_FIELDS, *_OF_A_SEED)}


def _field(record: Mapping[str, Any], name: str):
    section, _, field = name.partition(".")
    return record["model"]["config"][section][field]


def texts(groups: Sequence[Group]) -> list[str]:
    return list(dict.fromkeys(text for group in groups for record in group.records for text in record["likelihood"]))


def judges(groups: Sequence[Group]) -> list[str]:
    return list(dict.fromkeys(judge for group in groups for record in group.records
                              for part in record["generation"].values() for judge in part["cross_entropy"]))


def step_counts(groups: Sequence[Group]) -> list[str]:
    """Those that any record has, ascending, without the held-out rows."""
    names = {name for group in groups for record in group.records for name in record["generation"]} - {"held-out"}
    return sorted(names, key=lambda name: (int(name) if name.isdigit() else 1 << 60, name))


def table(groups: Sequence[Group], title: str) -> str:
    """Markdown: of each group seeds and likelihoods; then, by judge, cross-entropy and entropy over steps.

    The held-out rows' own figures stand at the end of each line: models may have other data.
    """
    likelihoods = [(text, kind) for text in texts(groups) for kind in ("bound", "published")
                   if any(group.likelihood(text, kind) for group in groups)]
    names = {"bound": "bound", "published": "published convention"}
    lines = _lines([title, "runs", *(f"{text}, {names[kind]}" for text, kind in likelihoods)],
                   [[group.label, str(len(group.records)),
                     *(_said(group.likelihood(*which)) for which in likelihoods)] for group in groups])
    steps = step_counts(groups)
    if not steps:
        return "\n".join(lines)
    for judge in judges(groups):
        lines += ["", f"Cross-entropy of samples under {judge} by steps, nats a token", ""]
        lines += _lines([title, *steps, "held-out rows"],
                        [[group.label, *(_said(group.cross_entropy(count, judge)) for count in (*steps, "held-out"))]
                         for group in groups])
    lines += ["", "Entropy of a sample's tokens by steps, nats", ""]
    lines += _lines([title, *steps, "held-out rows"],
                    [[group.label, *(_said(group.entropy(count)) for count in (*steps, "held-out"))]
                     for group in groups])
    return "\n".join(lines)


def _lines(head: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    return [f"| {' | '.join(head)} |", "|" + "---|" * len(head), *(f"| {' | '.join(row)} |" for row in rows)]


def _said(value: Value | None) -> str:
    if value is None:
        return ""
    return f"{value[0]:.3f}" if math.isnan(value[1]) else f"{value[0]:.3f} +- {value[1]:.3f}"


def draw(groups: Sequence[Group], title: str, path: str | Path, few: str | None = None) -> None:
    """Three panels: quality at few steps against the bound, one point a group; quality, and entropy, against steps.

    Args:
      few: the step count of the first panel; None: the smallest.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    judge, steps = next(iter(judges(groups)), None), step_counts(groups)
    figure = Figure(figsize=(15, 4.8), dpi=140, facecolor="white", layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(1, 3)
    colours = _colours(len(groups))
    if judge is not None and steps:
        _plane(panels[0], groups, few or steps[0], judge, colours)
        _curves(panels[1], groups, [s for s in steps if s.isdigit()], colours, judge)
        panels[1].set_ylabel(f"cross-entropy of samples under {judge}, nats a token", parse_math=False)
    _curves(panels[2], groups, [s for s in steps if s.isdigit()], colours)
    panels[2].set_ylabel("entropy of a sample's tokens, nats")
    for panel in panels:
        panel.grid(color="#e8e8e8", linewidth=0.8)
        panel.set_axisbelow(True)
        panel.spines[["top", "right"]].set_visible(False)
    handles, labels = panels[2].get_legend_handles_labels()
    figure.legend(handles, labels, title=title, loc="outside right center", frameon=False)
    figure.savefig(path, format="png")


def _plane(axes, groups, few: str, judge: str, colours) -> None:
    points = []
    for group, colour in zip(groups, colours, strict=True):
        across, up = group.likelihood("held-out"), group.cross_entropy(few, judge)
        if across is None or up is None:
            continue
        axes.errorbar(across[0], up[0], xerr=across[1], yerr=up[1], fmt="o", color=colour, markersize=7, capsize=2)
        axes.annotate(group.label, (across[0], up[0]), textcoords="offset points", xytext=(7, 5), fontsize=9)
        points.append((across[0], up[0]))
    if points:
        axes.plot(*zip(*points, strict=True), color="#bbbbbb", linewidth=1, zorder=0)
    axes.set_xlabel("held-out bound, nats a token (understanding: left is better)")
    axes.set_ylabel(f"cross-entropy at {few} steps under {judge}, nats a token\n(generation: down is better)",
                    parse_math=False)


def _curves(axes, groups, steps: Sequence[str], colours, judge: str | None = None) -> None:
    def value(group: Group, name: str) -> Value | None:
        return group.entropy(name) if judge is None else group.cross_entropy(name, judge)

    for group, colour in zip(groups, colours, strict=True):
        found = [(int(name), *each) for name in steps if (each := value(group, name)) is not None]
        if found:
            x, y, error = zip(*found, strict=True)
            axes.errorbar(x, y, error, color=colour, marker="o", markersize=4, linewidth=1.3, capsize=2,
                          label=group.label)
    natural = {round(each[0], 3) for group in groups if (each := value(group, "held-out")) is not None}
    for number, height in enumerate(sorted(natural)):
        axes.axhline(height, color=_GREY, linestyle=":", linewidth=1.2, label=None if number else "held-out rows")
    if steps:
        axes.set_xscale("log", base=2)
        axes.set_xticks([int(name) for name in steps], steps)
    axes.set_xlabel("steps")


def _colours(count: int) -> list:
    """From masked (blue) to uniform (orange), apart in lightness too."""
    import matplotlib

    return [matplotlib.colormaps["plasma"](0.05 + 0.8 * i / max(1, count - 1)) for i in range(count)]
