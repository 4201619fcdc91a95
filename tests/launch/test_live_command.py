"""launch.sample --live: the denoising on a terminal as it happens, and the samples after it."""

import os
import pty
import re
import subprocess
import sys

import pytest

from launch import sample
from mdlm_jax.loading import save_checkpoint
from mdlm_jax.sampling import loop
from tests.generation.models import bytes_model
from tests.launch import commands


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    folder = tmp_path_factory.mktemp("live") / "model"
    save_checkpoint(folder, bytes_model(), b'{"mdlm_jax_tokenizer": "byte"}')
    return f"--checkpoint={folder}"


SHORT = ["--prompt=xyz", "--new_tokens=8", "--steps=4", "--num=2"]


def plain(text):
    return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", text)


def test_on_a_terminal(checkpoint, tmp_path, capsys, monkeypatch):
    picture = tmp_path / "film.html"
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    assert sample.main([checkpoint, *SHORT, "--live", f"--picture={picture}"]) == 0
    live, samples = plain(capsys.readouterr().out).split("--- sample 1 ---")
    assert "step 0: 73% masked" in live and "xyz░░░░░░░░" in live and "0% masked" in live
    monkeypatch.undo()
    assert sample.main([checkpoint, *SHORT]) == 0
    assert capsys.readouterr().out == "--- sample 1 ---" + samples
    assert re.search(r"xyz[ab]{8}\n", samples) and "step 0 of" in picture.read_text()


@pytest.mark.slow
def test_a_picture_is_of_the_first_and_the_others_need_no_steps_of_their_own(checkpoint, tmp_path, capsys, monkeypatch):
    calls, stream = [], loop.stream
    monkeypatch.setattr(loop, "stream", lambda *args, **options: (
        calls.append((options["every"], args[2].shape[0])), stream(*args, **options))[1])
    assert sample.main([checkpoint, *SHORT, f"--picture={tmp_path / 'film.html'}"]) == 0
    pictured = capsys.readouterr().out
    assert calls == [("step", 1), ("block", 1)] and "step 0 of" in (tmp_path / "film.html").read_text()
    assert sample.main([checkpoint, *SHORT]) == 0
    assert capsys.readouterr().out == pictured and calls[2:] == [("block", 2)]


@pytest.mark.slow
def test_in_a_real_terminal(checkpoint):
    outer, inner = pty.openpty()
    done = subprocess.Popen([sys.executable, "-m", "launch.sample", checkpoint, *SHORT, "--live"], cwd=commands.ROOT,
                            env=commands.environment() | {"TERM": "xterm-256color", "COLUMNS": "80"}, stdout=inner,
                            stderr=subprocess.DEVNULL)
    os.close(inner)
    written = b""
    while True:
        try:
            piece = os.read(outer, 1 << 16)
        except OSError:  # the other end is closed
            break
        written += piece
    assert done.wait(timeout=60) == 0
    text = written.decode()
    assert "\x1b[" in text and "░" in plain(text) and "--- sample 2 ---" in plain(text)
