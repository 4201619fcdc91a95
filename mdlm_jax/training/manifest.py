"""A digest manifest of a directory, written last: it tells a whole directory from an unfinished or a damaged one.

orbax restores flipped bits without a complaint; the SHA-256 of every file, kept beside the files, does not.
"""

import hashlib
import json
import os
from pathlib import Path

NAME = "manifest.json"


def write_atomically(path: Path | str, data: bytes | str) -> None:
    """Replaces ``path`` by ``data`` so that a crash leaves the old content or the new one, never a part of it."""
    path = Path(path)
    temporary = path.with_name(path.name + ".tmp")
    with open(temporary, "wb") as file:
        file.write(data.encode() if isinstance(data, str) else data)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)
    flush_directory(path.parent)


def flush_directory(directory: Path | str) -> None:
    """Makes the names in ``directory`` survive a power cut (a rename is durable only after this)."""
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write(directory: Path | str) -> None:
    """Flushes every file below ``directory`` to the disk and records its size and SHA-256 in ``manifest.json``.

    The manifest appears at once and only after everything it lists is on the disk.
    """
    directory = Path(directory)
    entries = {}
    for folder, _, names in os.walk(directory):
        for name in names:
            path = Path(folder, name)
            relative = path.relative_to(directory).as_posix()
            if relative not in (NAME, NAME + ".tmp"):
                entries[relative] = _describe(path, flush=True)
        flush_directory(folder)
    write_atomically(directory / NAME, _render(entries))


def verify(directory: Path | str, digests: bool = True) -> list[str]:
    """What is wrong with ``directory``, one sentence each; an empty list when every listed file is as it was written.

    Files that the manifest does not list are no problem: nothing reads them.

    Args:
      directory: a directory that ``write`` was called on.
      digests: False compares sizes only, which does not read the files.
    """
    directory = Path(directory)
    if not directory.is_dir():
        return [f"{directory} is not a directory"]
    if not (directory / NAME).is_file():
        return [f"no {NAME}: the save never finished"]
    try:
        entries = _read_entries(directory / NAME)
    except OSError as error:
        return [f"cannot read {NAME}: {error.strerror}"]
    if entries is None:
        return [f"{NAME} is damaged"]
    problems = (_compare(directory / relative, relative, entry, digests) for relative, entry in entries.items())
    return [problem for problem in problems if problem]


def _describe(path: Path, flush: bool = False) -> dict:
    with open(path, "rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
        size = file.tell()
        if flush:
            os.fsync(file.fileno())
    return {"bytes": size, "sha256": digest}


def _compare(path: Path, relative: str, entry: dict, digests: bool) -> str | None:
    if not path.is_file():
        return f"missing file {relative}"
    try:
        size = path.stat().st_size
        if size != entry["bytes"]:
            return f"size of {relative} is {size}, {NAME} says {entry['bytes']}"
        if digests and _describe(path) != entry:
            return f"digest of {relative} differs from {NAME}"
    except OSError as error:
        return f"cannot read {relative}: {error.strerror}"
    return None


def _render(entries: dict) -> bytes:
    """The one spelling of a manifest; it carries its own digest, so no bit of it can change unnoticed."""
    listing = json.dumps(entries, sort_keys=True)
    whole = {"version": 1, "sha256": hashlib.sha256(listing.encode()).hexdigest(), "files": entries}
    return (json.dumps(whole, indent=1, sort_keys=True) + "\n").encode()


def _read_entries(path: Path) -> dict | None:
    """The entries of a manifest, or None when it is not, byte for byte, what ``_render`` writes."""
    raw = path.read_bytes()
    try:
        entries = json.loads(raw)["files"]
        return entries if _render(entries) == raw else None
    except (ValueError, KeyError, TypeError):  # ValueError covers invalid JSON and invalid UTF-8
        return None
