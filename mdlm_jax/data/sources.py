"""Where the text comes from: named documents with a fixed split into ``train`` and ``valid``.

``open_source`` checks that the source exists and returns a ``Source``; its documents are read as they are iterated, so
a pass costs one reading and no memory. A document is held out by a hash of its name, so the split neither moves with
the order nor with the seed, nor when documents are added.
"""

import abc
import dataclasses
import gzip
import hashlib
import json
import os
import sys
import sysconfig
from collections.abc import Callable, Iterator
from pathlib import Path

from mdlm_jax.config import ConfigError, DataConfig

BLOCK_CHARS = 16 * 1024  # a text file is cut into documents of about this size
_NOT_LIBRARY = {"test", "tests", "idle_test", "lib2to3", "site-packages", "dist-packages", "__pycache__",
                "encodings", "pydoc_data"}  # the last two are generated tables and one 750 kB file of help text


@dataclasses.dataclass(frozen=True)
class Document:
    """One text. Its name is unique in its source and decides its split."""

    name: str
    text: str


def held_out(name: str, valid_fraction: float) -> bool:
    """Whether the document belongs to ``valid``: the first 64 bits of sha256(name), as a fraction, lie below."""
    digest = hashlib.sha256(name.encode("utf-8", "surrogateescape")).digest()
    return int.from_bytes(digest[:8], "big") < valid_fraction * 2.0**64


class Source(abc.ABC):
    """Documents in a fixed order, in two disjoint splits.

    Attributes:
      label: what the user wrote as ``data.source``.
      skipped: names of files passed over so far because they are not UTF-8 text.
    """

    def __init__(self, label: str, valid_fraction: float):
        self.label, self.valid_fraction = label, valid_fraction
        self.skipped: set[str] = set()

    @abc.abstractmethod
    def read(self, wanted: Callable[[str], bool]) -> Iterator[Document]:
        """Every document whose name is wanted, in order; ``wanted`` is asked once for each name."""

    def documents(self, split: str) -> Iterator[Document]:
        """The documents of ``train`` or ``valid`` that hold any text; a fresh pass each time.

        Raises:
          ConfigError: at the end of a pass that met none.
        """
        side = {"train": False, "valid": True}[split]
        seen = found = 0

        def wanted(name: str) -> bool:
            nonlocal seen
            seen += 1
            return held_out(name, self.valid_fraction) == side

        for document in self.read(wanted):
            if document.text:
                found += 1
                yield document
        if not found:
            raise ConfigError(self._empty(split, seen))

    def _empty(self, split: str, seen: int) -> str:
        verb = "raise" if split == "valid" else "lower"
        skipped = f", {len(self.skipped)} of them skipped because they are not UTF-8" if self.skipped else ""
        return (f"data.source={self.label!r}: its {split} split holds no text ({seen} documents in all{skipped}); "
                f"{verb} data.valid_fraction={self.valid_fraction}, or give more documents: the files of a folder, the "
                f"lines of a .jsonl, or the blocks of {BLOCK_CHARS // 1024}k characters that one text file is cut into")


class FileTree(Source):
    """A folder: each UTF-8 file without NUL bytes is a document named by its relative path, in sorted order."""

    def __init__(self, label: str, valid_fraction: float, root: Path, names: list[str]):
        super().__init__(label, valid_fraction)
        self.root, self.names = root, sorted(names)
        if not self.names:
            raise ConfigError(f"data.source={label!r}: there is no file to read under {root}; choose another source")

    def read(self, wanted):
        for name in self.names:
            if wanted(name):
                try:
                    text = (self.root / name).read_bytes().decode()
                except UnicodeDecodeError:
                    text = "\0"
                if "\0" in text:
                    self.skipped.add(name)
                else:
                    yield Document(name, text)


class TextFile(Source):
    """One UTF-8 file, cut into blocks of about 16k characters that end at a blank line where there is one."""

    def __init__(self, label: str, valid_fraction: float, path: Path):
        super().__init__(label, valid_fraction)
        self.path = path

    def read(self, wanted):
        for number, text in enumerate(self._blocks()):
            name = f"{self.path.name}#{number}"
            if wanted(name):
                yield Document(name, text)

    def _blocks(self) -> Iterator[str]:
        """The file in order: joined, the blocks are the file, line endings included."""
        lines, size = [], 0
        with open(self.path, encoding="utf-8", newline="") as file:
            while line := self._line(file):
                lines.append(line)
                size += len(line)
                if size >= 4 * BLOCK_CHARS or (size >= BLOCK_CHARS and not line.strip()):
                    yield "".join(lines)
                    lines, size = [], 0
        if lines:
            yield "".join(lines)

    def _line(self, file) -> str:
        try:
            return file.readline(BLOCK_CHARS)
        except UnicodeDecodeError as error:
            raise ConfigError(f"data.source={self.label!r}: is not UTF-8 text ({error.reason} near byte "
                              f"{file.buffer.tell()}); convert it to UTF-8") from None


class JsonLines(Source):
    """A ``.jsonl`` or ``.jsonl.gz`` file: one object a line, its text under ``text_field``; blank lines are skipped."""

    def __init__(self, label: str, valid_fraction: float, path: Path, text_field: str):
        super().__init__(label, valid_fraction)
        self.path, self.text_field = path, text_field
        next(self.read(lambda name: True), None)  # a wrong field should not wait for the first pass

    def read(self, wanted):
        opener = gzip.open if self.path.suffix == ".gz" else open
        with opener(self.path, "rb") as file:
            try:
                for number, line in enumerate(file, 1):
                    name = f"{self.path.name}#{number}"
                    if line.strip() and wanted(name):
                        yield Document(name, self._text(number, line))
            except (gzip.BadGzipFile, EOFError) as error:
                raise ConfigError(f"data.source={self.label!r}: is no whole gzip file ({error}); renew it") from None

    def _text(self, number: int, line: bytes) -> str:
        where = f"data.source={self.label!r}, line {number}"
        try:
            record = json.loads(line)
        except ValueError as error:  # JSONDecodeError and UnicodeDecodeError are both
            raise ConfigError(f"{where}: is not JSON ({error}); one object a line is expected") from None
        if not isinstance(record, dict):
            raise ConfigError(f"{where}: is a {type(record).__name__}, not an object; one object a line is expected")
        if self.text_field not in record:
            raise ConfigError(f"data.text_field={self.text_field!r}: {where} has no such field; "
                              f"its fields are {', '.join(record)}")
        return checked_text(record[self.text_field], where, self.text_field)


def checked_text(value, where: str, field: str) -> str:
    """``value`` as str that can be written as UTF-8; bytes are decoded.

    Raises:
      ConfigError: it is neither str nor bytes, or not valid Unicode.
    """
    if not isinstance(value, str | bytes):
        raise ConfigError(f"data.text_field={field!r}: {where} holds {type(value).__name__} there, not text; "
                          "name a text field")
    try:
        text = value.decode() if isinstance(value, bytes) else value
        text.encode()
    except UnicodeError as error:
        raise ConfigError(f"{where}: field {field!r} is not valid Unicode ({error}); repair or remove it") from None
    return text


def _folder_names(root: Path, keep: Callable[[str], bool]) -> list[str]:
    """Relative names of files with forward slashes; hidden ones, links to folders and broken links are passed over."""
    names = []
    for folder, subfolders, files in os.walk(root):
        subfolders[:] = [name for name in subfolders if not name.startswith(".")]
        relative = Path(folder).relative_to(root)
        names += [(relative / name).as_posix() for name in files if not name.startswith(".")]
    return [name for name in names if keep(name) and (root / name).is_file()]


def _in_library(name: str) -> bool:
    parts = Path(name).parts
    module = parts[0].removesuffix(".py")
    return (name.endswith(".py") and module in sys.stdlib_module_names and not module.startswith("_sysconfigdata")
            and not _NOT_LIBRARY.intersection(parts))


def _standard_library(config: DataConfig) -> Source:
    root = Path(sysconfig.get_path("stdlib"))
    names = _folder_names(root, _in_library) if root.is_dir() else []
    if not names:
        raise ConfigError(f"data.source='stdlib': this Python keeps no .py files in {root}; name a file or a folder")
    return FileTree("stdlib", config.valid_fraction, root, names)


def open_source(config: DataConfig) -> Source:
    """The text source that ``config.source`` names (``language:NAME`` has no text: see ``language_rows``).

    Raises:
      ConfigError: it does not exist, is empty, or lacks the text field.
    """
    label, fraction = config.source, config.valid_fraction
    if label == "stdlib":
        return _standard_library(config)
    if label.startswith("tfds:"):
        from mdlm_jax.data.tfds_source import TfdsSource

        return TfdsSource(label, fraction, config.data_dir, config.text_field)
    path = Path(label).expanduser()
    if path.is_dir():
        return FileTree(label, fraction, path, _folder_names(path, lambda name: True))
    if not path.is_file():
        raise ConfigError(f"data.source={label!r}: there is no such file or folder; choose an existing one, stdlib, "
                          "tfds:NAME[/CONFIG] or language:NAME")
    if path.stat().st_size == 0:
        raise ConfigError(f"data.source={label!r}: the file is empty; choose another")
    if path.name.endswith((".jsonl", ".jsonl.gz")):
        return JsonLines(label, fraction, path, config.text_field)
    return TextFile(label, fraction, path)
