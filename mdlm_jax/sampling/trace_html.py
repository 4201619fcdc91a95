"""The denoising of one sample as one self-contained HTML page: a player of every step, and a strip for those without
JavaScript. No file, font or script is fetched from anywhere."""

import html
import json
from pathlib import Path

import numpy as np

from mdlm_jax.sampling import trace_view as view

_SECONDS = 8.0  # the whole film, about

_STYLE = """
:root { color-scheme: light; }
body { margin: 2rem; font: 15px/1.5 system-ui, sans-serif; color: #1a1a1a; background: #fff; }
h1 { font-size: 1.3rem; margin: 0 0 .6rem; }
h2 { font-size: 1.05rem; margin: 2rem 0 .3rem; }
.legend i, .canvas i { font-style: normal; display: inline-block; height: 1.45em; line-height: 1.45em;
  vertical-align: top; box-shadow: inset 0 0 0 .5px #fff; }
.legend span { margin-right: 1.2em; white-space: nowrap; }
.legend i { font-family: ui-monospace, Menlo, Consolas, "DejaVu Sans Mono", monospace; padding: 0 .35em;
  margin-right: .35em; }
.canvas { font: 14px/1.5 ui-monospace, Menlo, Consolas, "DejaVu Sans Mono", monospace; white-space: pre;
  overflow-x: auto; }
.canvas div { height: 1.5em; }
.canvas i { width: 1ch; overflow: hidden; }
.strip { display: flex; flex-wrap: wrap; gap: 1.2rem 2.5rem; }
.strip figure { margin: 0; max-width: 100%; }
.strip .canvas { font-size: 11px; }
figcaption, output { color: #555; font-weight: 600; font-size: .85rem; }
.controls { display: flex; gap: .8rem; align-items: center; margin: 1rem 0; }
.controls input { flex: 1; max-width: 32rem; }
.controls button { width: 5rem; padding: .3rem 0; }
i.prompt { border-bottom: 2px solid PROMPT; height: calc(1.45em - 2px); }
"""

_SCRIPT = """
const cells = [...document.querySelectorAll("#canvas i")];
const slider = document.getElementById("step"), button = document.getElementById("play");
const last = trace.frames.length - 1;
let timer = null;
function show(step) {
  const frame = trace.frames[step], kinds = trace.kinds[step];
  cells.forEach((cell, i) => {
    cell.textContent = trace.words[frame[i]];
    for (const name of [...cell.classList]) if (/^k\\d$/.test(name)) cell.classList.remove(name);
    cell.classList.add("k" + kinds[i]);
  });
  slider.value = step;
  document.getElementById("caption").textContent = trace.captions[step];
}
function stop() { clearInterval(timer); timer = null; button.textContent = "Play"; }
function tick() { if (+slider.value >= last) stop(); else show(+slider.value + 1); }
function play() {
  if (timer) return stop();
  if (+slider.value >= last) show(0);
  button.textContent = "Pause";
  timer = setInterval(tick, trace.milliseconds);
}
button.addEventListener("click", play);
slider.addEventListener("input", () => { stop(); show(+slider.value); });
document.getElementById("player").hidden = false;
show(0);
"""


def denoising_html(
    trace,
    tokenizer,
    path: str | Path,
    title: str = "",
    *,
    prompt: np.ndarray | None = None,
    max_panels: int = 8,
    columns: int = 88,
) -> None:
    """Writes one page that shows a sample being denoised, step by step.

    Args:
      trace: has ``tokens``, int [S + 1, L]: the canvas of one row before the first step and after each.
      tokenizer: has mask_id, eos_id, pad_id, separator, ``token_text(id)`` and ``token_bytes(ids)``.
      path: the .html file.
      title: the page's heading.
      prompt: bool [L], the positions that were given; they are underlined.
      max_panels: how many frames of the strip at most (at least 2).
      columns: characters a row.
    """
    frames = np.asarray(trace.tokens)
    prompt = np.zeros(frames.shape[1], bool) if prompt is None else np.asarray(prompt, bool)
    words = view.Words(tokenizer)
    layout = view.lay_out(frames, words, columns)
    heading = html.escape(title or "Denoising, step by step")
    film = [view.panel(frames, max(step - 1, 0), step, tokenizer.mask_id) for step in range(len(frames))]
    strip = view.panels(frames, tokenizer.mask_id, max_panels)
    page = f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width">
<title>{heading}</title>
<style>{_style(layout)}</style>
</head>
<body>
<h1>{heading}</h1>
<p class="legend">{_legend(bool(prompt.any()))}</p>
<section id="player" hidden>
<div class="controls"><button id="play" type="button">Play</button>
<input id="step" type="range" min="0" max="{len(frames) - 1}" value="0" aria-label="step">
<output id="caption" for="step"></output></div>
<div class="canvas" id="canvas">{_canvas(film[0], layout, words, prompt)}</div>
</section>
<h2>In {len(strip)} panels, coloured by what changed since the panel before</h2>
<section class="strip">
{_strip(strip, len(frames) - 1, layout, words, prompt)}
</section>
<script>
const trace = {_data(film, words)};
{_SCRIPT}</script>
</body>
</html>
"""
    Path(path).write_text(page, encoding="utf-8")


def _style(layout: view.Layout) -> str:
    kinds = "".join(f"i.k{kind} {{ background: {back}; color: {ink}; }}\n"
                    for kind, (back, ink) in view.COLOURS.items())
    widths = "".join(f".canvas i.w{width} {{ width: {width}ch; }}\n" for width in np.unique(layout.width) if width > 1)
    return _STYLE.replace("PROMPT", view.PROMPT_COLOUR) + kinds + widths


def _legend(with_prompt: bool) -> str:
    order = (view.MASK, view.NEW, view.EDITED, view.REMASKED, view.KEPT)
    signs = [(f"k{kind}", view.MASK_TEXT if kind in (view.MASK, view.REMASKED) else "a", view.KINDS[kind])
             for kind in order]
    signs += [("prompt", "a", "prompt")] if with_prompt else []
    signs += [("", view.NEWLINE, "new line"), ("", view.EOS_TEXT, "end of document")]
    return "\n".join(f'<span><i class="{name}">{sign}</i>{meaning}</span>' for name, sign, meaning in signs)


def _canvas(panel: view.Panel, layout: view.Layout, words: view.Words, prompt: np.ndarray) -> str:
    rows = []
    for row in range(layout.rows):
        places = np.flatnonzero(layout.row == row)
        indent = layout.column[places[0]]
        style = f' style="padding-left:{indent}ch"' if indent else ""
        cells = html.escape(words.separator).join(_cell(panel, int(i), layout, words, prompt) for i in places)
        rows.append(f"<div{style}>{cells}</div>")
    return "".join(rows)


def _cell(panel: view.Panel, i: int, layout: view.Layout, words: view.Words, prompt: np.ndarray) -> str:
    names = [f"k{panel.kinds[i]}"]
    names += [f"w{layout.width[i]}"] if layout.width[i] > 1 else []
    names += ["prompt"] if prompt[i] else []
    return f'<i class="{" ".join(names)}">{html.escape(words(int(panel.tokens[i])))}</i>'


def _strip(strip, steps: int, layout: view.Layout, words: view.Words, prompt: np.ndarray) -> str:
    return "\n".join(
        f"<figure><figcaption>{html.escape(panel.caption(steps))}</figcaption>"
        f'<div class="canvas">{_canvas(panel, layout, words, prompt)}</div></figure>'
        for panel in strip
    )


def _data(film: list[view.Panel], words: view.Words) -> str:
    """Everything the player needs, as JSON that cannot end the script element."""
    ids, places = np.unique(np.stack([panel.tokens for panel in film]), return_inverse=True)
    steps = len(film) - 1
    data = {
        "words": [words(int(token)) for token in ids],
        "frames": places.reshape(len(film), -1).tolist(),
        "kinds": ["".join(map(str, panel.kinds)) for panel in film],
        "captions": [panel.caption(steps) for panel in film],
        "milliseconds": int(np.clip(1000 * _SECONDS / max(steps, 1), 40, 500)),
    }
    return json.dumps(data, separators=(",", ":")).replace("<", "\\u003c")
