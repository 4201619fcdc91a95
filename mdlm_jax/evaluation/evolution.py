"""How canvases become text, step by step: the three transitions of mixed noise, counted and drawn.

A masked process only ever generates (mask to token). With uniform noise in the kernel a step may also edit (token to
another token) and re-mask (token to mask), which is what lets few steps repair what many positions guessed at once
(XDLM, arXiv 2602.01362). Colours are those of the denoising pictures.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from mdlm_jax.sampling.trace_view import COLOURS, EDITED, KEPT, KINDS, MASK, NEW, REMASKED, classify

TRANSITIONS = (NEW, EDITED, REMASKED)
_WORDS = {NEW: "mask to token", EDITED: "token to token", REMASKED: "token to mask"}


@dataclasses.dataclass(frozen=True)
class Evolution:
    """Of the samples of one model.

    Attributes:
      kinds: uint8 [S, N, L], what each step did at each position of each sample.
      initial: [N, L] bool, masks before the first step.
    """

    kinds: np.ndarray
    initial: np.ndarray

    def shares(self, kind: int) -> np.ndarray:
        """[S]: the share of all positions at which a step made that transition."""
        return (self.kinds == kind).mean(axis=(1, 2))

    def per_token(self, kind: int) -> float:
        """Transitions of that kind a token, over all steps."""
        return float(self.shares(kind).sum())

    def masked(self) -> np.ndarray:
        """[S + 1]: the share of masks before the first step and after each."""
        after = np.isin(self.kinds, (MASK, REMASKED)).mean(axis=(1, 2))
        return np.concatenate([[self.initial.mean()], after])


def evolution(frames: np.ndarray, mask_id: int) -> Evolution:
    """Counts transitions.

    Args:
      frames: [S + 1, N, L] ids, the canvases before the first step and after each.
    Raises:
      ValueError: fewer than two frames.
    """
    frames = np.asarray(frames)
    if frames.ndim != 3 or len(frames) < 2:
        raise ValueError(f"frames: have shape {list(frames.shape)}; they must be [S + 1, N, L] of at least one step")
    return Evolution(classify(frames[:-1], frames[1:], mask_id), frames[0] == mask_id)


def table(found: Mapping[str, Evolution]) -> str:
    """Markdown: transitions a token of each model, over all steps."""
    head = ["", "steps", *(f"{KINDS[kind]} ({_WORDS[kind]})" for kind in TRANSITIONS)]
    rows = [[name, str(len(one.kinds)), *(f"{one.per_token(kind):.3f}" for kind in TRANSITIONS)]
            for name, one in found.items()]
    return "\n".join(f"| {' | '.join(row)} |" for row in [head, ["---"] * len(head), *rows])


def draw(found: Mapping[str, Evolution], path: str | Path, sample: int = 0) -> None:
    """One column a model: above, the share of positions that each step changed, in three colours; below, one sample,
    position across and step down, coloured by what the step did there."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(max(6.0, 3.4 * len(found)), 6.6), dpi=140, facecolor="white", layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(2, len(found), squeeze=False, height_ratios=(1, 1.3), sharey="row")
    for column, (name, one) in enumerate(found.items()):
        _shares(panels[0, column], one)
        panels[0, column].set_title(name, fontsize=11, parse_math=False)
        _sample(panels[1, column], one.kinds[:, sample])
    panels[0, 0].set_ylabel("share of positions a step changes")
    panels[1, 0].set_ylabel("step")
    figure.legend(handles=_legend(), loc="outside lower center", ncols=min(5, 1 + len(found)), frameon=False)
    figure.savefig(path, format="png")


def _shares(axes, one: Evolution) -> None:
    steps, base = np.arange(1, len(one.kinds) + 1), np.zeros(len(one.kinds))
    for kind in TRANSITIONS:
        share = one.shares(kind)
        axes.bar(steps, share, bottom=base, width=1.0, color=COLOURS[kind][0], linewidth=0)
        base = base + share
    axes.plot(np.arange(len(one.kinds) + 1), one.masked(), color="#555555", linewidth=1.2, linestyle=":")
    axes.set_xlabel("step")
    axes.spines[["top", "right"]].set_visible(False)


def _sample(axes, kinds: np.ndarray) -> None:
    from matplotlib.colors import ListedColormap

    colours = ListedColormap([COLOURS[kind][0] for kind in range(len(KINDS))])
    axes.imshow(kinds, aspect="auto", interpolation="nearest", cmap=colours, vmin=-0.5, vmax=len(KINDS) - 0.5,
                extent=(0, kinds.shape[1], len(kinds) + 0.5, 0.5))
    axes.set_xlabel("position in one sample")


def _legend() -> Sequence:
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    words = _WORDS | {MASK: "still a mask", KEPT: "kept"}
    boxes = [Patch(facecolor=COLOURS[kind][0], edgecolor="#cccccc", label=words[kind])
             for kind in (*TRANSITIONS, MASK, KEPT)]
    return [*boxes[:4], Line2D([], [], color="#555555", linestyle=":", label="share of masks")]
