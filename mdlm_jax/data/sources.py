"""Where the text comes from: named documents with a fixed split into ``train`` and ``valid``.

``open_source`` returns a ``Source``; its documents are read as they are iterated, so a pass costs one reading and no
memory. A document is held out by a hash of its name, so the split neither moves with the order nor with the seed, nor
when documents are added. Only where that would hold out next to nothing are more held out, by their hashes (``Split``).
With ``valid_last`` the last so many are, however they are called.
"""

import abc
import collections
import dataclasses
import functools
import gzip
import json
import os
import sys
import sysconfig
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TextIO

from mdlm_jax.config import ConfigError, DataConfig
from mdlm_jax.config.data import LINES, RECORDS
from mdlm_jax.data.chat import Piece, exchanges
from mdlm_jax.data.splits import HeldOut, Split, place

_LARGEST_BLOCK, _SMALLEST_BLOCK, _BLOCKS = 16 * 1024, 512, 32  # a text file is cut into documents of about this size
_NOT_LIBRARY = {"test", "tests", "idle_test", "lib2to3", "site-packages", "dist-packages", "__pycache__",
                "encodings", "pydoc_data"}  # the last two are generated tables and one 750 kB file of help text

_COMPRESSED = (".gz", ".zst", ".xz", ".bz2", ".zip", ".tar", ".tgz", ".7z", ".lz4")


@dataclasses.dataclass(frozen=True)
class Document:
    """One text, and what it answers where there is that. Its name decides its split.

    Attributes:
      prompt: what it answers; of a conversation ``pieces`` (`data.chat`), and then ``end`` is behind the text.
    """

    name: str
    text: str
    prompt: str = ""
    pieces: tuple[Piece, ...] = ()
    end: str = ""


class Source(abc.ABC):
    """Documents in a fixed order, in two disjoint splits.

    Attributes:
      label: what the user wrote as ``data.source``.
      skipped: names of files passed over so far because they are not UTF-8 text.
    """

    def __init__(self, label: str, split: Split):
        self.label, self.split = label, split
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
        held, seen, found = self.held, 0, 0

        def wanted(name: str) -> bool:
            nonlocal seen
            seen += 1
            return held(name) == side

        for document in self.read(wanted):
            if document.text:
                found += 1
                yield document
        if not found:
            raise ConfigError(self._empty(split, seen))

    @functools.cached_property
    def held(self) -> HeldOut:
        """Which documents are held out, by their names."""
        return HeldOut(names=self.last_names(self.split.last)) if self.split.last else HeldOut(limit=self._limit)

    def last_names(self, count: int) -> frozenset[str]:
        """The names of the last ``count`` documents, or of all; costs a pass that decodes no text."""
        names: collections.deque[str] = collections.deque(maxlen=count)

        def noted(name: str) -> bool:
            names.append(name)
            return False

        collections.deque(self.read(noted), maxlen=0)
        return frozenset(names)

    @functools.cached_property
    def _limit(self) -> float:
        """The place below which documents are held out. A small source is read once for it, a large one hardly."""
        enough = 0
        for document in self.read(lambda name: place(name) < self.split.usual_limit):
            enough += len(document.text.encode())
            if enough >= self.split.least_bytes:
                return self.split.usual_limit
        every = self.read(lambda name: True)
        return self.split.limit({document.name: len(document.text.encode()) for document in every if document.text})

    def _empty(self, split: str, seen: int) -> str:
        verb = "raise" if split == "valid" else "lower"
        how = f"last={self.split.last}" if self.split.last else f"fraction={self.split.valid_fraction}"
        skipped = f", {len(self.skipped)} of them skipped because they are not UTF-8" if self.skipped else ""
        return (f"data.source={self.label!r}: its {split} split holds no text ({seen} documents in all{skipped}); "
                f"{verb} data.valid_{how}, or give more documents: files of a folder, "
                f"lines of a .jsonl, or more text in one file, which is cut every {_SMALLEST_BLOCK} characters or more")


class FileTree(Source):
    """A folder: each UTF-8 file without NUL bytes is a document named by its relative path, in sorted order."""

    def __init__(self, label: str, split: Split, root: Path, names: list[str]):
        super().__init__(label, split)
        self.root, self.names = root, sorted(names)
        if not self.names:
            raise ConfigError(f"data.source={label!r}: there is no file to read under {root}; choose another source")

    def read(self, wanted):
        return self.read_names(self.names, wanted)

    def read_names(self, names: Iterable[str], wanted: Callable[[str], bool]) -> Iterator[Document]:
        """The documents of some of the files."""
        for name in names:
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
    """One UTF-8 file, cut into blocks that end at a blank line where there is one: of about 16k characters, in a file
    below half a megabyte of about a 32nd of it."""

    def __init__(self, label: str, split: Split, path: Path):
        super().__init__(label, split)
        self.path = path
        self.block = min(_LARGEST_BLOCK, max(_SMALLEST_BLOCK, path.stat().st_size // _BLOCKS))

    def read(self, wanted):
        with open(self.path, encoding="utf-8", newline="") as file:
            yield from self.read_open(file, 0, wanted)

    def read_open(self, file: TextIO, first: int, wanted: Callable[[str], bool]) -> Iterator[Document]:
        """The documents of an open file that begins with the one of number ``first``."""
        for number, text in enumerate(self.blocks(file), first):
            name = f"{self.path.name}#{number}"
            if wanted(name):
                yield Document(name, text)

    def blocks(self, file: TextIO) -> Iterator[str]:
        """The rest of the file in order: joined, the blocks are the file, line endings included."""
        lines, size = [], 0
        while line := self._line(file):
            lines.append(line)
            size += len(line)
            if size >= 4 * self.block or (size >= self.block and not line.strip()):
                yield "".join(lines)
                lines, size = [], 0
        if lines:
            yield "".join(lines)

    def _line(self, file) -> str:
        try:
            return file.readline(self.block)
        except UnicodeDecodeError as error:
            raise ConfigError(f"data.source={self.label!r}: is not UTF-8 text ({error.reason} near byte "
                              f"{file.buffer.tell()}); convert it to UTF-8") from None


class JsonLines(Source):
    """A ``.jsonl``, ``.jsonl.gz`` or ``.json.gz`` file: one object a line, its text under ``text_field``; blank lines
    are skipped.

    ``prompt_field``: where the prompt is that the text answers; "" for none. ``messages_field``: where a conversation
    is, in ``chat_template``; each of its answers is a document.
    """

    def __init__(self, label: str, split: Split, path: Path, text_field: str, prompt_field: str = "",
                 messages_field: str = "", chat_template: str = ""):
        super().__init__(label, split)
        self.path, self.text_field, self.prompt_field = path, text_field, prompt_field
        self.messages_field, self.chat_template = messages_field, chat_template
        next(self.read(lambda name: True), None)  # a wrong field should not wait for the first pass

    def read(self, wanted):
        opener = gzip.open if self.path.suffix == ".gz" else open
        with opener(self.path, "rb") as file:
            try:
                yield from self.read_lines(file, 1, wanted)
            except (gzip.BadGzipFile, EOFError) as error:
                raise ConfigError(f"data.source={self.label!r}: is no whole gzip file ({error}); renew it") from None

    def read_lines(self, lines: Iterable[bytes], first: int, wanted: Callable[[str], bool]) -> Iterator[Document]:
        """The documents of lines of which the first has the number ``first``, counted from 1."""
        for number, line in enumerate(lines, first):
            name = f"{self.path.name}#{number}"
            if line.strip() and wanted(name):
                yield from self._documents(name, number, line)

    def _documents(self, name: str, number: int, line: bytes) -> Iterator[Document]:
        if not self.messages_field:
            text, *prompt = self._texts(number, line)
            yield Document(name, text, "".join(prompt))
            return
        (messages,) = self._values(number, line, {"messages_field": self.messages_field})
        where = f"data.source={self.label!r}, line {number}, {self.messages_field}"
        for one in exchanges(messages, self.chat_template, where):
            yield Document(name, one.answer, "", one.prompt, one.end)

    def _texts(self, number: int, line: bytes) -> list[str]:
        """The text, and the prompt where one is asked for."""
        wanted = {"text_field": self.text_field} | ({"prompt_field": self.prompt_field} if self.prompt_field else {})
        where = f"data.source={self.label!r}, line {number}"
        return [checked_text(value, where, field, name) for value, (name, field) in
                zip(self._values(number, line, wanted), wanted.items(), strict=True)]

    def _values(self, number: int, line: bytes, wanted: dict[str, str]) -> list:
        """Of the fields of an object."""
        where = f"data.source={self.label!r}, line {number}"
        try:
            record = json.loads(line)
        except ValueError as error:  # JSONDecodeError and UnicodeDecodeError are both
            raise ConfigError(f"{where}: is not JSON ({error}); write one object a line") from None
        if not isinstance(record, dict):
            raise ConfigError(f"{where}: is a {type(record).__name__}, not an object; write one object a line")
        for name, field in wanted.items():
            if field not in record:
                raise ConfigError(f"data.{name}={field!r}: {where} has no such field; "
                                  f"its fields are {', '.join(record)}")
        return [record[field] for field in wanted.values()]


def checked_text(value, where: str, field: str, option: str = "text_field") -> str:
    """``value`` as str that can be written as UTF-8; bytes are decoded.

    Raises:
      ConfigError: it is neither str nor bytes, or not valid Unicode.
    """
    if not isinstance(value, str | bytes):
        found = "null" if value is None else type(value).__name__
        raise ConfigError(f"data.{option}={field!r}: {where} holds {found} there, not text; name a text field, or "
                          "repair the line")
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
    return FileTree("stdlib", Split.of(config), root, names)


def open_source(config: DataConfig) -> Source:
    """The text source that ``config.source`` names (``language:NAME`` has no text: see ``language_rows``).

    Raises:
      ConfigError: it does not exist, is empty, or lacks the text field.
    """
    label, split = config.source, Split.of(config)
    if label == "stdlib":
        return _standard_library(config)
    if label.startswith("tfds:"):
        from mdlm_jax.data.tfds_source import TfdsSource

        return TfdsSource(label, split, config.data_dir, config.text_field)
    if "://" in label:
        raise ConfigError(f"data.source={label!r}: text is not read from buckets or addresses; copy it to this "
                          "machine, or mount the bucket, and give the path")
    path = Path(label).expanduser()
    if path.is_dir():
        _check_folder(label, path)
        return FileTree(label, split, path, _folder_names(path, lambda name: True))
    if not path.is_file():
        raise ConfigError(f"data.source={label!r}: there is no such file or folder; choose an existing one, stdlib, "
                          "tfds:NAME[/CONFIG], language:NAME, prepared:DIR, mixture:WEIGHT*DIR,..., digits, codes:PATH "
                          "or trajectories:DIR")
    if path.stat().st_size == 0:
        raise ConfigError(f"data.source={label!r}: the file is empty; choose another")
    if path.name.endswith(LINES):
        return JsonLines(label, split, path, config.text_field, config.prompt_field, config.messages_field,
                         config.chat_template)
    if path.suffix == ".parquet":
        from mdlm_jax.data.parquet_source import ParquetFile

        return ParquetFile(label, split, path, config.text_field)
    _check_packed(label, path.name)
    return TextFile(label, split, path)


def record_files(folder: Path) -> tuple[list[str], list[str]]:
    """Relative names of a folder's files of records, sorted, and of the others that hold anything."""
    names = sorted(name for name in _folder_names(folder, lambda name: True) if (folder / name).stat().st_size)
    return [name for name in names if name.endswith(RECORDS)], [name for name in names if not name.endswith(RECORDS)]


def _check_folder(label: str, folder: Path) -> None:
    """ConfigError where a folder of texts holds what was hardly meant to be read as texts, or is packed throughout."""
    records, others = record_files(folder)
    packed = sum(not name.endswith(".jsonl") for name in records)
    if records and packed >= len(others):
        where = Path(label, records[0]).parent
        raise ConfigError(f"data.source={label!r}: holds files of records, as {records[0]}, and of a folder every file "
                          "is read as a text; name one of them, or give launch.prepare all by a pattern, as in "
                          f"{where}/*.{Path(records[0]).name.partition('.')[2]}")
    if others and all(name.endswith(_COMPRESSED) for name in others):
        _check_packed(label, others[0])


def _check_packed(label: str, name: str) -> None:
    if name.endswith(_COMPRESSED):
        raise ConfigError(f"data.source={label!r}: {name} is compressed, and of compressed files only .jsonl.gz, "
                          ".json.gz and .parquet are read; unpack it")
