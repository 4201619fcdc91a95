"""A source cut into pieces that are read on their own, so that several processes can share the work.

The documents of all pieces, in order, are the documents of the source: same names, same texts. Where the cuts fall
depends on the source alone, never on who reads them.
"""

import dataclasses
import io
from collections.abc import Iterator

from mdlm_jax.data.parquet_source import ParquetFile
from mdlm_jax.data.sources import Document, FileTree, JsonLines, Source, TextFile
from mdlm_jax.data.tfds_source import TfdsSource

SIZE = 8 << 20  # bytes of a piece, about
_EXAMPLES = 8192  # of a tfds dataset in a piece


@dataclasses.dataclass(frozen=True)
class Piece:
    """Consecutive documents of a source.

    Attributes:
      start, stop: the files of a folder, the bytes of a text or .jsonl file, row groups, or examples of a dataset.
      first: number of the first document, where documents are numbered through.
      part: the dataset's own split that the examples are of.
      split: ``train`` or ``valid`` where the dataset itself says so; "": the hash of each name decides.
    """

    start: int
    stop: int
    first: int = 0
    part: str = ""
    split: str = ""


def cut(source: Source, size: int) -> list[Piece]:
    """The pieces of a source, of about ``size`` bytes each; a .gz file is one, since it must be read from its start.

    Costs the reading of a text or .jsonl file once, without its decoding; of other sources next to nothing.

    Raises:
      ConfigError: a text file is not UTF-8.
    """
    match source:
        case FileTree():
            return _cut_folder(source, size)
        case TextFile():
            return _cut_text(source, size)
        case JsonLines() if source.path.suffix == ".gz":
            return [Piece(0, source.path.stat().st_size, 1)]
        case JsonLines():
            return _cut_lines(source, size)
        case ParquetFile():
            return _cut_groups(source, size)
    assert isinstance(source, TfdsSource)
    return [Piece(start, min(start + _EXAMPLES, count), 0, part, split)
            for part, (split, count) in source.splits().items() for start in range(0, count, _EXAMPLES)]


def read(source: Source, piece: Piece) -> Iterator[Document]:
    """The documents of a piece, those without text among them."""
    match source:
        case FileTree():
            return source.read_names(source.names[piece.start : piece.stop], _every)
        case TextFile():
            text = io.StringIO(_bytes(source, piece).decode(), newline="")
            return source.read_open(text, piece.first, _every)
        case JsonLines() if source.path.suffix == ".gz":
            return source.read(_every)
        case JsonLines():
            return source.read_lines(io.BytesIO(_bytes(source, piece)), piece.first, _every)
        case ParquetFile():
            return source.read_groups(piece.start, piece.stop, piece.first, _every)
    assert isinstance(source, TfdsSource)
    return source.read_examples(piece.part, _every, piece.start, piece.stop)


def _every(name: str) -> bool:
    return True


def _bytes(source: TextFile | JsonLines, piece: Piece) -> bytes:
    with open(source.path, "rb") as file:
        file.seek(piece.start)
        return file.read(piece.stop - piece.start)


def _cut_folder(source: FileTree, size: int) -> list[Piece]:
    pieces, start, taken = [], 0, 0
    for number, name in enumerate(source.names, 1):
        taken += (source.root / name).stat().st_size
        if taken >= size:
            pieces.append(Piece(start, number))
            start, taken = number, 0
    if start < len(source.names):
        pieces.append(Piece(start, len(source.names)))
    return pieces


def _cut_text(source: TextFile, size: int) -> list[Piece]:
    """Cuts between blocks, which only a pass over the file can find."""
    pieces, start, stop, first, number = [], 0, 0, 0, 0
    with open(source.path, encoding="utf-8", newline="") as file:
        for number, block in enumerate(source.blocks(file), 1):
            stop += len(block.encode())
            if stop - start >= size:
                pieces.append(Piece(start, stop, first))
                start, first = stop, number
    if stop > start:
        pieces.append(Piece(start, stop, first))
    return pieces


def _cut_lines(source: JsonLines, size: int) -> list[Piece]:
    pieces, start, first = [], 0, 1
    with open(source.path, "rb") as file:
        while block := file.read(size):
            block += file.readline()
            pieces.append(Piece(start, start + len(block), first))
            start, first = start + len(block), first + block.count(b"\n")
    return pieces


def _cut_groups(source: ParquetFile, size: int) -> list[Piece]:
    metadata = source.open().metadata
    pieces, start, taken, first, row = [], 0, 0, 0, 0
    for number in range(metadata.num_row_groups):
        group = metadata.row_group(number)
        taken, row = taken + group.total_byte_size, row + group.num_rows
        if taken >= size or number + 1 == metadata.num_row_groups:
            pieces.append(Piece(start, number + 1, first))
            start, taken, first = number + 1, 0, row
    return pieces
