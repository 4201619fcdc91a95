"""The denoising of one sample as a PNG: a strip of panels, one box a token. matplotlib without its global state."""

from functools import cache
from pathlib import Path

import numpy as np

from mdlm_jax.sampling import trace_view as view

_FONT = "DejaVu Sans Mono"  # comes with matplotlib
_SIZE = 8.0  # points
_LEGEND_CELLS = 100  # the legend is about that wide
_CELL = 0.602 * _SIZE  # the font's advance
_LINE = 1.55 * _SIZE
_MARGIN, _GAP, _CAPTION = 16.0, 20.0, 15.0


def denoising_png(
    trace,
    tokenizer,
    path: str | Path,
    title: str = "",
    *,
    prompt: np.ndarray | None = None,
    max_frames: int = 8,
    max_tokens: int = 512,
    columns: int = 88,
) -> None:
    """Draws selected steps of one sample, coloured by what changed since the panel before.

    Args:
      trace: has ``tokens``, int [S + 1, L]: the canvas of one row before the first step and after each.
      tokenizer: has mask_id, eos_id, pad_id, separator, ``token_text(id)`` and ``token_bytes(ids)``.
      path: the .png file.
      title: one line above the panels.
      prompt: bool [L], the positions that were given; they are underlined.
      max_frames: how many panels at most (at least 2).
      max_tokens: positions beyond are left out, and the title says so.
      columns: characters a row.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    frames = np.asarray(trace.tokens)
    length = frames.shape[1]
    prompt = np.zeros(length, bool) if prompt is None else np.asarray(prompt, bool)
    if length > max_tokens:
        title = f"{title} (the first {max_tokens} of {length} tokens)".strip()
        frames, prompt = frames[:, :max_tokens], prompt[:max_tokens]
    panels = view.panels(frames, tokenizer.mask_id, max_frames)
    words = view.Words(tokenizer)
    layout = view.lay_out(np.stack([panel.tokens for panel in panels]), words, columns)

    across = 2 if len(panels) > 1 else 1
    down = -(-len(panels) // across)
    captions = [panel.caption(len(frames) - 1) for panel in panels]
    cells = [int((layout.column + layout.width).max()), *map(len, captions), _LEGEND_CELLS // across]
    panel_width = max(cells) * _CELL
    panel_height = layout.rows * _LINE + _CAPTION
    width = max(2 * _MARGIN + across * panel_width + (across - 1) * _GAP, 420.0)
    top = 2 * _MARGIN + 3.2 * _SIZE
    height = top + down * panel_height + (down - 1) * _GAP + _MARGIN
    figure = Figure(figsize=(width / 72, height / 72), dpi=160, facecolor="white")
    FigureCanvasAgg(figure)
    axes = figure.add_axes((0, 0, 1, 1), xlim=(0, width), ylim=(height, 0))
    axes.set_axis_off()
    _text(axes, _MARGIN, _MARGIN, title or "Denoising, step by step", size=1.35 * _SIZE, weight="bold")
    _draw_legend(axes, _MARGIN, _MARGIN + 1.9 * _SIZE, bool(prompt.any()))
    for number, panel in enumerate(panels):
        left = _MARGIN + (number % across) * (panel_width + _GAP)
        upper = top + (number // across) * (panel_height + _GAP)
        _text(axes, left, upper, captions[number], weight="bold", color="#555555")
        _draw_panel(axes, left, upper + _CAPTION, panel, layout, words, prompt)
    figure.savefig(path, format="png")


def _draw_panel(axes, left: float, upper: float, panel: view.Panel, layout: view.Layout, words, prompt) -> None:
    x = left + layout.column * _CELL
    y = upper + layout.row * _LINE
    wide = layout.width * _CELL
    for kind in (view.MASK, view.NEW, view.EDITED, view.REMASKED):
        where = np.flatnonzero(panel.kinds == kind)
        _rectangles(axes, x[where], y[where], wide[where], view.COLOURS[kind][0])
    if prompt.any():
        where = np.flatnonzero(prompt)
        _rectangles(axes, x[where], y[where] + 0.88 * _LINE, wide[where], view.PROMPT_COLOUR, height=1.2)
    for i, token in enumerate(panel.tokens):
        masked = panel.kinds[i] in (view.MASK, view.REMASKED)
        text = view.MASK_TEXT * int(layout.width[i]) if masked else words(int(token))
        if not text.isspace():
            _text(axes, x[i], y[i] + 0.12 * _LINE, text, color=view.COLOURS[int(panel.kinds[i])][1])


def _draw_legend(axes, x: float, y: float, with_prompt: bool) -> None:
    samples = {view.MASK: view.MASK_TEXT, view.REMASKED: view.MASK_TEXT}
    for kind in (view.MASK, view.NEW, view.EDITED, view.REMASKED, view.KEPT):
        background, ink = view.COLOURS[kind]
        _rectangles(axes, [x], [y], [2 * _CELL], background)
        _text(axes, x + 0.5 * _CELL, y + 0.12 * _LINE, samples.get(kind, "a"), color=ink)
        x = _text(axes, x + 2.8 * _CELL, y + 0.12 * _LINE, view.KINDS[kind], color="#333333") + 3 * _CELL
    if with_prompt:
        _rectangles(axes, [x], [y + 0.88 * _LINE], [2 * _CELL], view.PROMPT_COLOUR, height=1.2)
        x = _text(axes, x + 2.8 * _CELL, y + 0.12 * _LINE, "prompt", color="#333333") + 3 * _CELL
    _text(axes, x, y + 0.12 * _LINE, f"{view.EOS_TEXT} end of document   (changes since the panel before)",
          color="#777777")


def _rectangles(axes, x, y, wide, colour: str, height: float = _LINE - 1.6) -> None:
    from matplotlib.collections import PatchCollection
    from matplotlib.patches import Rectangle

    boxes = [Rectangle((a + 0.3, b), w - 0.6, height) for a, b, w in zip(x, y, wide, strict=True)]
    axes.add_collection(PatchCollection(boxes, facecolor=colour, edgecolor="none"))


def _text(axes, x: float, y: float, text: str, *, size=_SIZE, color="#1a1a1a", weight="normal") -> float:
    """Writes one line from its top left corner and returns where its fixed-width text ends."""
    text = _drawable(text)
    axes.text(x, y, text, family=_FONT, size=size, color=color, weight=weight, va="top", parse_math=False, usetex=False)
    return x + len(text) * 0.602 * size


@cache
def _glyphs() -> frozenset[int]:
    from matplotlib.font_manager import findfont, get_font

    return frozenset(get_font(findfont(_FONT)).get_charmap())


def _drawable(text: str) -> str:
    """The text with a box for each character that the font lacks."""
    return "".join(c if ord(c) in _glyphs() else "□" for c in text)
