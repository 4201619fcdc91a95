"""Every command and program of README and the guides runs, in order, as a newcomer's would, with tiny trainings.

What cannot run here says so in its fence (``title="needs ..."``): its programs are compiled, and the flags of its
commands are looked up in ``--help``.
"""

import argparse
import contextlib
import importlib
import re
import shlex
import shutil
import sys
from pathlib import Path
from typing import NamedTuple

import matplotlib
import pytest

from launch import _cli, _configs, distil, train

from .folder import published

ROOT = Path(__file__).resolve().parents[2]
PAGES = sorted(path for pattern in ("README.md", "docs/guides/*.md", "docs/few_steps/*.md", "docs/pods.md")
               for path in ROOT.glob(pattern))
NO_BLOCKS = ("docs/few_steps/README.md", "docs/few_steps/dmax.md", "docs/few_steps/dparallel.md")
FENCE = re.compile(r"^```(\w*)(?: title=\"([^\"]*)\")?\n(.*?)^```$", re.M | re.S)
# Always in place of what a command says, and where it says nothing.
TINY = {"train.steps": 2, "train.batch_size": 8, "train.warmup_steps": 1, "train.checkpoint_every": 2, "eval.every": 2,
        "eval.rows": 4, "eval.final_rows": 4, "eval.draws": 2, "sample.num": 1, "sample.steps": 4}
NETWORK = {"model.layers": 1, "model.d_model": 16, "model.heads": 2}
CAUSAL = [f"--config.{field}" for field in (
    "train.objective=autoregressive", "model.attention=causal", "model.logit_shift=true")]
UNREAD = {  # by an objective, which refuses them
    "quickstart_ar": ("eval.draws", "sample.steps"), "joint": ("sample.steps",), "maria": ("sample.steps",),
    "asarm": ("sample.steps",), "autoregressive": ("eval.draws", "sample.steps"),
}
FLAGS = tuple({flag.name: flag for flag in (*train.FLAGS, *distil.FLAGS)}.values())
TEXT = {"data.source": "book.txt", "data.tokenizer": "byte", "data.length": 32}


class Block(NamedTuple):
    """A fenced block: its language, why it cannot run (or nothing), and its text."""

    kind: str
    needs: str
    text: str


def blocks(page: Path) -> list[Block]:
    return [Block(*found) for found in FENCE.findall(page.read_text())]


def commands(text: str) -> list[list[str]]:
    """The words of each command, without comments."""
    words = [shlex.split(line, comments=True) for line in text.replace("\\\n", " ").splitlines()]
    return [line for line in words if line]


def small(arguments: list[str]) -> list[str]:
    """A training of two steps, of a tiny network on a short text, where the command does not say otherwise."""
    said = _cli.parse(arguments, FLAGS, config=True)
    recipe, given = said.flags["config"], said.overrides
    started = "train.init_from" in given or "from" in said.flags
    network = {key: value for key, value in given.items() if key.startswith("model.")}
    source = given.get("data.source", _configs.load(recipe, network).data.source)
    speaks = source.startswith(("language:", "trajectories:")) or "from" in said.flags
    more = {} if speaks else {key: value for key, value in TEXT.items() if key not in given}
    if started:
        more.pop("data.tokenizer", None)  # network and tokenizer come along
    else:
        more |= {key: value for key, value in NETWORK.items() if key not in given}
    unread = UNREAD.get(given.get("train.objective", recipe), ())
    more |= {key: value for key, value in TINY.items() if key not in unread}
    kept = [argument for argument in arguments if argument.removeprefix("--config.").partition("=")[0] not in TINY]
    return [*kept, *(f"--config.{key}={value}" for key, value in more.items())]


def run(words: list[str]) -> None:
    """``python -m MODULE ...`` in this process."""
    assert words[:2] == ["python", "-m"], words
    module, arguments = words[2], words[3:]
    if module in ("launch.train", "launch.distil"):
        arguments = small(arguments)
    if module == "launch.local":
        arguments = arguments[:arguments.index("--") + 4] + small(arguments[arguments.index("--") + 4:])
    if module == "launch.trajectories":
        arguments = [*arguments, "--num=16"]
    assert entry(module)(arguments) == 0, words


def entry(module: str):
    name = f"{module}.__main__" if module == "launch.pods" else module
    return importlib.import_module(name).main


def test_every_page_has_blocks_and_every_fence_is_understood():
    for page in PAGES:
        found = blocks(page)
        assert bool(found) == (str(page.relative_to(ROOT)) not in NO_BLOCKS), page
        assert page.read_text().count("```") == 2 * len(found), page
        assert {block.kind for block in found} <= {"bash", "python", "text"}, page
        assert all(block.needs.startswith("needs ") for block in found if block.needs), page


@pytest.mark.parametrize("page", PAGES, ids=[str(page.relative_to(ROOT)) for page in PAGES])
def test_what_cannot_run_here_is_sound(page, capsys, monkeypatch):
    for block in blocks(page):
        if block.needs and block.kind == "python":
            compile(block.text, page.name, "exec")
        for words in commands(block.text) if block.needs and block.kind == "bash" else ():
            if words[:3] == ["python", "-m", "launch.pods"]:  # prints what it would do
                assert entry(words[2])([word for word in words[3:] if word != "--go"]) == 0, words
            elif words[:2] == ["python", "-m"]:
                monkeypatch.setattr(sys, "argv", [words[2], "--help"])
                with contextlib.suppress(SystemExit):
                    assert entry(words[2])() == 0
                help_text = capsys.readouterr().out
                for flag in words[3:]:
                    assert re.search(rf"{re.escape(flag.partition('=')[0])}\b", help_text), flag


@pytest.fixture(scope="module")
def start(tmp_path_factory) -> Path:
    """What the pages take as given: a text, ``runs/first``, and a small checkpoint under a published name."""
    folder = tmp_path_factory.mktemp("start")
    shutil.copy(argparse.__file__, folder / "book.txt")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        run("python -m launch.train --config=quickstart --workdir=runs/first --config.data.length=128".split())
        run("python -m launch.train --config=oracle --workdir=runs/hmm".split())
        run([*"python -m launch.train --config=oracle --workdir=runs/hmm_ar".split(), *CAUSAL])
    published(folder / "LLaDA-8B-Base")
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("page", PAGES, ids=[str(page.relative_to(ROOT)) for page in PAGES])
def test_a_guide_runs(page, start, tmp_path, monkeypatch):
    matplotlib.use("Agg")
    shutil.copytree(start, tmp_path / "here")
    monkeypatch.chdir(tmp_path / "here")
    scope = {}
    for block in blocks(page):
        if block.needs:
            continue
        if block.kind == "python":
            exec(compile(block.text, page.name, "exec"), scope)
        for words in commands(block.text) if block.kind == "bash" else ():
            run(words)
