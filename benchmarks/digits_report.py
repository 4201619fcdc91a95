"""The table and the figure of benchmarks/digits.py, from its results.json."""

import re
from pathlib import Path

import numpy as np

MEASURES = {"accuracy": "accuracy", "diversity": "diversity", "nearest": "nearest", "frechet": "Frechet"}
REFERENCES = ("real", "independent")


def by_mixing(results: dict) -> dict[float, list[dict]]:
    """mixing -> its runs, one a seed."""
    found: dict[float, list[dict]] = {}
    for name, run in results.items():
        if match := re.fullmatch(r"m(.+)_s\d+", name):
            found.setdefault(float(match[1]), []).append(run)
    return dict(sorted(found.items()))


def mean(values) -> tuple[float, float]:
    """With its standard error over the seeds; that of one seed is NaN."""
    values = np.asarray(list(values), float)
    return float(values.mean()), float(values.std(ddof=1) / len(values) ** 0.5) if len(values) > 1 else np.nan


def at(runs: list[dict], steps: int, guidance: float, measure: str) -> tuple[float, float]:
    """A measure of the samples at so many steps."""
    return mean(line[measure] for run in runs for line in run["samples"]
                if (line["steps"], line["guidance"]) == (steps, guidance))


def settings(results: dict) -> list[tuple[int, float]]:
    run = next(run for name, run in results.items() if name not in REFERENCES)
    return [(line["steps"], line["guidance"]) for line in run["samples"]]


def table(results: dict) -> str:
    """Markdown: the bound a mixing, then every measure by steps."""
    runs = by_mixing(results)
    if not runs:
        return ""
    seeds = ", ".join(f"{mixing:g}: {len(of)}" for mixing, of in runs.items())
    lines = [f"Mean +- standard error over seeds ({seeds}).", "",
             "| mixing | " + " | ".join(f"{mixing:g}" for mixing in runs) + " | real | independent pixels |",
             "|---|" + "---|" * (len(runs) + 2),
             _line("bound, bits a pixel", [mean(run["bits"] for run in of) for of in runs.values()], ["", ""])]
    for measure, title in MEASURES.items():
        for steps, guidance in settings(results):
            guided = f", guidance {guidance:g}" if guidance else ""
            cells = [at(of, steps, guidance, measure) for of in runs.values()]
            real = [f"{results[name][measure]:.3f}" for name in REFERENCES]
            lines.append(_line(f"{title}, {steps} steps{guided}", cells, real))
    return "\n".join(lines) + "\n"


def _line(title: str, cells: list[tuple[float, float]], references: list[str]) -> str:
    shown = [f"{value:.3f}" + ("" if np.isnan(error) else f" +- {error:.3f}") for value, error in cells]
    return f"| {title} | " + " | ".join(shown + references) + " |"


def figure(results: dict, path: Path) -> None:
    """Few-step quality against the bound, a point a mixing; quality and accuracy against steps, a line a mixing."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    runs = by_mixing(results)
    counts = [steps for steps, guidance in settings(results) if not guidance]
    made = Figure(figsize=(14, 4.2), layout="constrained", dpi=110)
    FigureCanvasAgg(made)
    trade, distance, accuracy = made.subplots(1, 3)
    for number, (mixing, of) in enumerate(runs.items()):
        how = {"color": f"C{number}", "label": f"mixing {mixing:g}", "capsize": 2}
        bits, few = mean(run["bits"] for run in of), at(of, counts[0], 0.0, "frechet")
        trade.errorbar(bits[0], few[0], xerr=bits[1], yerr=few[1], marker="o", linestyle="", **how)
        for axes, measure in ((distance, "frechet"), (accuracy, "accuracy")):
            values, errors = zip(*(at(of, steps, 0.0, measure) for steps in counts), strict=True)
            axes.errorbar(counts, values, yerr=errors, marker="o", **how)
    trade.set_xlabel("held-out bound, bits a pixel (lower: better likelihood)")
    trade.set_ylabel(f"Frechet distance at {counts[0]} steps")
    for axes, measure, label in ((distance, "frechet", "Frechet distance"), (accuracy, "accuracy", "accuracy")):
        for reference, style in (("real", ":"), ("independent", "--")):
            axes.axhline(results[reference][measure], color="black", linewidth=0.8, linestyle=style, label=reference)
        axes.set_xscale("log", base=2)
        axes.set_xticks(counts, [str(steps) for steps in counts])
        axes.set_xlabel("steps")
        axes.set_ylabel(label)
    trade.legend(frameon=False, fontsize=8)
    accuracy.legend(frameon=False, fontsize=8)
    made.savefig(path)
