import fcntl
import io
import os
import pty
import struct
import subprocess
import sys
import termios
import types

import jax.numpy as jnp
import numpy as np
import pytest

from mdlm_jax.progress import Progress


class Clock:
    now = 100.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock():
    return Clock()


def lines(file):
    return file.getvalue().splitlines()


def test_plain_lines_come_at_most_every_interval_and_at_the_end(clock):
    file = io.StringIO()
    with Progress(100, desc="train", interval=10.0, file=file, clock=clock) as progress:
        for step in range(1, 101):
            clock.now += 1.0
            progress.update(step, loss=10.0 / step)
    printed = [line.split()[1] for line in lines(file)]
    assert printed == [f"{step}/100" for step in (1, 11, 21, 31, 41, 51, 61, 71, 81, 91, 100)]
    assert not set(file.getvalue()) & {"\r", "\x1b", "\b"}


def test_time_left_is_what_the_rate_since_the_first_update_gives(clock):
    file = io.StringIO()
    progress = Progress(1000, start=400, desc="train", file=file, clock=clock)
    clock.now += 60.0  # compilation and the first step
    progress.update(401, loss=2.0)
    clock.now += 30.0
    progress.update(461, loss=np.float32(1 / 3), rate=jnp.float32(2.5), speed=98765.4, n=123)
    assert lines(file) == [
        "train: 401/1000 steps (40%), elapsed 01:00, loss=2",
        "train: 461/1000 steps (46%), elapsed 01:30, left 04:29, 2 step/s, loss=0.3333, rate=2.5, speed=98,765, n=123",
    ]  # 539 steps are left at 2 a second


def test_close_prints_where_the_work_stopped_once(clock):
    file = io.StringIO()
    with Progress(100, file=file, unit="row", clock=clock) as progress:
        progress.update(1)
        progress.update(7)
    progress.close()
    assert [line.split(",")[0] for line in lines(file)] == ["1/100 rows (1%)", "7/100 rows (7%)"]
    with Progress(100, file=file, clock=clock):
        pass
    assert len(lines(file)) == 2


PROGRAM = """
from mdlm_jax.progress import Progress
with Progress(50, start=20, desc="train", interval=0.0) as progress:
    for step in range(21, 51):
        progress.update(step, loss=1.5)
"""


def test_a_pipe_gets_lines():
    result = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True)
    assert result.stdout == ""
    assert "\r" not in result.stderr and len(result.stderr.splitlines()) == 30
    assert result.stderr.splitlines()[-1].startswith("train: 50/50 steps (100%)")


def on_a_terminal(columns):
    """What the program above writes to a terminal of 24 lines."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    process = subprocess.Popen([sys.executable, "-c", PROGRAM], stderr=theirs, stdin=subprocess.DEVNULL)
    os.close(theirs)
    output = b""
    try:
        while chunk := os.read(ours, 4096):
            output += chunk
    except OSError:  # how Linux reports that the other side is closed
        pass
    os.close(ours)
    assert process.wait() == 0
    return output.decode().replace("\r\n", "\n")


def test_a_terminal_gets_a_bar():
    text = on_a_terminal(columns=100)
    assert "\r" in text and "train: 100%" in text and "50/50" in text and "loss=1.5" in text
    assert "20/50" in text  # the bar begins where the work does


def test_a_terminal_without_width_gets_lines():
    text = on_a_terminal(columns=0)
    assert "\r" not in text and len(text.splitlines()) == 30


def test_a_notebook_gets_the_bar_of_tqdm_auto(monkeypatch):
    made = []

    class Widget:
        def __init__(self, **options):
            self.n, self.postfix, self.closed = options["initial"], None, False
            made.append((self, options))

        def set_postfix(self, shown, refresh):
            self.postfix = shown

        def update(self, count):
            self.n += count

        def close(self):
            self.closed = True

    monkeypatch.setitem(sys.modules, "ipykernel", types.ModuleType("ipykernel"))
    monkeypatch.setattr("tqdm.auto.tqdm", Widget)
    with Progress(10, start=3, desc="sample") as progress:
        progress.update(5, loss=0.5)
        progress.update(10, loss=0.25)
    ((widget, options),) = made
    assert (widget.n, widget.postfix, widget.closed) == (10, {"loss": "0.25"}, True)
    assert (options["total"], options["desc"], options["unit"]) == (10, "sample", "step")
