"""Starting, watching and restarting the processes of one job. POSIX; never imports jax."""

import contextlib
import ctypes
import dataclasses
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time

from mdlm_jax.config import ConfigError

from . import _distributed

_POLL = 0.1
_STOPPED = {signal.SIGTERM: 143, signal.SIGINT: 130}
_FINAL = (2, 130)  # a mistake in the command, or somebody's Ctrl-C: starting again would not help
_PDEATHSIG = 1
_AT_ONCE = 20  # seconds; a start that fails sooner is followed by a pause
_LONGEST_PAUSE = 60


@dataclasses.dataclass(frozen=True)
class Job:
    """A command, and how it is run."""

    command: list[str]
    processes: int
    devices_per_process: int | None
    max_restarts: int
    grace: int  # seconds


def supervise(job: Job) -> int:
    """Runs the job to its end and returns its exit status; leaves no process behind."""
    with _Signals() as asked:
        pause = 0
        for attempt in range(job.max_restarts + 1):
            began = time.monotonic()
            status = _attempt(job, asked)
            if status == 0 or status in _FINAL or asked.number is not None:
                return status if asked.number is None or not status else _STOPPED[asked.number]
            if attempt < job.max_restarts:
                at_once = status != 143 and time.monotonic() - began < _AT_ONCE
                pause = min(2 * pause or 1, _LONGEST_PAUSE) if at_once else 0
                when = f" in {pause} s" if pause else ""
                _say(f"starting all {job.processes} again{when} ({attempt + 1} of {job.max_restarts})")
                if number := _stopped_in(pause, asked):
                    return _STOPPED[number]
        if status == 143:
            return status
        _say(f"ended {_described(status)} {job.max_restarts + 1} time(s); giving up (what it said is above)")
        return 1


def _stopped_in(seconds: float, asked: "_Signals") -> signal.Signals | None:
    """Waits; what asked it to stop meanwhile."""
    end = time.monotonic() + seconds
    while asked.number is None and time.monotonic() < end:
        time.sleep(_POLL)
    return asked.number


class _Signals:
    """SIGTERM and SIGINT noted, not obeyed, while the job runs."""

    def __enter__(self) -> "_Signals":
        self.number: signal.Signals | None = None
        self._previous = {number: signal.signal(number, self._note) for number in _STOPPED}
        return self

    def _note(self, number, frame) -> None:
        self.number = signal.Signals(number)

    def __exit__(self, *exception) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)


def _attempt(job: Job, asked: _Signals) -> int:
    """One start of all processes: 0, or the status of the first that failed."""
    coordinator = f"127.0.0.1:{_free_port()}"
    children: list[_Child] = []
    try:
        for number in range(job.processes):
            children.append(_start(job, coordinator, number))
        return _watch(job, children, asked)
    finally:
        _kill(children)
        for child in children:
            child.speaker.join(timeout=5)


class _Child(subprocess.Popen):
    number: int
    speaker: threading.Thread


def _start(job: Job, coordinator: str, number: int) -> _Child:
    environment = os.environ | _distributed.environment(coordinator, job.processes, number) | {"PYTHONUNBUFFERED": "1"}
    if job.devices_per_process:
        environment |= {"JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": str(job.devices_per_process)}
    if shutil.which(job.command[0]) is None:
        raise ConfigError(f"-- {job.command[0]}: there is no such command; write one that the shell would find")
    child = _Child(job.command, env=environment, stdin=subprocess.DEVNULL, stderr=subprocess.PIPE,
                   start_new_session=True, preexec_fn=_die_with_parent)
    child.number = number
    child.speaker = threading.Thread(target=_pass_on, args=(child, number), daemon=True)
    child.speaker.start()
    return child


def _die_with_parent() -> None:
    """A supervisor that is killed must leave nobody behind (Linux; elsewhere they notice at their next message)."""
    if sys.platform.startswith("linux"):
        ctypes.CDLL(None).prctl(_PDEATHSIG, signal.SIGKILL)


def _pass_on(child: _Child, number: int) -> None:
    assert child.stderr is not None
    mark = f"[process {number}] ".encode() if number else b""
    for line in child.stderr:
        if hasattr(sys.stderr, "buffer"):
            sys.stderr.buffer.write(mark + line)
        else:  # in a notebook it takes text alone
            sys.stderr.write((mark + line).decode(errors="replace"))
        sys.stderr.flush()


def _watch(job: Job, children: list[_Child], asked: _Signals) -> int:
    deadline = failed = None  # the first that failed: what becomes of the others is its doing
    while True:
        states = [child.poll() for child in children]
        if failed is None:
            failed = next(((child, state) for child, state in zip(children, states, strict=True) if state), None)
        if all(state is not None for state in states):
            return failed[1] if failed else 0
        if failed and deadline is None:
            _say(f"process {failed[0].number} ended {_described(failed[1])}")
        if (asked.number is not None or failed) and deadline is None:
            # After a failure the others are asked too: those that were told to stop may be saving together.
            saving = failed is None or asked.number is not None or failed[1] == 143
            deadline = time.monotonic() + (job.grace if saving else 2)
            for child in children:
                _signal(child, signal.SIGTERM)
        if deadline is not None and time.monotonic() > deadline:
            return failed[1] if failed else 143
        time.sleep(_POLL)


def _described(state: int) -> str:
    return f"by {signal.Signals(-state).name}" if state < 0 else f"with status {state}"


def _signal(child: _Child, number: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        if child.poll() is None:
            os.kill(child.pid, number)


def _kill(children: list[_Child]) -> None:
    """Every child, and what it has started, which shares its process group."""
    for child in children:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(child.pid, signal.SIGKILL)
    for child in children:
        child.wait()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def _say(text: str) -> None:
    print(f"[local] {text}", file=sys.stderr, flush=True)
