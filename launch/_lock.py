"""One run at a time in a workdir: the lock is the operating system's, and goes with the process, however that ends."""

import contextlib
import os
import socket
from collections.abc import Iterator
from pathlib import Path

from mdlm_jax.config import ConfigError

NAME = ".lock"


@contextlib.contextmanager
def held(workdir: Path) -> Iterator[None]:
    """Raises ConfigError where another process holds it. Without effect where the file system has no locks (of buckets,
    and of some network drives, which is said), and on Windows."""
    try:
        import fcntl
    except ImportError:
        yield
        return
    with open(workdir / NAME, "a+", encoding="utf-8") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            raise ConfigError(f"--workdir={workdir}: is in use by {file.read().strip() or 'another process'}; wait for "
                              "it, stop it, or choose another --workdir") from None
        except OSError as error:
            print(f"note     {workdir} cannot be locked ({error.strerror}): start no second run in it", flush=True)
        file.truncate(0)
        file.write(f"process {os.getpid()} on {socket.gethostname()}\n")
        file.flush()
        yield
