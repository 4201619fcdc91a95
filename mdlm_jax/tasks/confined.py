"""Limits itself, then runs the program on standard input: what `tasks.sandbox` starts, by this file's path.

It imports the standard library alone. Arguments: seconds of processor time, bytes of memory, of a file, processes, the
descriptor of the report. Standard input: a token, on a line of its own, and the program.

Three processes: this one, which waits; the first of a PID namespace, where the kernel gives one, whose end ends all in
it; and the program. The report says in words, on its first line, what the kernel gave; then follows the token, once the
program has come to its end.
"""

import contextlib
import ctypes
import os
import resource
import signal
import sys
import types

NAME = "answer"  # the program's module: neither __main__, whose blocks are not to run, nor without a name
_NETWORK, _PROCESSES, _USER = 0x40000000, 0x20000000, 0x10000000  # CLONE_NEWNET, CLONE_NEWPID, CLONE_NEWUSER
_WORDS = {_NETWORK: "network", _PROCESSES: "processes"}
_DIE_WITH_PARENT = 1  # PR_SET_PDEATHSIG


def main(seconds: int, memory: int, file_size: int, processes: int, report: int) -> None:
    """Returns in the process of the program alone, and there only if it did not come to its end."""
    token, _, program = sys.stdin.buffer.read().partition(b"\n")
    root, held = os.getuid() == 0, _unshared()
    words = [word for bit, word in _WORDS.items() if held & bit] + ["number"] * (not root)
    os.write(report, " ".join(words).encode() + b"\n")
    if held & _PROCESSES:
        _first()
    if child := os.fork():
        _leave_as(os.waitpid(child, 0)[1])
    _die_with_parent()
    _confine(seconds, memory, file_size, None if root else processes)
    _run(program, report, token)


def _run(program: bytes, report: int, token: bytes) -> None:
    module, own = types.ModuleType(NAME), os.getpid()
    sys.modules[NAME] = module  # dataclasses and pickle look there
    sys.argv[:] = [NAME]
    exec(compile(program, NAME, "exec"), module.__dict__)
    if os.getpid() != own:  # a fork of it, which is not asked
        return
    os.write(report, token)
    with contextlib.suppress(Exception):
        sys.stdout.flush()
        sys.stderr.flush()
    os._exit(0)  # threads and handlers of its own do not go on


def _unshared() -> int:
    """The namespaces that this process has left, by their bits; children live in the new ones."""
    if sys.platform.startswith("linux"):
        library = ctypes.CDLL(None)
        for wanted in (_PROCESSES | _NETWORK, _NETWORK, _PROCESSES):
            for also in (0, _USER):  # root, or unprivileged namespaces
                if library.unshare(wanted | also) == 0:
                    return wanted
    return 0


def _first() -> None:
    """Starts the process with number 1, which takes in orphans and waits to be killed; its namespace ends then."""
    if os.fork():
        return
    _die_with_parent()
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # the kernel buries them
    while True:
        signal.pause()


def _die_with_parent() -> None:
    if sys.platform.startswith("linux"):
        ctypes.CDLL(None).prctl(_DIE_WITH_PARENT, signal.SIGKILL, 0, 0, 0)


def _confine(seconds: int, memory: int, file_size: int, processes: int | None) -> None:
    """The kernel's limits on this process, and on each that it starts. None: no limit on their number."""
    limits = {resource.RLIMIT_CPU: seconds, resource.RLIMIT_AS: memory, resource.RLIMIT_FSIZE: file_size,
              resource.RLIMIT_CORE: 0}
    if processes is not None:
        running = len([name for name in os.listdir("/proc") if name.isdigit()]) if os.path.isdir("/proc") else 256
        limits[resource.RLIMIT_NPROC] = running + processes
    for what, most in limits.items():
        hard = resource.getrlimit(what)[1]  # may be less, and cannot be raised
        most = most if hard == resource.RLIM_INFINITY else min(most, hard)
        resource.setrlimit(what, (most, most))


def _leave_as(status: int) -> None:
    """As the program did. The kernel kills what is left of the namespace: its first process dies with this one."""
    code = os.waitstatus_to_exitcode(status)
    if code < 0:
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        with contextlib.suppress(OSError):  # SIGKILL has no handler
            signal.signal(-code, signal.SIG_DFL)
        os.kill(os.getpid(), -code)
    os._exit(code)


if __name__ == "__main__":
    _die_with_parent()
    main(*map(int, sys.argv[1:6]))
