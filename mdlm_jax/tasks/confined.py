"""Limits itself, then runs the program on standard input: what `tasks.sandbox` starts, by this file's path.

It imports the standard library alone. Arguments: seconds of processor time, bytes of memory, of a file, processes.
"""

import ctypes
import os
import resource
import sys

_NEW_USER, _NEW_NETWORK = 0x10000000, 0x40000000


def confine(seconds: int, memory: int, file_size: int, processes: int) -> None:
    """The kernel's limits on this process and what it starts."""
    _leave_the_network()
    for what, most in ((resource.RLIMIT_CPU, seconds), (resource.RLIMIT_AS, memory),
                       (resource.RLIMIT_FSIZE, file_size), (resource.RLIMIT_CORE, 0)):
        resource.setrlimit(what, (most, most))
    if os.getuid():  # root is not counted
        running = len([name for name in os.listdir("/proc") if name.isdigit()]) if os.path.isdir("/proc") else 256
        resource.setrlimit(resource.RLIMIT_NPROC, (running + processes, running + processes))


def _leave_the_network() -> None:
    """Linux with unprivileged namespaces, or root; elsewhere nothing changes."""
    if sys.platform.startswith("linux"):
        library = ctypes.CDLL(None)
        if library.unshare(_NEW_NETWORK) != 0:
            library.unshare(_NEW_USER | _NEW_NETWORK)


if __name__ == "__main__":
    program = sys.stdin.buffer.read()
    confine(*map(int, sys.argv[1:5]))
    sys.argv[1:] = []
    exec(compile(program, "answer", "exec"), {"__name__": "__main__"})
