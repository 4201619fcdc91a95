"""Where a run's files are: in a folder that all processes see, or in a bucket, ``gs://BUCKET/NAME``.

The one file that knows the difference. A folder is a ``pathlib.Path``; what is in a bucket is an ``etils.epath.Path``,
which orbax brings along and which does the same by the same names, where a bucket can do it. It cannot rename a folder,
and has no folders but those that a file's name implies; one file, though, is there whole or not at all.
"""

import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mdlm_jax.config import ConfigError

_BUCKET = "gs://"
_STEP = re.compile(r"\d{8,}")
_LEFTOVER = re.compile(r"\d{8,}\.(unfinished|removed)")


def place(path: Path | str) -> Path:
    """The path of a folder, its ``~`` opened and made absolute, or of a ``gs://`` address.

    Raises:
      ConfigError: an address, and nothing is installed that reads it.
    """
    if not in_bucket(path):
        return Path(path).expanduser().absolute()
    import fsspec
    from etils import epath

    try:
        fsspec.get_filesystem_class("gcs")
    except ImportError:
        raise ConfigError(f"{path}: reading buckets needs gcsfs; pip install 'mdlm_jax[gcs]'") from None
    fsspec.config.conf.setdefault("gcs", {})["use_listings_cache"] = False  # tensorstore and others write there too
    return epath.Path(path)


def in_bucket(path: Path | str) -> bool:
    return str(path).startswith(_BUCKET)


def size(file: Path) -> int:
    """Bytes."""
    stat: Any = file.stat()
    return stat.length if in_bucket(file) else stat.st_size


def files(folder: Path) -> Iterator[Path]:
    """Every file below, at any depth."""
    for path in sorted(folder.iterdir()):
        if path.is_dir():
            yield from files(path)
        else:
            yield path


def write_whole(file: Path, data: bytes) -> None:
    """Replaces ``file`` so that a crash leaves the old content or the new one, never a part of it."""
    if in_bucket(file):
        file.write_bytes(data)
        return
    temporary = file.with_name(file.name + ".tmp")
    with open(temporary, "wb") as opened:
        opened.write(data)
        opened.flush()
        os.fsync(opened.fileno())
    os.replace(temporary, file)
    flush_names(file.parent)


def flush_names(folder: Path) -> None:
    """Makes the names in a folder survive a power cut (a rename is durable only after this)."""
    if in_bucket(folder):
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


class Steps:
    """The folders of a run's steps on a file system: built under another name, renamed when whole, renamed to go."""

    def __init__(self, directory: Path):
        self.directory = directory

    def numbers(self) -> list[int]:
        """Those that have a folder, oldest first; whether they are whole is not looked at."""
        if not self.directory.is_dir():
            return []
        return sorted(int(p.name) for p in self.directory.iterdir() if _STEP.fullmatch(p.name) and p.is_dir())

    def path(self, step: int) -> Path:
        return self.directory / f"{step:08d}"

    def building(self, step: int) -> Path:
        """Where a step is built."""
        return self.directory / f"{step:08d}.unfinished"

    def begin(self, step: int) -> None:
        """Room to build in, and nothing left of builds and removals that were interrupted."""
        self.directory.mkdir(parents=True, exist_ok=True)
        for path in self.directory.iterdir():
            if _LEFTOVER.fullmatch(path.name) and path.is_dir():
                shutil.rmtree(path)
        self.building(step).mkdir()

    def publish(self, step: int) -> None:
        """A step whose manifest is written takes its name; of the same step only a damaged one may be there."""
        if self.path(step).exists():
            self.remove(step)
        os.rename(self.building(step), self.path(step))
        flush_names(self.directory)

    def remove(self, step: int) -> None:
        """Under another name, so that a kill leaves a leftover and never half a step."""
        removed = self.directory / f"{step:08d}.removed"
        os.rename(self.path(step), removed)
        shutil.rmtree(removed)


class MarkedSteps(Steps):
    """The same in a bucket: built in place, and a step from the moment its last file, the ``marker``, is there.

    The marker is the first to go, so that half a step is never one.
    """

    def __init__(self, directory: Path, marker: str):
        super().__init__(directory)
        self._marker = marker

    def numbers(self) -> list[int]:
        return [step for step in super().numbers() if (self.path(step) / self._marker).exists()]

    def building(self, step: int) -> Path:
        return self.path(step)

    def begin(self, step: int) -> None:
        whole = self.numbers()
        for other in super().numbers():
            if other not in whole or other == step:  # of the same step only a damaged one may be there
                self.remove(other)

    def publish(self, step: int) -> None:
        """Writing the marker was it."""

    def remove(self, step: int) -> None:
        folder: Any = self.path(step)  # an epath.Path, which can do this
        (folder / self._marker).unlink(missing_ok=True)
        folder.rmtree(missing_ok=True)


def steps(directory: Path, marker: str) -> Steps:
    """Those of a run; ``marker`` is the file of a step that is written last."""
    return MarkedSteps(directory, marker) if in_bucket(directory) else Steps(directory)
