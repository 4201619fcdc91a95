"""The loss curve of a run as a PNG, from its ``metrics.jsonl``. Uses matplotlib without its global state."""

import math
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from mdlm_jax.training import metrics

_TRAIN, _HELD_OUT, _GREY = "#0b5d8f", "#c44e00", "#666666"


def loss_curve_png(
    metrics_path: str | Path,
    path: str | Path,
    references: Mapping[str, float] | None = None,
    *,
    bytes_per_token: float | None = None,
    title: str = "",
    log_x: bool = False,
) -> None:
    """Draws training loss (light, and smoothed) and held-out bound against the step, with lines to compare with.

    The fields read are ``loss``, ``eval/loss`` and its standard error ``eval/loss_error``, all in nats per token. A
    record without one, or with a value that is not finite, is passed over. A run without any record gives a picture
    that says so.

    Args:
      metrics_path: ``metrics.jsonl``, or the workdir that holds it.
      path: the .png file.
      references: name -> value of each horizontal line, in the unit of the picture.
      bytes_per_token: mean number of UTF-8 bytes that a token stands for; the picture is then in bits per byte, all
        losses being divided by ln 2 and by this. Without it, in nats per token.
      title: above the picture.
      log_x: logarithmic steps; a record of step 0 is left out then.

    Raises:
      ConfigError: ``metrics.jsonl`` holds something else than records.
    """
    records = [record for record in metrics.read(metrics_path) if record["step"] > 0 or not log_x]
    factor = 1.0 if bytes_per_token is None else 1.0 / (math.log(2.0) * bytes_per_token)
    figure = loss_figure(records, references or {}, factor)
    (axes,) = figure.axes
    axes.set_ylabel("loss, nats per token" if bytes_per_token is None else "loss, bits per byte")
    axes.set_title(title, loc="left", fontsize=12, pad=24, parse_math=False)
    if log_x and records:
        axes.set_xscale("log")
    figure.savefig(path, format="png")


def loss_figure(records: list[dict], references: Mapping[str, float], factor: float):
    """The matplotlib figure of ``loss_curve_png``, every loss in it multiplied by ``factor``."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8.5, 5.0), dpi=140, facecolor="white", layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    drawn = _draw_training(axes, records, factor) + _draw_held_out(axes, records, factor)
    if drawn:
        axes.legend(frameon=False, loc="lower left", bbox_to_anchor=(0, 1), ncols=2, borderaxespad=0.2, borderpad=0)
    else:
        axes.text(0.5, 0.7, "no loss is recorded yet", transform=axes.transAxes, ha="center", color=_GREY)
    _draw_references(axes, references)
    _set_limits(axes, [*drawn, *references.values()])
    axes.set_xlabel("step")
    axes.grid(color="#e8e8e8", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    return figure


def _draw_training(axes, records: list[dict], factor: float) -> list[float]:
    """Every recorded loss, light, and their running mean. Returns the heights that should be in the picture."""
    steps, losses, _ = _series(records, "loss", factor)
    if not len(steps):
        return []
    smooth = smoothed(losses)
    marker = "." if len(steps) < 3 else ""
    axes.plot(steps, losses, color=_TRAIN, alpha=0.25, linewidth=1, marker=marker)
    label = f"training (smoothed), {smooth[-1]:.3f}"
    axes.plot(steps, smooth, color=_TRAIN, linewidth=1.8, marker=marker, label=label)
    return [losses[0], smooth.min(), np.quantile(losses, 0.98)]


def _draw_held_out(axes, records: list[dict], factor: float) -> list[float]:
    steps, bounds, errors = _series(records, "eval/loss", factor)
    if not len(steps):
        return []
    label = f"held out (bound ± standard error), {bounds[-1]:.3f}" + (f" ± {errors[-1]:.3f}" if errors[-1] else "")
    axes.errorbar(steps, bounds, errors, color=_HELD_OUT, linewidth=1.2, marker="o", markersize=4, capsize=3,
                  label=label, zorder=3)
    return bounds.tolist()


def smoothed(values: np.ndarray) -> np.ndarray:
    """Running mean of float [n] over about a tenth of the points.

    The window is centred, narrower at the beginning so that the first fall stays where it is, and one-sided at the end.
    """
    n = len(values)
    at, half = np.arange(n), n // 20
    low = np.maximum(at - half, 0)
    high = np.minimum(at + np.minimum(at, half), n - 1) + 1
    sums = np.concatenate([[0.0], np.cumsum(values, dtype=np.float64)])
    return (sums[high] - sums[low]) / (high - low)


def _series(records: list[dict], field: str, factor: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Steps, values and errors (0 where not recorded), scaled, of the records with a finite number in the field."""
    kept = [record for record in records if _finite(record.get(field))]
    errors = [record.get(f"{field}_error") for record in kept]
    return (
        np.array([record["step"] for record in kept], int),
        factor * np.array([record[field] for record in kept], float),
        factor * np.array([error if _finite(error) else 0.0 for error in errors], float),
    )


def _finite(value) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)


def _draw_references(axes, references: Mapping[str, float]) -> None:
    """A line each; names of neighbours stand at alternate ends, so that they do not cover each other."""
    for number, (name, value) in enumerate(sorted(references.items(), key=lambda item: item[1])):
        side, offset, align = ((1, -2, "right"), (0, 2, "left"))[number % 2]
        axes.axhline(value, color=_GREY, linewidth=1, linestyle=(0, (5, 4)), zorder=1)
        axes.annotate(f"{name} {value:.2f}", (side, value), xycoords=("axes fraction", "data"), xytext=(offset, 3),
                      ha=align, textcoords="offset points", color=_GREY, fontsize=8.5, parse_math=False)


def _set_limits(axes, values: list[float]) -> None:
    """Room for every line; spikes of single batches may leave the picture."""
    if values:
        low, high = min(values), max(values)
        room = 0.08 * (high - low) or 0.1 * abs(high) or 1.0
        axes.set_ylim(low - room, high + room)
