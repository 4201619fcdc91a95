"""An IsoFLOP study (`evaluation.scaling`) as tables and a figure."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from mdlm_jax.evaluation.scaling import Estimate, Family, masked_first

# SMDM, arXiv 2410.18514: exponents digitised from its figures, 6e18 to 1e20 FLOPs.
PUBLISHED = {
    "masked: exponent of L*": -0.0625, "masked: exponent of N*": 0.630,
    "autoregressive: exponent of L*": -0.0642, "autoregressive: exponent of N*": 0.643,
    "gap": 16.0, "size ratio": 0.5,
}
_COLOURS = ("#2a6fbb", "#d1662a", "#3b8f5a", "#8a4fa3")


def table(families: Sequence[Family], found: dict[str, Estimate]) -> str:
    """Markdown: every run, the optimum of every budget, and the figures with their intervals."""
    lines = ["| family | FLOPs | parameters | tokens | held-out loss |", "|---|---|---|---|---|"]
    for family in families:
        lines += [f"| {family.name} | {run.flops:.2g} | {run.parameters:,} | {run.tokens:,} | "
                  f"{run.loss:.4f} +- {run.stderr:.4f} |" for run in family.runs]
    lines += ["", "| family | FLOPs | N* | L* | |", "|---|---|---|---|---|"]
    for family in families:
        lines += [f"| {family.name} | {p.flops:.2g} | {_optimum(p)} | {_remark(p)} |" for p in family.parabolas]
    if found:
        lines += ["", "| | here (95 % interval) | published, 6e18 to 1e20 |", "|---|---|---|"]
        most = max(run.flops for run in masked_first(families)[0].runs)
        lines += [f"| {name} | {value}{_beyond(name, value, most)} | {_published(name)} |"
                  for name, value in found.items()]
    return "\n".join(lines)


def _optimum(p) -> str:
    return f"{p.size:,.0f} | {p.loss:.4f}" if p.opens_upwards else " | "


def _remark(p) -> str:
    if not p.opens_upwards:
        return "no optimum: the parabola opens downwards"
    return "" if p.inside else "outside the sizes that were trained"


def _beyond(name: str, gap: Estimate, most: float) -> str:
    """Gaps are read off a law; where that is beyond the largest budget, it is an extrapolation."""
    kind, _, flops = name.partition(" at ")
    if kind != "gap" or gap.value * float(flops) <= most:
        return ""
    return f"; extrapolated: {gap.value * float(flops):.1g} FLOPs are beyond the largest budget, {most:.1g}"


def _published(name: str) -> str:
    value = PUBLISHED.get(name, PUBLISHED.get(name.partition(" at ")[0]))
    return "" if value is None else f"{value:g}"


def draw(families: Sequence[Family], path: str | Path) -> None:
    """Three panels: losses and parabolas by size; the best loss, and the best size, by budget."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(15, 4.8), dpi=140, facecolor="white", layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(1, 3)
    for family, colour in zip(families, _COLOURS, strict=False):
        _isoflops(panels[0], family, colour)
        _optima(panels[1], family, colour, "loss")
        _optima(panels[2], family, colour, "size")
    for panel, title in zip(panels, ("held-out loss, nats a token", "loss at the best size L*, nats a token",
                                     "best size N*, parameters"), strict=True):
        if panel.has_data():
            panel.set_xscale("log")
        else:
            panel.text(0.5, 0.5, "no optimum yet", ha="center", va="center", transform=panel.transAxes)
        panel.set_title(title, fontsize=10)
        panel.grid(color="#e8e8e8", linewidth=0.8)
        panel.set_axisbelow(True)
        panel.spines[["top", "right"]].set_visible(False)
    panels[0].set_xlabel("parameters without embedding and head")
    if panels[2].has_data():
        panels[2].set_yscale("log")
    for panel in panels[1:]:
        panel.set_xlabel("training FLOPs, 6 N D")
        if panel.get_legend_handles_labels()[0]:
            panel.legend(frameon=False)
    figure.savefig(path, format="png")


def _isoflops(axes, family: Family, colour: str) -> None:
    for number, p in enumerate(family.parabolas):
        shade = 0.35 + 0.65 * (number + 1) / len(family.parabolas)
        runs = [run for run in family.runs if run.flops == p.flops]
        sizes, losses = [run.parameters for run in runs], [run.loss for run in runs]
        axes.errorbar(sizes, losses, [run.stderr for run in runs], fmt="o", color=colour, alpha=shade, markersize=4,
                      capsize=2)
        reach = np.geomspace(p.low, p.high, 100)
        axes.plot(reach, p(reach), color=colour, alpha=shade, linewidth=1.2)
        axes.annotate(f"{p.flops:.0e}", (sizes[-1], losses[-1]), textcoords="offset points", xytext=(5, 0), fontsize=8,
                      color=colour)
        if p.inside:
            axes.plot(p.size, p.loss, marker="*", color=colour, markersize=11, markeredgecolor="white")


def _optima(axes, family: Family, colour: str, which: str) -> None:
    good = [p for p in family.parabolas if p.inside]
    if not good:
        return
    law = family.loss_law if which == "loss" else family.size_law
    axes.plot([p.flops for p in good], [getattr(p, which) for p in good], "o", color=colour, label=family.name)
    if law:
        reach = np.geomspace(good[0].flops, good[-1].flops, 50)
        axes.plot(reach, law(reach), color=colour, linewidth=1.2)
