"""What a denoising picture shows, apart from how it is drawn: kinds of change, words, places. Numpy alone.

A trace is the canvas of one row before the first step and after each, int [S + 1, L]. Every position keeps its place on
the page through all frames, so the eye sees tokens appear and never text that reflows.
"""

import dataclasses
import unicodedata

import numpy as np

KEPT, MASK, NEW, EDITED, REMASKED = range(5)
KINDS = ("kept", "mask", "new", "edited", "re-masked")
# Background and ink of each kind. Distinct in lightness or along blue-yellow, so for colour-blind eyes too.
COLOURS = {
    KEPT: ("#ffffff", "#1a1a1a"),
    MASK: ("#e2e2e2", "#bdbdbd"),
    NEW: ("#7cc6f2", "#08243a"),
    EDITED: ("#f2a900", "#2b1d00"),
    REMASKED: ("#6a2c91", "#a678c4"),
}
PROMPT_COLOUR = "#00795c"  # an underline
MASK_TEXT, EOS_TEXT, PAD_TEXT = "░", "∎", "·"
NEWLINE = "↵"  # how Tokenizer.token_text writes one


def classify(previous: np.ndarray, current: np.ndarray, mask_id: int) -> np.ndarray:
    """The kind of each position of ``current``, uint8 in its shape, given the frame before it.

    mask to token is NEW, token to another token EDITED, token to mask REMASKED; mask that stays is MASK and a token
    that stays KEPT.
    """
    was, now = np.asarray(previous) == mask_id, np.asarray(current) == mask_id
    same = np.asarray(previous) == np.asarray(current)
    kinds = np.select([was & now, was, now, same], [MASK, NEW, REMASKED, KEPT], default=EDITED)
    return kinds.astype(np.uint8)


@dataclasses.dataclass(frozen=True)
class Panel:
    """One frame of a strip; its kinds tell what changed since the panel before it (the first panel: nothing)."""

    step: int
    tokens: np.ndarray  # [L]
    kinds: np.ndarray  # [L]

    def caption(self, steps: int) -> str:
        """Such as "step 8 of 64: 87% masked, 12 new, 1 edited"."""
        parts = [f"{np.isin(self.kinds, (MASK, REMASKED)).mean():.0%} masked"]
        counts = [(kind, int((self.kinds == kind).sum())) for kind in (NEW, EDITED, REMASKED)]
        parts += [f"{count} {KINDS[kind]}" for kind, count in counts if count]
        return f"step {self.step} of {steps}: {', '.join(parts)}"


def panel(frames: np.ndarray, before: int, step: int, mask_id: int) -> Panel:
    """The frame of one step, coloured by what changed since the frame of another."""
    return Panel(step, frames[step], classify(frames[before], frames[step], mask_id))


def panels(frames: np.ndarray, mask_id: int, count: int) -> list[Panel]:
    """At most ``count`` frames, 2 at least: the first, the last, and others evenly among the steps that changed."""
    frames = np.asarray(frames)
    moving = np.flatnonzero((frames[1:] != frames[:-1]).any(axis=1)) + 1
    steps = np.concatenate([[0], moving])
    chosen = steps[np.unique(np.linspace(0, len(steps) - 1, max(count, 2)).round().astype(int))]
    before = np.concatenate([chosen[:1], chosen[:-1]])
    return [panel(frames, int(b), int(s), mask_id) for b, s in zip(before, chosen, strict=True)]


class Words:
    """How each token id is written: long tokens cut short, each byte that is no text as one U+FFFD.

    Attributes:
      separator: what stands between two of them, such as the space between numbers.
    """

    longest = 24

    def __init__(self, tokenizer):
        self._tokenizer = tokenizer
        self.separator = tokenizer.separator
        self._known = {
            tokenizer.pad_id: PAD_TEXT,
            tokenizer.eos_id: EOS_TEXT,
            tokenizer.mask_id: MASK_TEXT,
        }

    def __call__(self, token_id: int) -> str:
        if token_id not in self._known:
            self._known[token_id] = self._write(token_id)
        return self._known[token_id]

    def _write(self, token_id: int) -> str:
        text = self._tokenizer.token_text(token_id)
        num_bytes = int(self._tokenizer.token_bytes([token_id])[0])
        if 0 < num_bytes < len(text):  # an escape such as \x8f
            return "\ufffd" * num_bytes
        cut = len(text) > self.longest and NEWLINE not in text
        return text[: self.longest - 1] + "…" if cut else text


def cells(text: str) -> int:
    """Columns that the text takes in a fixed-width font; East Asian wide characters take two, combining marks none."""
    return sum(0 if unicodedata.combining(c) else 2 if unicodedata.east_asian_width(c) in "WF" else 1 for c in text)


@dataclasses.dataclass(frozen=True)
class Layout:
    """Where each position stands: row, first column and width in columns, all int [L]."""

    row: np.ndarray
    column: np.ndarray
    width: np.ndarray

    @property
    def rows(self) -> int:
        return int(self.row[-1]) + 1 if len(self.row) else 0


def lay_out(frames: np.ndarray, words: Words, columns: int) -> Layout:
    """Places for the positions of int [frames, L], the last frame being the text that decides the line breaks.

    A position is as wide as its widest token, and the separator stands between two of a row. A row ends after a newline
    of the last frame, the blanks after it in the same token becoming the indent of the next row, or where it is full.
    """
    frames = np.asarray(frames)
    length = frames.shape[1]
    row, column, width = (np.zeros(length, int) for _ in range(3))
    at_row = at_column = 0
    for i in range(length):
        last = words(int(frames[-1, i]))
        head, newline, indent = last.rpartition(NEWLINE)
        breaks = bool(newline) and not indent.strip()
        shown = {words(int(token)) for token in np.unique(frames[:, i])} - {last}
        width[i] = max(1, *(cells(text) for text in shown | {head + newline if breaks else last}))
        if at_column and at_column + width[i] > columns:
            at_row, at_column = at_row + 1, 0
        row[i], column[i] = at_row, at_column
        at_column += width[i] + cells(words.separator)
        if breaks:
            at_row, at_column = at_row + 1, min(cells(indent), columns // 2)
    return Layout(row, column, width)
