"""The driver's side of `benchmarks.peer_worker`: a contender's process, and rounds that interleave several of them."""

import argparse
import json
import os
import pathlib
import random
import select
import subprocess
import tempfile
import time

import numpy as np

ROOT = pathlib.Path(__file__).resolve().parents[1]
KEPT = "glibc.malloc.mmap_max=0:glibc.malloc.trim_threshold=2147483647"


class Failed(RuntimeError):
    """A contender that said nothing usable."""


class Worker:
    """One contender's process; ``about``: what it said when it was warm."""

    def __init__(self, command: list[str], seconds: float, keep_freed_memory: bool = False):
        environment = dict(os.environ, PYTHONPATH=str(ROOT))
        if keep_freed_memory:
            environment["GLIBC_TUNABLES"] = KEPT
        self._errors = tempfile.TemporaryFile("w+")  # noqa: SIM115
        try:
            self._process = subprocess.Popen(command, env=environment, cwd=ROOT, stdin=subprocess.PIPE,
                                             stdout=subprocess.PIPE, stderr=self._errors, text=True)
        except OSError as error:
            raise Failed(str(error)) from error
        try:
            self.about = self._read(seconds)
        except Failed:
            self.stop()
            raise

    def run(self, call: str, seconds: float) -> dict:
        try:
            print(call, file=self._process.stdin, flush=True)
        except BrokenPipeError as error:
            raise Failed(self._end()) from error
        return self._read(seconds)

    def stop(self) -> None:
        self._process.kill()
        self._process.wait()

    def _read(self, seconds: float) -> dict:
        if not select.select([self._process.stdout], [], [], seconds)[0]:
            raise Failed(f"nothing for {seconds:.0f} s; {self._end()}")
        line = self._process.stdout.readline()
        if not line:
            raise Failed(self._end())
        return json.loads(line)

    def _end(self) -> str:
        self._errors.seek(0)
        lines = [line.strip() for line in self._errors.read().splitlines() if line.strip()]
        return f"exit status {self._process.poll()}: " + " | ".join(lines[-3:])


def measure(options, workers: dict[str, Worker], failed: dict[str, str], call: str) -> dict[str, list[dict]]:
    """Name -> what each round found, for contenders that finished all of them; those that stopped go to ``failed``.

    ``options``: rounds, seed, pause (seconds between two calls), call_seconds.
    """
    found = {name: [] for name in workers}
    rng = random.Random(options.seed)
    for _ in range(options.rounds):
        for name in rng.sample(sorted(found), len(found)):
            time.sleep(options.pause)  # thread pools stop spinning
            try:
                found[name].append(workers[name].run(call, options.call_seconds))
            except Failed as error:
                failed[name] = f"stopped in {call}: {error}"
                print(f"  {name}: {failed[name]}", flush=True)
                workers.pop(name).stop()
                del found[name]
    return found


def interval(ratios: np.ndarray, draws: int = 2000) -> tuple[float, float]:
    """Bootstrap 95 % interval of the median."""
    rng = np.random.default_rng(0)
    medians = np.median(rng.choice(ratios, (draws, len(ratios))), axis=1)
    return tuple(np.quantile(medians, (0.025, 0.975)))


def add_arguments(parser: argparse.ArgumentParser, pause: float) -> None:
    """What every comparison of contenders can be told."""
    parser.add_argument("--md4", default="", help="a checkout of github.com/google-deepmind/md4")
    parser.add_argument("--python", default="", help="of our contenders; the default: this one")
    parser.add_argument("--md4_python", default="", help="of md4")
    parser.add_argument("--torch_python", default="", help="of PyTorch's contenders")
    parser.add_argument("--pause", type=float, default=pause, help="seconds between two calls")
    parser.add_argument("--start_seconds", type=float, default=900.0)
    parser.add_argument("--call_seconds", type=float, default=300.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", default="", help="also write the numbers here")


def finish(options, workers: dict[str, Worker], failed: dict[str, str], results: list) -> None:
    """Says who was not measured, and writes --json."""
    for name, error in failed.items():
        print(f"NOT MEASURED {name}: {error}")
    if options.json:
        about = {name: worker.about for name, worker in workers.items()}
        with open(options.json, "w", encoding="utf-8") as file:
            json.dump({"options": vars(options), "about": about, "failed": failed, "results": results}, file, indent=1)
