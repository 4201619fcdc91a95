"""A small preparation for tests: sources of every kind, and the rows of a folder by their content."""

import gzip
import json
from pathlib import Path

from mdlm_jax.data.preparation import Preparation
from mdlm_jax.data.prepare import prepare

LENGTH = 32


def paragraphs(count, seed=0):
    return [f"paragraph {i} of book {seed} says é and {i * i + seed} more\n" * (1 + i % 5) + "\n" for i in range(count)]


def write_sources(root: Path) -> list[str]:
    """A book, a folder, lines, and packed lines; their paths."""
    (root / "book.txt").write_text("".join(paragraphs(160)))
    (root / "folder").mkdir()
    for i, text in enumerate(paragraphs(40, 1)):
        (root / "folder" / f"{i:02d}.txt").write_text(text * 3)
    lines = [json.dumps({"text": text}) for text in paragraphs(60, 2)]
    (root / "lines.jsonl").write_text("\n".join(lines) + "\n")
    other = "\n".join(lines).replace("book 2", "book 3")
    (root / "packed.jsonl.gz").write_bytes(gzip.compress(other.encode(), mtime=0))
    return [str(root / name) for name in ("book.txt", "folder", "lines.jsonl", "packed.jsonl.gz")]


def silent(name, done, total):
    """A report that shows nothing."""


def make(out: Path, *sources, workers=1, **fields) -> dict:
    fields = {"length": LENGTH} | fields
    return prepare(Preparation(tuple(map(str, sources)), **fields), out, workers, "test", silent)


def content(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
