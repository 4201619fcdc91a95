"""A digest manifest of a directory, written last: it tells a whole directory from an unfinished or a damaged one.

orbax restores flipped bits without a complaint; the SHA-256 of every file, kept beside the files, does not.
"""

import hashlib
import json
import os
from pathlib import Path

from mdlm_jax.training import places

NAME = "manifest.json"
_CHUNK = 1 << 22


def write_atomically(path: Path | str, data: bytes | str) -> None:
    """Replaces ``path`` by ``data`` so that a crash leaves the old content or the new one, never a part of it."""
    places.write_whole(places.place(path), data.encode() if isinstance(data, str) else data)


def write(directory: Path | str) -> None:
    """Flushes every file below ``directory`` to the disk and records its size and SHA-256 in ``manifest.json``.

    The manifest appears at once and only after everything it lists is on the disk. What is in a bucket is read back.
    """
    directory, entries = places.place(directory), {}
    folders: set[Path] = set()
    root = len(directory.parts)
    for path in places.files(directory):
        relative = path.relative_to(directory).as_posix()
        if relative not in (NAME, NAME + ".tmp"):
            entries[relative] = _describe(path, flush=not places.in_bucket(path))
        folders.update(folder for folder in path.parents if len(folder.parts) >= root)
    for folder in folders:
        places.flush_names(folder)
    write_atomically(directory / NAME, _render(entries))


def verify(directory: Path | str, digests: bool = True) -> list[str]:
    """What is wrong with ``directory``, one sentence each; an empty list when every listed file is as it was written.

    Files that the manifest does not list are no problem: nothing reads them.

    Args:
      directory: a directory that ``write`` was called on.
      digests: False compares sizes only, which does not read the files.
    """
    directory = places.place(directory)
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
    digest, size = hashlib.sha256(), 0
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
            size += len(chunk)
        if flush:
            os.fsync(file.fileno())
    return {"bytes": size, "sha256": digest.hexdigest()}


def _compare(path: Path, relative: str, entry: dict, digests: bool) -> str | None:
    if not path.is_file():
        return f"missing file {relative}"
    try:
        size = places.size(path)
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
