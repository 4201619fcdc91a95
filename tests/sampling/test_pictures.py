"""The pictures of a sample: kinds of change, places, and what the HTML and the PNG really hold."""

import html.parser
import json
import re
import types

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.colors import to_rgb
from matplotlib.image import imread

from mdlm_jax.data.tokenizers import ByteTokenizer, LanguageTokenizer
from mdlm_jax.sampling import trace_view as view
from mdlm_jax.sampling.pictures import denoising_png
from mdlm_jax.sampling.trace_html import denoising_html

BYTES = ByteTokenizer()
M = BYTES.mask_id


def trace(*rows) -> types.SimpleNamespace:
    """Rows of text, ``_`` standing for the mask."""
    ids = [[M if c == ord("_") else c for c in row.encode()] for row in rows]
    return types.SimpleNamespace(tokens=np.array(ids, np.int32))


FOUR_KINDS = trace("____", "a_c_", "ab__", "xbcd")  # the last step: edited, kept, new, new; before it one is re-masked


# Kinds of change --------------------------------------------------------------------------------------------------


def test_the_five_kinds():
    before = np.array([M, M, 7, 7, 7])
    after = np.array([M, 5, 7, 8, M])
    assert view.classify(before, after, M).tolist() == [view.MASK, view.NEW, view.KEPT, view.EDITED, view.REMASKED]
    assert view.classify(before, after, 7).tolist() == [view.KEPT, view.EDITED, view.MASK, view.NEW, view.NEW]


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), min_size=1, max_size=20), st.integers(0, 3))
def test_kinds_agree_with_the_definition(pairs, mask_id):
    def kind(was, now):
        if now == mask_id:
            return view.MASK if was == mask_id else view.REMASKED
        if was == mask_id:
            return view.NEW
        return view.KEPT if was == now else view.EDITED

    before, after = np.array(pairs).T
    assert view.classify(before, after, mask_id).tolist() == [kind(*pair) for pair in pairs]


def test_panels_span_the_run_and_skip_idle_steps():
    rows = ["____"] * 5 + ["a___"] * 5 + ["ab__", "abc_", "abcd"] + ["abcd"] * 20
    panels = view.panels(trace(*rows).tokens, M, 8)
    assert [panel.step for panel in panels] == [0, 5, 10, 11, 12]
    assert [int((panel.kinds == view.NEW).sum()) for panel in panels] == [0, 1, 1, 1, 1]
    assert panels[2].caption(32) == "step 10 of 32: 50% masked, 1 new"
    assert [panel.step for panel in view.panels(trace(*rows).tokens, M, 3)] == [0, 10, 12]
    assert [panel.step for panel in view.panels(trace("ab", "ab").tokens, M, 8)] == [0]


def test_a_panel_is_coloured_against_the_panel_before():
    panels = view.panels(FOUR_KINDS.tokens, M, 2)
    assert [panel.step for panel in panels] == [0, 3]
    assert panels[1].kinds.tolist() == [view.NEW] * 4
    panels = view.panels(FOUR_KINDS.tokens, M, 4)
    assert panels[2].caption(3) == "step 2 of 3: 50% masked, 1 new, 1 re-masked"
    assert panels[3].caption(3) == "step 3 of 3: 0% masked, 2 new, 1 edited"


# Words and places -------------------------------------------------------------------------------------------------


def test_words():
    words = view.Words(BYTES)
    assert [words(i) for i in (65, 10, 9, 0, 0xE9, M, BYTES.eos_id, BYTES.pad_id)] == [
        "A", "↵", "⇥", "\ufffd", "\ufffd", "░", "∎", "·"
    ]  # fmt: skip
    assert view.Words(LanguageTokenizer(12))(11) == "11"
    long = types.SimpleNamespace(
        mask_id=0, eos_id=1, pad_id=2, separator="", token_text=lambda i: "x" * 40, token_bytes=lambda i: np.array([40])
    )
    assert view.Words(long)(5) == "x" * 23 + "…"


def test_cells():
    assert [view.cells(text) for text in ("abc", "↵", "日本", "e\u0301")] == [3, 1, 4, 1]


def layout(*rows, columns=10):
    return view.lay_out(trace(*rows).tokens, view.Words(BYTES), columns)


def test_rows_end_where_the_last_frame_has_a_newline():
    places = layout("______", "ab\ncd\n")
    assert places.row.tolist() == [0, 0, 0, 1, 1, 1] and places.column.tolist() == [0, 1, 2, 0, 1, 2]
    assert places.rows == 2
    assert layout("a\nb", "abc").row.tolist() == [0, 0, 0]  # an earlier newline does not count


def test_full_rows_are_wrapped():
    places = layout("abcdefg", columns=3)
    assert places.row.tolist() == [0, 0, 0, 1, 1, 1, 2] and places.column.tolist() == [0, 1, 2, 0, 1, 2, 0]


WORDS = ["░", "∎", "·", "a", "long", "↵", "↵    ", "x↵y", "日"]


class WordTokenizer:
    mask_id, eos_id, pad_id, separator = 0, 1, 2, ""

    def token_text(self, i):
        return WORDS[i]

    def token_bytes(self, ids):
        return np.array([len(WORDS[i].encode()) for i in ids])


def test_a_position_is_as_wide_as_its_widest_token():
    frames = np.array([[0, 0, 0], [4, 0, 0], [3, 8, 3]])
    places = view.lay_out(frames, view.Words(WordTokenizer()), 40)
    assert places.width.tolist() == [4, 2, 1] and places.column.tolist() == [0, 4, 6]


def test_blanks_after_a_newline_indent_the_next_row():
    frames = np.array([[0, 0, 0, 0, 0], [3, 6, 3, 7, 3]])
    places = view.lay_out(frames, view.Words(WordTokenizer()), 40)
    assert places.row.tolist() == [0, 0, 1, 1, 1]  # "x↵y" holds text after its newline: no break
    assert places.column.tolist() == [0, 1, 4, 5, 8] and places.width.tolist() == [1, 1, 1, 3, 1]


@given(st.data())
def test_no_two_positions_overlap(data):
    length = data.draw(st.integers(1, 30))
    ids = st.lists(st.integers(0, len(WORDS) - 1), min_size=length, max_size=length)
    frames = np.array(data.draw(st.lists(ids, min_size=1, max_size=4)))
    columns = data.draw(st.integers(8, 20))
    places = view.lay_out(frames, view.Words(WordTokenizer()), columns)
    order = places.row * 1000 + places.column
    assert (np.diff(order) >= np.where(np.diff(places.row) == 0, places.width[:-1], 1)).all()
    assert (places.column + places.width <= columns).all()


# Colours ----------------------------------------------------------------------------------------------------------

SIMULATION = {  # Machado, Oliveira and Fernandes 2009, severity 1, on linear RGB
    "none": np.eye(3),
    "protanopia": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
    "deuteranopia": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.01182, 0.04294, 0.968881]],
    "tritanopia": [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.3039]],
}


def lab(colour: str, simulation) -> np.ndarray:
    """CIE Lab of a colour as such an eye sees it."""
    rgb = np.array(to_rgb(colour))
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    linear = np.clip(np.asarray(simulation) @ linear, 0, 1)
    to_xyz = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])
    ratio = to_xyz @ linear / np.array([0.9505, 1.0, 1.089])
    f = np.where(ratio > 0.008856, np.cbrt(ratio), 7.787 * ratio + 16 / 116)
    return np.array([116 * f[1] - 16, 500 * (f[0] - f[1]), 200 * (f[1] - f[2])])


@pytest.mark.parametrize("eye", SIMULATION)
def test_colours_are_distinct_to_every_eye(eye):
    seen = {kind: lab(background, SIMULATION[eye]) for kind, (background, _) in view.COLOURS.items()}
    near = {(a, b): np.linalg.norm(seen[a] - seen[b]) for a in seen for b in seen if a < b}
    white_and_mask = near.pop((view.KEPT, view.MASK))  # light grey on white, and the mask has its hatching besides
    assert white_and_mask > 9 and min(near.values()) > 20, near


# HTML -------------------------------------------------------------------------------------------------------------


class Page(html.parser.HTMLParser):
    """Tags, attributes and text of a page; insists that every element is closed."""

    void = {"meta", "input"}

    def __init__(self, text):
        super().__init__()
        self.open, self.attributes, self.cells, self.text, self.script = [], [], [], "", ""
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.attributes += [(tag, name, value) for name, value in attrs]
        if tag not in self.void:
            self.open.append((tag, dict(attrs)))
        if tag == "i":
            self.cells.append([dict(attrs)["class"].split(), ""])

    def handle_endtag(self, tag):
        assert self.open.pop()[0] == tag

    def handle_data(self, data):
        tag = self.open[-1][0] if self.open else ""
        if tag == "script":
            self.script += data
        elif tag != "style":
            self.text += data
        if tag == "i":
            self.cells[-1][1] += data

    @property
    def data(self) -> dict:
        return json.loads(re.search(r"const trace = (\{.*\});\n", self.script)[1])


def write_html(tmp_path, a_trace, tokenizer=BYTES, **options):
    path = tmp_path / "denoising.html"
    denoising_html(a_trace, tokenizer, path, options.pop("title", "A title"), **options)
    return Page(path.read_text(encoding="utf-8"))


def test_the_player_holds_every_step(tmp_path):
    page = write_html(tmp_path, FOUR_KINDS)
    data = page.data
    shown = ["".join(data["words"][i] for i in frame) for frame in data["frames"]]
    assert shown == ["░░░░", "a░c░", "ab░░", "xbcd"]
    assert data["kinds"] == ["1111", "2121", "0241", "3022"]
    assert data["captions"][3] == "step 3 of 3: 0% masked, 2 new, 1 edited"
    assert ("input", "max", "3") in page.attributes and ("section", "id", "player") in page.attributes


def test_the_strip_needs_no_script(tmp_path):
    page = write_html(tmp_path, FOUR_KINDS)
    cells = [(classes[0], text) for classes, text in page.cells if classes and classes[0].startswith("k")]
    strip = cells[-16:]
    assert [text for _, text in strip] == list("░░░░a░c░ab░░xbcd")
    assert [name for name, _ in strip] == [f"k{kind}" for kind in "1111212102413022"]
    assert "step 2 of 3: 50% masked, 1 new, 1 re-masked" in page.text


def test_legend_names_every_kind(tmp_path):
    page = write_html(tmp_path, FOUR_KINDS)
    assert all(name in page.text for name in (*view.KINDS, "new line", "end of document")) and "prompt" not in page.text
    page = write_html(tmp_path, FOUR_KINDS, prompt=np.array([True, False, False, False]))
    assert "prompt" in page.text and sum("prompt" in classes for classes, _ in page.cells) == 1 + 1 + 4


def test_nothing_is_fetched(tmp_path):
    page = write_html(tmp_path, FOUR_KINDS)
    assert not [a for a in page.attributes if a[1] in ("src", "href", "srcset", "action", "data")]
    text = (tmp_path / "denoising.html").read_text()
    assert not re.search(r"https?:|@import|url\(|//cdn", text)


def test_hostile_text_stays_text(tmp_path):
    hostile = "</script><script>alert(1)</script><b>&amp;\"'<!--"
    page = write_html(tmp_path, trace("_" * len(hostile), hostile), title=hostile)
    assert hostile in page.text and sum(tag == "b" for tag, *_ in page.attributes) == 0
    text = (tmp_path / "denoising.html").read_text()
    assert text.count("<script>") == 1 and "<!--" not in text
    last = page.data["frames"][-1]
    assert "".join(page.data["words"][i] for i in last) == hostile


def test_a_language_has_a_picture_too(tmp_path):
    tokens = np.array([[12, 12, 12], [11, 12, 3], [11, 10, 13]], np.int32)
    page = write_html(tmp_path, types.SimpleNamespace(tokens=tokens), LanguageTokenizer(12))
    assert [page.data["words"][i] for i in page.data["frames"][-1]] == ["11", "10", "∎"]
    assert page.text.count("11 10 ∎") == 1  # in the strip; the player starts with masks


def test_numbers_do_not_run_together():
    """In the picture as in the text: a column is free between two numbers, and none at the end of a row."""
    tokenizer = LanguageTokenizer(200)
    places = view.lay_out(np.array([[1, 23, 1, 7, 45]]), view.Words(tokenizer), 8)
    assert places.column.tolist() == [0, 2, 5, 7, 0] and places.row.tolist() == [0, 0, 0, 0, 1]
    assert tokenizer.decode(np.array([1, 23, 1, 7, 45])) == "1 23 1 7 45"


# PNG --------------------------------------------------------------------------------------------------------------


def colours_of(path) -> dict[int, int]:
    """How many pixels have exactly the background of each kind."""
    pixels = np.rint(imread(path)[..., :3] * 255).astype(int)
    return {
        kind: int((pixels == np.rint(np.array(to_rgb(back)) * 255).astype(int)).all(-1).sum())
        for kind, (back, _) in view.COLOURS.items()
    }


def write_png(tmp_path, a_trace, tokenizer=BYTES, **options):
    path = tmp_path / "denoising.png"
    denoising_png(a_trace, tokenizer, path, options.pop("title", "A title"), **options)
    return path


def test_the_four_colours_are_there_when_their_kinds_are(tmp_path):
    legend = colours_of(write_png(tmp_path, trace("abcd")))
    masked = colours_of(write_png(tmp_path, trace("____", "ab__", "abcd")))
    mixed = colours_of(write_png(tmp_path, FOUR_KINDS))
    assert all(legend[kind] > 0 for kind in view.COLOURS)  # its sample boxes
    grown = {kind for kind in view.COLOURS if masked[kind] > 1.2 * legend[kind]}
    assert grown == {view.KEPT, view.MASK, view.NEW}
    assert {kind for kind in view.COLOURS if mixed[kind] > 1.2 * legend[kind]} == set(view.COLOURS)


def test_more_tokens_more_paint(tmp_path):
    few = colours_of(write_png(tmp_path, trace("_" * 40, "a" * 4 + "_" * 36)))
    many = colours_of(write_png(tmp_path, trace("_" * 40, "a" * 30 + "_" * 10)))
    assert many[view.NEW] > 3 * few[view.NEW] and many[view.MASK] < few[view.MASK]


def test_a_long_canvas_is_cut_and_the_title_says_so(tmp_path, monkeypatch):
    from mdlm_jax.sampling import pictures

    written = []
    text = pictures._text
    monkeypatch.setattr(pictures, "_text", lambda a, x, y, t, **k: written.append(t) or text(a, x, y, t, **k))
    write_png(tmp_path, trace("_" * 30, "ab" * 15), max_tokens=10, title="Long")
    assert written[0] == "Long (the first 10 of 30 tokens)"
    assert written.count("a") - 3 == 5 and written.count("b") == 5  # the legend has three more "a"


def test_odd_glyphs_and_mathematics_are_drawn_without_a_word(tmp_path, recwarn):
    tokens = np.array([[0] * 6, [3, 8, 4, 6, 7, 1]])
    a_trace = types.SimpleNamespace(tokens=tokens)
    write_png(tmp_path, a_trace, WordTokenizer(), title=r"$\frac{$ 日本 $x$", prompt=tokens[1] == 3)
    write_png(tmp_path, trace("_____", "$x^2$"))
    assert not [str(w.message) for w in recwarn if "lyph" in str(w.message)]


def test_no_figure_is_left_open(tmp_path):
    import sys

    write_png(tmp_path, FOUR_KINDS)
    pyplot = sys.modules.get("matplotlib.pyplot")
    assert pyplot is None or pyplot.get_fignums() == []
