"""Runs a command line in a process of its own and says what it imported."""

import dataclasses
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
HEAVY = ("jax", "jaxlib", "flax", "optax", "orbax", "tensorflow", "tensorflow_datasets", "matplotlib", "torch")


@dataclasses.dataclass
class Outcome:
    """What came of it: exit status, both outputs, and the top-level names of the modules imported."""

    status: int
    out: str
    err: str
    imported: set[str]


def command(module: str, *arguments) -> list[str]:
    return [sys.executable, "-X", "importtime", "-m", module, *map(str, arguments)]


def environment() -> dict[str, str]:
    return os.environ | {"PYTHONPATH": str(ROOT)}


def run(module: str, *arguments, cwd: Path = ROOT) -> Outcome:
    done = subprocess.run(
        command(module, *arguments), cwd=cwd, env=environment(), capture_output=True, text=True, timeout=400
    )
    return outcome(done.returncode, done.stdout, done.stderr)


def outcome(status: int, out: str, err: str) -> Outcome:
    lines = err.splitlines()
    timing = [line for line in lines if line.startswith("import time:")]
    imported = {line.rpartition("|")[2].strip().partition(".")[0] for line in timing}
    return Outcome(status, out, "\n".join(line for line in lines if line not in timing), imported)


def assert_refused(outcome: Outcome, *fragments: str) -> None:
    """One short line on stderr that holds every fragment, status 2, and nothing heavy imported for it."""
    assert outcome.status == 2, outcome
    assert outcome.out == ""
    assert len(outcome.err.splitlines()) == 1 and len(outcome.err) < 450, outcome.err
    assert outcome.err.startswith("error: ") and "Traceback" not in outcome.err
    for fragment in fragments:
        assert fragment in outcome.err
    assert outcome.imported and not outcome.imported.intersection(HEAVY)


def snapshot(folder: Path) -> dict[str, bytes | None]:
    """Every file below with its content, every folder with None."""
    return {str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None for path in folder.rglob("*")}


def killed_and_again(words: list[str], first: Path, second: Path, seconds: float) -> str:
    """What a command of several runs says that goes on after SIGKILL amid the ``second`` run; the ``first``, which is
    done by then, is not made again."""
    where = {"cwd": first.parent.parent, "env": environment()}
    child = subprocess.Popen(words, **where, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + seconds
    while not list(second.glob(f"checkpoints/{'[0-9]' * 8}/manifest.json")):
        assert time.monotonic() < deadline and child.poll() is None
        time.sleep(0.02)
    child.send_signal(signal.SIGKILL)
    child.wait()
    time.sleep(1.0)  # its run dies with it
    assert (first / "summary.json").exists() and not (second / "summary.json").exists()
    before = (first / "summary.json").stat().st_mtime_ns
    done = subprocess.run(words, **where, capture_output=True, text=True)
    assert done.returncode == 0, done
    assert (first / "summary.json").stat().st_mtime_ns == before and "resum" in done.stdout.lower()
    return done.stdout


def part_of(output: Path, number: int = 0) -> Path:
    """The part of an unfinished output that a process writes, or a name that is not there."""
    folder = output.with_name(f"{output.name}.parts")
    return next(folder.glob(f"{number:05d}.*.jsonl"), folder / "none")
