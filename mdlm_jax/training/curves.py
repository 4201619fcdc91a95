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
    own_scale: str = "",
    final: tuple[float, float] | None = None,
    title: str = "",
    log_x: bool = False,
) -> None:
    """Draws held-out bound and training loss (light, and smoothed) against the step, with lines to compare with.

    The fields read are ``eval/bits_per_byte`` or ``eval/loss``, the standard error ``eval/loss_error`` of the latter,
    and ``loss``. A record without one, or with a value that is not finite, is passed over. A run without any record
    gives a picture that says so.

    Args:
      metrics_path: ``metrics.jsonl``, or the workdir that holds it.
      path: the .png file.
      references: name -> value of each horizontal line, in the unit of the picture.
      bytes_per_token: of the training text. The picture is then in bits per byte: the bound as it was recorded, the
        training loss divided by ln 2 and by this. Without it, in nats per token.
      own_scale: why the training loss is no bound, such as "weighting constant"; it then has an axis of its own on the
        right, in nats per token. Empty: it is one, and shares the axis.
      final: value and standard error of the bound after the last step, in the unit of the picture.
      title: above the picture.
      log_x: logarithmic steps; a record of step 0 is left out then.

    Raises:
      ConfigError: ``metrics.jsonl`` holds something else than records.
    """
    records = [record for record in metrics.read(metrics_path) if record["step"] > 0 or not log_x]
    figure = loss_figure(records, references or {}, bytes_per_token, own_scale, final)
    axes = figure.axes[0]
    axes.set_title(title, loc="left", fontsize=12, pad=24 if final is None else 40, parse_math=False)
    if log_x and records:
        axes.set_xscale("log")
    figure.savefig(path, format="png")


def loss_figure(
    records: list[dict],
    references: Mapping[str, float],
    bytes_per_token: float | None = None,
    own_scale: str = "",
    final: tuple[float, float] | None = None,
):
    """The matplotlib figure of ``loss_curve_png``; its first axes are those of the bound."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8.5, 5.0), dpi=140, facecolor="white", layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    _frame(axes, "nats per token" if bytes_per_token is None else "bits per byte", own_scale)
    heights = _draw_held_out(axes, records, bytes_per_token is not None) + _draw_final(axes, records, final)
    if own_scale:
        other = _own_axes(axes, own_scale)
        own = _draw_training(other, records, 1.0, "training loss (right axis), no bound")
        _set_limits(other, own)
    else:
        factor = 1.0 if bytes_per_token is None else 1.0 / (math.log(2.0) * bytes_per_token)
        own = _draw_training(axes, records, factor, "training (smoothed)")
        heights += own
    if heights or own:
        handles = [handle for part in figure.axes for handle in part.get_legend_handles_labels()[0]]
        axes.legend(handles=handles, frameon=False, loc="lower left", bbox_to_anchor=(0, 1), ncols=2, borderaxespad=0.2,
                    borderpad=0)
    else:
        axes.text(0.5, 0.7, "no loss is recorded yet", transform=axes.transAxes, ha="center", color=_GREY)
    _draw_references(axes, references)
    _set_limits(axes, [*heights, *references.values()])
    return figure


def _frame(axes, unit: str, own_scale: str) -> None:
    axes.set_xlabel("step")
    axes.set_ylabel(f"{'bound' if own_scale else 'loss'}, {unit}")
    axes.grid(color="#e8e8e8", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)


def _own_axes(axes, own_scale: str):
    other = axes.twinx()
    other.set_ylabel(f"training loss, nats per token\n({own_scale})", color=_TRAIN, parse_math=False)
    other.tick_params(axis="y", colors=_TRAIN)
    other.spines[["top", "left"]].set_visible(False)
    return other


def _draw_training(axes, records: list[dict], factor: float, label: str) -> list[float]:
    """Every recorded loss, light, and their running mean. Returns the heights that should be in the picture."""
    steps, losses = _series(records, "loss")
    if not len(steps):
        return []
    losses = factor * losses
    smooth = smoothed(losses)
    marker = "." if len(steps) < 3 else ""
    axes.plot(steps, losses, color=_TRAIN, alpha=0.25, linewidth=1, marker=marker)
    axes.plot(steps, smooth, color=_TRAIN, linewidth=1.8, marker=marker, label=f"{label}, {smooth[-1]:.3f}")
    return [losses[0], smooth.min(), np.quantile(losses, 0.98)]


def _draw_held_out(axes, records: list[dict], per_byte: bool) -> list[float]:
    field = "eval/bits_per_byte" if per_byte else "eval/loss"
    steps, bounds = _series(records, field)
    if not len(steps):
        return []
    errors = np.array([_error(record, field) for record in records if _finite(record.get(field))])
    label = f"held out (bound ± standard error), {bounds[-1]:.3f}" + (f" ± {errors[-1]:.3f}" if errors[-1] else "")
    axes.errorbar(steps, bounds, errors, color=_HELD_OUT, linewidth=1.2, marker="o", markersize=4, capsize=3,
                  label=label, zorder=3)
    return bounds.tolist()


def _error(record: dict, field: str) -> float:
    """The standard error in the unit of ``field``, a multiple of ``eval/loss``; 0 where none is recorded."""
    error, loss = record.get("eval/loss_error"), record.get("eval/loss")
    return error * record[field] / loss if _finite(error) and _finite(loss) and loss else 0.0


def _draw_final(axes, records: list[dict], final: tuple[float, float] | None) -> list[float]:
    if final is None or not _finite(final[0]):
        return []
    value, error = final
    label = f"final bound, {value:.3f}" + (f" ± {error:.3f}" if error else "")
    last = max((record["step"] for record in records), default=0)
    axes.plot([last], [value], linestyle="", marker="D", markersize=7, color=_HELD_OUT, markeredgecolor="white",
              label=label, zorder=4)
    return [value]


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


def _series(records: list[dict], field: str) -> tuple[np.ndarray, np.ndarray]:
    """Steps and values of the records with a finite number in the field."""
    kept = [record for record in records if _finite(record.get(field))]
    steps, values = [record["step"] for record in kept], [record[field] for record in kept]
    return np.array(steps, int), np.array(values, float)


def _finite(value) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)


def _draw_references(axes, references: Mapping[str, float]) -> None:
    """A line each; names of neighbours stand at alternate ends and on white: no other line strikes them through."""
    for number, (name, value) in enumerate(sorted(references.items(), key=lambda item: item[1])):
        side, offset, align = ((1, -2, "right"), (0, 2, "left"))[number % 2]
        axes.axhline(value, color=_GREY, linewidth=1, linestyle=(0, (5, 4)), zorder=1)
        axes.annotate(f"{name} {value:.2f}", (side, value), xycoords=("axes fraction", "data"), xytext=(offset, 3),
                      ha=align, textcoords="offset points", color=_GREY, fontsize=8.5, parse_math=False,
                      bbox={"facecolor": "white", "edgecolor": "none", "pad": 0.5})


def _set_limits(axes, values: list[float]) -> None:
    """Room for every line; spikes of single batches may leave the picture."""
    if values:
        low, high = float(min(values)), float(max(values))
        room = 0.08 * (high - low) or 0.1 * abs(high) or 1.0
        axes.set_ylim(low - room, high + room)
