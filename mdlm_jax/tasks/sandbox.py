"""Runs a program that a model wrote, in a process of its own with little to spend. POSIX.

What holds everywhere: the program is a module of Python in isolated mode, not ``__main__``, in an empty folder that is
removed afterwards, without the environment of the caller. The kernel limits the memory, the processor time and the
files of each of its processes. At the time limit its process group is killed.

What holds where the kernel gives namespaces (Linux, to root, or unprivileged user namespaces): it has no network; it
can signal no processes but its own; all of them end with it, in whatever session. For other users than root Linux also
limits their number: to those of the machine at the start, and so many more; in a user namespace those are counted that
are in it. `lacking` says what does not hold here.

Nothing limits what it reads, how much many files hold, nor the memory and processor time of its processes together. It
proves by a token that its last line was run, which programs that leave early do not know; one that searches the
interpreter finds it. Against code that wants to do harm use a container or a virtual machine as well.
"""

import dataclasses
import os
import secrets
import select
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

from mdlm_jax.errors import ConfigError

_CONFINED = Path(__file__).with_name("confined.py")
_KEPT = 2000  # characters of what it said
_KEPT_REPORT = 1 << 16
_FAREWELL = 1.0  # seconds in which what was killed lets go of the report
_WITHOUT = {
    "network": "they can reach the network",
    "processes": "what they start can outlive the time limit, and they can signal other processes of this user",
    "number": "they may start any number of processes, since root's are not counted",
}


@dataclasses.dataclass(frozen=True)
class Limits:
    """Seconds on the clock; bytes of memory, and of the largest file; processes beside those there are."""

    seconds: float = 10.0
    memory: int = 1 << 30
    file_size: int = 1 << 20
    processes: int = 0


class Ran(NamedTuple):
    """What became of a program.

    status: of its process (negative: a signal). timed_out: it was stopped at the time limit. said: the end of what it
    wrote. finished: its last line was run; leaving before, with whatever status, is not that. isolation: of `_WITHOUT`,
    what the kernel gave.
    """

    status: int
    timed_out: bool
    said: str
    finished: bool
    isolation: frozenset[str]


def run(program: str, limits: Limits = Limits()) -> Ran:  # noqa: B008 (frozen)
    """Runs Python source to its end, or to the limits."""
    token, (reader, writer) = secrets.token_bytes(16).hex().encode(), os.pipe()
    with tempfile.TemporaryDirectory(prefix="answer-", ignore_cleanup_errors=True) as folder, \
            tempfile.TemporaryFile() as output, open(reader, "rb", buffering=0) as report:
        try:
            process = subprocess.Popen(
                [sys.executable, "-I", str(_CONFINED), *map(str, (int(limits.seconds) + 1, limits.memory,
                                                                     limits.file_size, limits.processes, writer))],
                stdin=subprocess.PIPE, stdout=output, stderr=subprocess.STDOUT, cwd=folder, start_new_session=True,
                env={"PYTHONHASHSEED": "0", "PYTHONDONTWRITEBYTECODE": "1", "OMP_NUM_THREADS": "1", "HOME": folder},
                pass_fds=(writer,),
            )
        finally:
            os.close(writer)
        timed_out = False
        try:
            process.communicate(token + b"\n" + program.encode("utf-8", "replace"), timeout=limits.seconds)
        except subprocess.TimeoutExpired:
            timed_out = True
        except BrokenPipeError:  # it died before it had read itself
            pass
        finally:
            _kill(process)
        words, _, rest = _read(report).partition(b"\n")
        output.seek(max(0, output.seek(0, os.SEEK_END) - _KEPT))
        return Ran(process.returncode, timed_out, output.read().decode("utf-8", "replace"), token in rest,
                   frozenset(words.decode("ascii", "replace").split()))


def lacking() -> list[str]:
    """What does not hold of programs on this machine, a clause each; found by running one.

    Raises:
      ConfigError: not even that one runs.
    """
    found = run("")
    if not found.finished:
        said = found.said.strip().rpartition("\n")[2] or "it said nothing"
        raise ConfigError(f"programs cannot be run on this machine: an empty one ended with status {found.status} "
                          f"({said}); repair {sys.executable}, or lift the limits that it was started under")
    return [clause for word, clause in _WITHOUT.items() if word not in found.isolation]


def _kill(process: subprocess.Popen) -> None:
    """It, and what it has started: its process group, and where it has a PID namespace all that is in there."""
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:
        pass
    process.wait()


def _read(report) -> bytes:
    """Until every process has let go of it, so that the folder is nobody's; or has had the time to."""
    found, until = b"", time.monotonic() + _FAREWELL
    while len(found) < _KEPT_REPORT and select.select([report], [], [], max(0.0, until - time.monotonic()))[0]:
        more = report.read(4096)
        if not more:
            break
        found += more
    return found
