"""A plan as a picture: memory by kind against the chip's, seconds by resource. Uses matplotlib without global state."""

from pathlib import Path

from mdlm_jax.planning.chips import ALL

_COLORS = ("#0b5d8f", "#5b9bc2", "#c44e00", "#e8a06a", "#777777")
_KINDS = ("state", "batch", "gradients", "saved", "working")  # by arithmetic
_COMPILED = ("arguments", "outputs", "temporaries", "program")
_GREY = "#666666"


def plan_png(plan: dict, path: str | Path) -> None:
    """Writes the picture of a compiled plan (`measure.plan`) that fits, or of an estimate."""
    plan_figure(plan).savefig(path, format="png")


def plan_figure(plan: dict):
    """The matplotlib figure: memory on its first axes, seconds on its second."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8.5, 3.4), dpi=140, facecolor="white", layout="constrained")
    FigureCanvasAgg(figure)
    memory, seconds = figure.subplots(2, 1)
    mesh = " x ".join(f"{axis} {size}" for axis, size in plan["mesh"].items()) or "one device"
    how = "by arithmetic" if plan.get("arithmetic") else "compiled"
    slices = f"{plan['slices']} x " if plan["slices"] > 1 else ""
    memory.set_title(f"{slices}{plan['topology']}: {mesh} ({how})", loc="left", fontsize=11, pad=16, parse_math=False)
    _memory(memory, plan)
    _seconds(seconds, plan["bound"])
    return figure


def _memory(axes, plan: dict) -> None:
    """One stacked bar. Parts of a compiled program share memory, so its peak is a line of its own."""
    kinds, left = _KINDS if plan.get("arithmetic") else _COMPILED, 0.0
    for kind, color in zip(kinds, _COLORS, strict=False):
        size = plan["memory"][kind] / 2**30
        axes.barh([0], [size], left=left, color=color, height=0.6, label=f"{kind} {size:.2f}")
        left += size
    chip = ALL[plan["topology"].partition(":")[0]]
    room = chip.hbm / chip.devices / 2**30
    peak = plan["memory"]["peak"] / 2**30
    axes.axvline(room, color="black", linewidth=1.5)
    axes.axvline(peak, color=_COLORS[2], linewidth=1.2, linestyle=(0, (4, 3)))
    axes.set_xlim(0, 1.08 * max(room, left))
    axes.set_yticks([])
    axes.set_xlabel(f"GiB of a device: peak {peak:.2f} (dashed) of {room:.2f} (black)", parse_math=False)
    axes.legend(frameon=False, ncols=len(kinds), fontsize=8, loc="lower left", bbox_to_anchor=(0, 0.9))
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.set_ylim(-0.4, 0.9)


def _seconds(axes, bound: dict) -> None:
    names = list(bound["seconds"])
    values = [bound["seconds"][name] for name in names]
    colors = [_COLORS[2] if name == bound["slowest"] else _COLORS[0] for name in names]
    axes.barh(range(len(names)), values, color=colors, height=0.6)
    axes.set_yticks(range(len(names)), [name.replace("_", " ") for name in names])
    axes.invert_yaxis()
    for at, value in enumerate(values):
        axes.annotate(f"{value:.3f}", (value, at), xytext=(4, 0), textcoords="offset points", va="center", color=_GREY,
                      fontsize=8.5)
    axes.set_xlim(0, 1.1 * max(values) or 1.0)
    axes.set_xlabel("seconds a step, each resource alone at its public peak")
    axes.spines[["top", "right"]].set_visible(False)
