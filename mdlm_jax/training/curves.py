"""The loss curve of a run as a PNG, from its ``metrics.jsonl``. Uses matplotlib without its global state."""

import math
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from mdlm_jax.training import metrics

_BOUND_FIELDS = {
    "bits per byte": ("eval/bits_per_byte", "eval/bits_stderr"),
    "nats per token": ("eval/nats_per_token", "eval/nats_stderr"),
}
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

    The fields read are ``loss`` (nats per token) and, for the bound, ``eval/bits_per_byte`` and ``eval/bits_stderr`` or
    ``eval/nats_per_token`` and ``eval/nats_stderr``. A record without a field, or with a value that is not finite, is
    passed over. A run without any record gives a picture that says so.

    Args:
      metrics_path: ``metrics.jsonl``, or the workdir that holds it.
      path: the .png file.
      references: name -> value of each horizontal line, in the unit of the picture.
      bytes_per_token: mean number of UTF-8 bytes that a training token stands for; the picture is then in bits per
        byte, the training loss being divided by ln 2 and by this. Without it, in nats per token.
      title: above the picture.
      log_x: logarithmic steps; a record of step 0 is left out then.

    Raises:
      ConfigError: ``metrics.jsonl`` holds something else than records.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    records = [record for record in metrics.read(metrics_path) if record["step"] > 0 or not log_x]
    factor = 1.0 if bytes_per_token is None else 1.0 / (math.log(2.0) * bytes_per_token)
    unit = "nats per token" if bytes_per_token is None else "bits per byte"
    bound, stderr = _BOUND_FIELDS[unit]
    train_step, train_loss = _series(records, "loss")
    train_loss *= factor
    test_step, test_loss = _series(records, bound)
    error = np.array([_finite(record.get(stderr), 0.0) for record in records if _finite(record.get(bound)) is not None])

    figure = Figure(figsize=(8.5, 5.0), dpi=140, facecolor="white", layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    smooth = smoothed(train_loss)
    if len(train_step):
        marker = "." if len(train_step) < 3 else ""
        axes.plot(train_step, train_loss, color=_TRAIN, alpha=0.25, linewidth=1, marker=marker)
        axes.plot(train_step, smooth, color=_TRAIN, linewidth=1.8, marker=marker,
                  label=f"training (smoothed), {smooth[-1]:.3f}")
    if len(test_step):
        last = f"{test_loss[-1]:.3f}" + (f" ± {error[-1]:.3f}" if error[-1] else "")
        axes.errorbar(test_step, test_loss, error, color=_HELD_OUT, linewidth=1.2, marker="o", markersize=4,
                      capsize=3, label=f"held out (bound ± standard error), {last}", zorder=3)
    _draw_references(axes, references or {})
    _set_limits(axes, [*smooth, *test_loss, *(references or {}).values()])
    _dress(axes, unit, title, log_x and bool(records))
    if len(train_step) or len(test_step):
        axes.legend(frameon=False, loc="lower left", bbox_to_anchor=(0, 1), ncols=2, borderaxespad=0.2, borderpad=0)
    else:
        axes.text(0.5, 0.7, "no loss is recorded yet", transform=axes.transAxes, ha="center", color=_GREY)
    figure.savefig(path, format="png")


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
    """Steps and values of the records that have a finite number there."""
    points = [(record["step"], value) for record in records if (value := _finite(record.get(field))) is not None]
    return np.array([step for step, _ in points], int), np.array([value for _, value in points], float)


def _finite(value, default=None):
    return value if isinstance(value, int | float) and math.isfinite(value) else default


def _draw_references(axes, references: Mapping[str, float]) -> None:
    for name, value in references.items():
        axes.axhline(value, color=_GREY, linewidth=1, linestyle=(0, (5, 4)), zorder=1)
        axes.annotate(f"{name} {value:.2f}", (1, value), xycoords=("axes fraction", "data"), xytext=(-2, 3), ha="right",
                      textcoords="offset points", color=_GREY, fontsize=8.5, parse_math=False)


def _set_limits(axes, values: list[float]) -> None:
    """Room for every line; spikes of single batches may leave the picture."""
    if values:
        low, high = min(values), max(values)
        room = 0.08 * (high - low) or 0.1 * abs(high) or 1.0
        axes.set_ylim(low - room, high + room)


def _dress(axes, unit: str, title: str, log_x: bool) -> None:
    if log_x:
        axes.set_xscale("log")
    axes.set_xlabel("step")
    axes.set_ylabel(f"loss, {unit}")
    axes.set_title(title, loc="left", fontsize=12, pad=24, parse_math=False)
    axes.grid(color="#e8e8e8", linewidth=0.8)
    axes.set_axisbelow(True)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
