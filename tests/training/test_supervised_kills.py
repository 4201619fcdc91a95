"""A supervised job of two processes, killed again and again and its checkpoints damaged: it goes on by itself."""

import contextlib
import os
import random
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
STEPS, EVERY, KILLS = 400, 8, 20
SETTINGS = {
    "data.source": "language:copy", "train.steps": STEPS, "train.checkpoint_every": EVERY, "train.keep_checkpoints": 3,
    "train.batch_size": 8, "train.log_every": 1, "train.warmup_steps": 5, "model.layers": 1, "model.d_model": 16,
    "model.heads": 2, "eval.every": 100000, "eval.rows": 8, "eval.final_rows": 8, "sample.num": 1, "sample.steps": 2,
}


def start(workdir, cache) -> subprocess.Popen:
    environment = {k: v for k, v in os.environ.items() if k not in ("XLA_FLAGS", "JAX_NUM_CPU_DEVICES")}
    environment |= {"PYTHONPATH": str(ROOT), "XLA_FLAGS": "--xla_backend_optimization_level=0",
                    "JAX_COMPILATION_CACHE_DIR": str(cache), "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}
    command = [sys.executable, "-m", "launch.local", "--processes=2", "--devices_per_process=2", "--max_restarts=60",
               "--", sys.executable, "-m", "launch.train", "--config=oracle", f"--workdir={workdir}",
               *(f"--config.{name}={value}" for name, value in SETTINGS.items())]
    with open(f"{workdir}.log", "a", encoding="utf-8") as log:
        return subprocess.Popen(command, cwd=ROOT, env=environment, stdout=log, stderr=subprocess.STDOUT)


def children(parent: int) -> list[int]:
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError, IndexError):
            if int((folder / "stat").read_text().rsplit(")", 1)[1].split()[1]) == parent:
                found.append(int(folder.name))
    return found


def records(workdir) -> int:
    path = workdir / "metrics.jsonl"
    return path.read_bytes().count(b"\n") if path.exists() else 0


def damage(workdir, how: str) -> bool:
    """The largest file of the newest whole step: a bit flipped, its end cut off, or nothing left of it."""
    folder = Checkpoints(workdir / "checkpoints").latest_good()
    if folder is None or len(Checkpoints(workdir / "checkpoints").steps()) < 2:
        return False
    file = max((path for path in folder.rglob("*") if path.is_file()), key=lambda path: path.stat().st_size)
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 4
    file.write_bytes({"flip": content, "cut": content[: len(content) // 2], "empty": b""}[how])
    return True


def kill(supervisor, workdir, rng, how: str | None) -> None:
    """One or both processes at a random moment after new steps; with ``how``, the newest checkpoint is damaged too."""
    before, deadline = records(workdir), time.monotonic() + 500
    wanted = rng.randrange(1, 3 * EVERY)
    while records(workdir) < before + wanted or len(children(supervisor.pid)) < 2:
        before = min(before, records(workdir))  # a resumed run cuts its records back
        assert supervisor.poll() is None and time.monotonic() < deadline, Path(f"{workdir}.log").read_text()[-3000:]
        time.sleep(0.002)
    time.sleep(rng.uniform(0, 0.1))
    os.kill(supervisor.pid, signal.SIGSTOP)  # so that nothing starts before the damage is done
    victims = children(supervisor.pid)
    for pid in victims if how else rng.choice([victims, victims[:1], victims[1:]]):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    damaged = damage(workdir, how) if how else False
    os.kill(supervisor.pid, signal.SIGCONT)
    print(f"killed after {wanted} steps" + f", {how}" * damaged, flush=True)


def outcome(workdir):
    names = ("step", "loss", "grad_norm", "update_norm", "learning_rate")
    folder = Checkpoints(workdir / "checkpoints").latest_good()
    assert folder.name == f"{STEPS:08d}"
    weights = jax.device_get(restore_path(folder, abstract(folder)).tree)
    return [tuple(record[name] for name in names) for record in metrics.read(workdir) if "loss" in record], weights


@pytest.mark.slow
def test_twenty_kills_and_three_damaged_checkpoints(tmp_path):
    cache, rng = tmp_path / "cache", random.Random()
    whole, run = tmp_path / "whole", tmp_path / "run"
    assert start(whole, cache).wait(timeout=900) == 0, Path(f"{whole}.log").read_text()[-3000:]
    supervisor = start(run, cache)
    try:
        for number in range(KILLS):
            kill(supervisor, run, rng, {5: "flip", 10: "cut", 15: "empty"}.get(number))
        assert supervisor.wait(timeout=600) == 0, Path(f"{run}.log").read_text()[-3000:]
    finally:
        supervisor.kill()
    log = Path(f"{run}.log").read_text()
    assert log.count("starting all 2 again") >= KILLS and log.count("is passed over") >= 3
    (expected, final), (found, state) = outcome(whole), outcome(run)
    assert found == expected  # every step once, every number bit for bit
    jax.tree.map(np.testing.assert_array_equal, state, final)
    left = [path.name for path in (run / "checkpoints").iterdir()]
    assert len(left) == 3 and not any("unfinished" in name or "removed" in name for name in left)
    assert not [path for path in run.rglob("*.tmp")]
