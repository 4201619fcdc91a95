"""A report of what stopped a run, for whoever looks at it in the morning."""

import contextlib
import datetime
import itertools
import platform
import sys
import traceback
from pathlib import Path
from typing import TextIO

from mdlm_jax.config import ConfigError
from mdlm_jax.errors import Preempted


@contextlib.contextmanager
def crash_report(workdir: Path):
    """Writes ``crash-N.txt`` into the workdir for an exception that is no mistake of the user's, and lets it pass."""
    try:
        yield
    except (ConfigError, Preempted, KeyboardInterrupt):
        raise
    except BaseException as error:
        _write(workdir, error)
        raise


def _write(workdir: Path, error: BaseException) -> None:
    import jax

    text = "\n".join((
        f"{datetime.datetime.now(datetime.UTC).isoformat(timespec='seconds')}  {type(error).__name__}: {error}",
        f"command    {' '.join(sys.argv)}",
        f"python     {platform.python_version()}, jax {jax.__version__} on {jax.default_backend()}, "
        f"process {jax.process_index()} of {jax.process_count()}, {jax.local_device_count()} devices here",
        *(f"device     {device}: {_memory(device)}" for device in jax.local_devices()[:1]),
        "", *traceback.format_exception(error),
    ))
    with contextlib.suppress(OSError), _new(workdir) as file:  # a full disk may be what stopped it
        file.write(text)
        print(f"crash report: {file.name}", file=sys.stderr)


def _new(workdir: Path) -> TextIO:
    """The next crash-N.txt, made here: processes of a job that crash together get one each."""
    for number in itertools.count(1):
        with contextlib.suppress(FileExistsError):
            return open(workdir / f"crash-{number}.txt", "x", encoding="utf-8")
    raise AssertionError("there is always a next number")


def _memory(device) -> str:
    stats = device.memory_stats() or {}
    used = {name: stats[name] for name in ("bytes_in_use", "peak_bytes_in_use", "bytes_limit") if name in stats}
    return ", ".join(f"{name} {size / 2**30:.2f} GiB" for name, size in used.items()) or "tells no memory"
