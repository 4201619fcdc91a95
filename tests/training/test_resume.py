"""Killed with SIGKILL, damaged, and started again by the same command: the run ends as if nothing had happened."""

import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest

from mdlm_jax.training import metrics
from mdlm_jax.training.checkpoints import Checkpoints, abstract, restore_path

ROOT = Path(__file__).resolve().parents[2]
STEPS, EVERY = 240, 20
SETTINGS = {
    "data.tokenizer": "byte", "data.length": 16, "data.valid_fraction": 0.5, "model.layers": 1, "model.d_model": 16,
    "model.heads": 2, "model.dropout": 0.1, "train.steps": STEPS, "train.batch_size": 4, "train.warmup_steps": 10,
    "train.log_every": 1, "train.checkpoint_every": EVERY, "train.keep_checkpoints": 3, "eval.every": 100000,
    "eval.rows": 4, "eval.final_rows": 4, "sample.num": 1, "sample.steps": 2,
}


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    """A file of numbered lines, one document a paragraph."""
    rng = random.Random(0)
    words = ["mask", "token", "noise", "time", "clean", "bound", "count", "pair", "row"]
    path = tmp_path_factory.mktemp("text") / "text.txt"
    path.write_text("".join(f"{n}: {' '.join(rng.choices(words, k=12))}\n\n" for n in range(2400)))
    return path


def start(text, workdir):
    """The command, its output in a file beside the workdir."""
    command = [sys.executable, "-m", "launch.train", "--config=quickstart", f"--workdir={workdir}"]
    command += [f"--config.{name}={value}" for name, value in (SETTINGS | {"data.source": text}).items()]
    with open(f"{workdir}.log", "a", encoding="utf-8") as log:
        return subprocess.Popen(command, cwd=ROOT, env=os.environ, stdout=log, stderr=subprocess.STDOUT)


def finish(text, workdir):
    assert start(text, workdir).wait(timeout=400) == 0, Path(f"{workdir}.log").read_text()[-3000:]


def losses(workdir):
    names = ("step", "loss", "loss/diffusion", "grad_norm", "update_norm", "learning_rate")
    return [tuple(record[name] for name in names) for record in metrics.read(workdir) if "loss" in record]


def weights(workdir):
    folder = Checkpoints(workdir / "checkpoints").latest_good()
    assert folder.name == f"{STEPS:08d}"
    return jax.device_get(restore_path(folder, abstract(folder)).tree)


@pytest.fixture(scope="module")
def uninterrupted(text, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("whole") / "run"
    finish(text, workdir)
    assert [step for step, *_ in losses(workdir)] == list(range(1, STEPS + 1))
    return losses(workdir), weights(workdir)


def kill(text, workdir, moment):
    """Starts the command and kills it when ``moment(first step it made)`` says so."""
    log = Path(f"{workdir}.log")
    begin = log.stat().st_size if log.exists() else 0
    process = start(text, workdir)
    deadline = time.monotonic() + 300
    while True:
        first = re.search(r"train: (\d+)/", log.read_text()[begin:])  # the records are cut back by now
        if first and moment(int(first[1])):
            break
        time.sleep(0.001)
        if process.poll() is not None or time.monotonic() > deadline:
            process.kill()
            pytest.fail(f"not killed in time: {log.read_text()[-3000:]}")
    process.send_signal(signal.SIGKILL)
    process.wait()
    return log.read_text()[begin:]


def after(workdir, steps, delay):
    """A moment ``delay`` seconds after as many steps."""
    print(f"a kill {delay:.3f} s after {steps} steps")
    reached = []

    def moment(first):
        if not reached and (workdir / "metrics.jsonl").read_bytes().count(b"\n") >= first + steps:
            reached.append(time.monotonic())
        return reached and time.monotonic() > reached[0] + delay

    return moment


def newest(workdir):
    folder = Checkpoints(workdir / "checkpoints").latest_good()
    return 0 if folder is None else int(folder.name)


def assert_as_if_nothing_had_happened(text, workdir, uninterrupted):
    finish(text, workdir)
    expected, final = uninterrupted
    assert losses(workdir) == expected  # every step once, every number bit for bit
    jax.tree.map(np.testing.assert_array_equal, weights(workdir), final)


def test_killed_once(text, tmp_path, uninterrupted):
    workdir, rng = tmp_path / "run", random.Random()
    now = after(workdir, rng.randrange(EVERY, STEPS // 2), rng.uniform(0, 0.05))
    kill(text, workdir, lambda first: now(first) and newest(workdir))  # a slow disk may need longer for the first
    step = newest(workdir)
    assert 0 < step < STEPS
    assert_as_if_nothing_had_happened(text, workdir, uninterrupted)
    assert f"resuming from step {step} " in Path(f"{workdir}.log").read_text()


@pytest.mark.slow
def test_asked_to_stop(text, tmp_path, uninterrupted):
    """SIGTERM between two checkpoints: the step under way is saved, the status says so, and nothing is lost."""
    workdir = tmp_path / "run"
    process, deadline = start(text, workdir), time.monotonic() + 300
    path = workdir / "metrics.jsonl"
    while not path.exists() or path.read_bytes().count(b"\n") < EVERY + 3:
        assert process.poll() is None and time.monotonic() < deadline, Path(f"{workdir}.log").read_text()[-3000:]
        time.sleep(0.005)
    process.send_signal(signal.SIGTERM)
    begin = time.monotonic()
    assert process.wait(timeout=60) == 143
    print(f"left {time.monotonic() - begin:.2f} s after the signal")
    saved = newest(workdir)
    assert saved > EVERY and losses(workdir)[-1][0] == saved
    assert f"asked to stop; saved step {saved} " in Path(f"{workdir}.log").read_text()
    assert_as_if_nothing_had_happened(text, workdir, uninterrupted)


def damage(workdir, how):
    """Flips a bit in, or cuts off the end of, the largest file of the newest step."""
    folder = Checkpoints(workdir / "checkpoints").latest_good()
    file = max((path for path in folder.rglob("*") if path.is_file()), key=lambda path: path.stat().st_size)
    content = bytearray(file.read_bytes())
    if how == "flip":
        content[len(content) // 2] ^= 4
    else:
        del content[-len(content) // 3 :]
    file.write_bytes(content)


@pytest.mark.slow
def test_killed_ten_times_and_damaged_twice(text, tmp_path, uninterrupted):
    """At random moments, once with a bit flipped in the newest checkpoint afterwards, once with a file cut off."""
    workdir, rng = tmp_path / "run", random.Random()
    kill(text, workdir, after(workdir, 3 * EVERY, 0.0))
    for number in range(9):
        before, damaged = newest(workdir), {3: "flip", 6: "cut"}.get(number)
        if damaged:
            damage(workdir, damaged)
            assert 0 < newest(workdir) < before
        resumed = newest(workdir)
        log = kill(text, workdir, after(workdir, rng.randrange(EVERY), rng.uniform(0, 0.2)))
        assert f"resuming from step {resumed} " in log
        assert (f"{before:08d} is passed over" in log) == bool(damaged)
    assert newest(workdir) < STEPS
    assert_as_if_nothing_had_happened(text, workdir, uninterrupted)


@pytest.mark.slow
def test_killed_inside_the_writing_of_a_checkpoint(text, tmp_path, uninterrupted):
    workdir = tmp_path / "run"

    def saving(first):
        return any(workdir.glob("checkpoints/*.unfinished"))

    kill(text, workdir, after(workdir, 2 * EVERY, 0.0))
    for _ in range(5):
        for leftover in workdir.glob("checkpoints/*.unfinished"):
            shutil.rmtree(leftover)
        kill(text, workdir, saving)
        if saving(0):
            break
    assert saving(0)  # what was being written is still there, and it is no step
    assert 0 < newest(workdir) < STEPS
    assert_as_if_nothing_had_happened(text, workdir, uninterrupted)
