"""Runs a program that a model wrote, in a process of its own with little to spend. POSIX.

The process is Python in isolated mode, in an empty folder that is removed afterwards, without the environment of the
caller, in a session of its own that is killed whole at the time limit; memory, processor time, file sizes and the
number of its processes are limited by the kernel, and on Linux, where the kernel allows it, it has no network. That
keeps mistakes and loops from hurting; against code that wants to do harm use a container or a virtual machine as well.
"""

import dataclasses
import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

_CONFINED = Path(__file__).with_name("confined.py")
_KEPT = 2000  # characters of what it said


@dataclasses.dataclass(frozen=True)
class Limits:
    """Seconds on the clock; bytes of memory, and of the largest file; processes beside those there are."""

    seconds: float = 10.0
    memory: int = 1 << 30
    file_size: int = 1 << 20
    processes: int = 0


class Ran(NamedTuple):
    """Exit status (negative: a signal), whether it was stopped at the time limit, and the end of what it said."""

    status: int
    timed_out: bool
    said: str


def run(program: str, limits: Limits = Limits()) -> Ran:  # noqa: B008 (frozen)
    """Runs Python source to its end, or to the limits."""
    with tempfile.TemporaryDirectory(prefix="answer-") as folder, tempfile.TemporaryFile() as output:
        process = subprocess.Popen(
            [sys.executable, "-I", str(_CONFINED), *map(str, (int(limits.seconds) + 1, limits.memory,
                                                                 limits.file_size, limits.processes))],
            stdin=subprocess.PIPE, stdout=output, stderr=subprocess.STDOUT, cwd=folder, start_new_session=True,
            env={"PYTHONHASHSEED": "0", "PYTHONDONTWRITEBYTECODE": "1", "OMP_NUM_THREADS": "1", "HOME": folder},
        )
        timed_out = False
        try:
            process.communicate(program.encode("utf-8", "replace"), timeout=limits.seconds)
        except subprocess.TimeoutExpired:
            timed_out = True
        except BrokenPipeError:  # it died before it had read itself
            pass
        finally:
            _kill(process)
        output.seek(max(0, output.seek(0, os.SEEK_END) - _KEPT))
        return Ran(process.returncode, timed_out, output.read().decode("utf-8", "replace"))


def _kill(process: subprocess.Popen) -> None:
    """It, and what it has started, which shares its session's process group."""
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:
        pass
    process.wait()
