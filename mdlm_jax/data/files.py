"""Files that are whole or not there at all, their digests, and files that one process holds."""

import contextlib
import errno
import hashlib
import os
import socket
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import TextIO


class NoLocks(OSError):
    """The file system has no locks."""


_LOCKLESS = (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL)


def sha256_of(path: Path) -> str:
    """Hex sha256 of a file's content."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextlib.contextmanager
def appearing(path: Path, scratch: Path) -> Iterator[Path]:
    """A name in ``scratch`` to write to; when the block succeeds the file is flushed to the disk and moved to ``path``.

    ``scratch`` must be on the file system of ``path``. A block that fails, or a process that dies, leaves ``path`` as
    it was.
    """
    temporary = scratch / f"{path.name}.{os.getpid()}.tmp"
    try:
        yield temporary
        with open(temporary, "rb") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """The file appears at once, whoever else writes it, on this machine or another."""
    temporary = path.with_name(f"{path.name}.{uuid.uuid4().hex}.tmp")
    try:
        with open(temporary, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    flush_names(path.parent)


def flush_names(folder: Path) -> None:
    """Makes the names in a folder survive a power cut: a rename is durable only after this."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_whole(path: Path, text: str, scratch: Path | None = None) -> None:
    """Writes a text file that appears at once."""
    with appearing(path, scratch or path.parent) as temporary:
        temporary.write_text(text, encoding="utf-8")


def take(path: Path) -> TextIO | None:
    """A file that this process alone holds until it is closed; the lock is the operating system's, and goes with the
    process, however that ends. None on Windows.

    Raises:
      BlockingIOError: another holds it; the message says who.
      NoLocks: the file system has none, as those of buckets and of some network drives.
      OSError: the file cannot be opened or written.
    """
    try:
        import fcntl
    except ImportError:
        return None
    file = open(path, "a+", encoding="utf-8")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        with file:
            file.seek(0)
            raise BlockingIOError(file.read().strip() or "another process") from None
    except OSError as error:
        file.close()
        raise NoLocks(error.errno, error.strerror) if error.errno in _LOCKLESS else error from None
    try:
        file.truncate(0)
        file.write(f"process {os.getpid()} on {socket.gethostname()}\n")
        file.flush()
    except OSError:
        file.close()
        raise
    return file
