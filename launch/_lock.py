"""One run at a time in a workdir."""

import contextlib
from collections.abc import Iterator
from pathlib import Path

from mdlm_jax.config import ConfigError
from mdlm_jax.data.files import NoLocks, take

NAME = ".lock"


@contextlib.contextmanager
def held(workdir: Path) -> Iterator[None]:
    """Raises ConfigError where another process holds it. Without effect where the file system has no locks (of buckets,
    and of some network drives, which is said), and on Windows."""
    try:
        file = take(workdir / NAME)
    except BlockingIOError as error:
        raise ConfigError(f"--workdir={workdir}: is in use by {error}; wait for it, stop it, or choose another "
                          "--workdir") from None
    except NoLocks as error:
        print(f"note     {workdir} cannot be locked ({error.strerror}): start no second run in it", flush=True)
        file = None
    with file or contextlib.nullcontext():
        yield
