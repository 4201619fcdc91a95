"""Safetensors files, read tensor by tensor and written as a stream.

A file is 8 bytes of header length, a JSON header {name: dtype, shape, data_offsets}, and the bytes. We read it
ourselves to look at a tensor in place, through a map of its bytes alone: a map of the whole file, as the library makes,
counts as resident memory, and numpy views of bfloat16 need ml_dtypes. Tests compare with the library ``safetensors``.
"""

import dataclasses
import json
import math
import mmap
import os
import struct
from collections.abc import Iterable
from pathlib import Path

import ml_dtypes
import numpy as np

from mdlm_jax.errors import ConfigError

INDEX, SINGLE = "model.safetensors.index.json", "model.safetensors"
DTYPES = {
    "F64": np.dtype(np.float64), "F32": np.dtype(np.float32), "F16": np.dtype(np.float16),
    "BF16": np.dtype(ml_dtypes.bfloat16),
}
_CODES = {dtype.name: code for code, dtype in DTYPES.items()}
_SIZES = {"F64": 8, "I64": 8, "U64": 8, "C64": 8, "F32": 4, "I32": 4, "U32": 4, "F16": 2, "BF16": 2, "I16": 2, "U16": 2}
_LONGEST_HEADER = 100_000_000  # as in the library


@dataclasses.dataclass(frozen=True)
class Stored:
    """Where a tensor is: file, dtype code of the format, shape, first byte and number of bytes."""

    path: Path
    code: str
    shape: tuple[int, ...]
    offset: int
    size: int

    @property
    def dtype(self) -> np.dtype:
        """Raises ConfigError for dtypes that are no weights of ours (integers, 8 bits)."""
        if self.code not in DTYPES:
            raise ConfigError(f"{self.path}: dtype {self.code} is not read here; convert it to one of "
                              f"{', '.join(DTYPES)}")
        return DTYPES[self.code]

    def map(self) -> np.ndarray:
        """The tensor, read-only and in place: pages come in as they are looked at, and go with the array."""
        if self.size == 0:
            return np.zeros(self.shape, self.dtype)
        first = self.offset % mmap.ALLOCATIONGRANULARITY
        with open(self.path, "rb") as file:
            mapped = mmap.mmap(file.fileno(), first + self.size, access=mmap.ACCESS_READ, offset=self.offset - first)
        if hasattr(mapped, "madvise"):
            mapped.madvise(mmap.MADV_WILLNEED)
        count = math.prod(self.shape)
        return np.frombuffer(mapped, self.dtype, count, first).reshape(self.shape)


def open_directory(directory: Path | str) -> dict[str, Stored]:
    """Every tensor of a checkpoint by name; only headers are read.

    Raises:
      ConfigError: no safetensors there, a file that the index names is missing or damaged, a tensor in two files.
    """
    directory = Path(directory)
    found: dict[str, Stored] = {}
    for path in _weight_files(directory):
        for name, stored in read_header(path).items():
            if name in found:
                raise ConfigError(f"{path}: {name} is also in {found[name].path.name}; remove one of the files")
            found[name] = stored
    return found


def _weight_files(directory: Path) -> list[Path]:
    if (directory / INDEX).is_file():
        try:
            weights = json.loads((directory / INDEX).read_text())["weight_map"]
            names = sorted(set(weights.values()))
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ConfigError(f"{directory / INDEX}: is not an index of safetensors ({error!r}); download it "
                              "again") from None
    elif (directory / SINGLE).is_file():
        names = [SINGLE]
    else:
        names = sorted(path.name for path in directory.glob("*.safetensors"))
        if len(names) != 1:
            raise ConfigError(f"{directory}: holds neither {INDEX} nor {SINGLE}; convert the weights to safetensors")
    missing = [name for name in names if not (directory / name).is_file()]
    if missing:
        raise ConfigError(f"{directory}: {', '.join(missing[:5])} named in the index is missing; download it again")
    return [directory / name for name in names]


def read_header(path: Path) -> dict[str, Stored]:
    """The tensors of one file. ConfigError where it is not whole."""
    length = path.stat().st_size
    with open(path, "rb") as file:
        start = file.read(8)
        header_size = struct.unpack("<Q", start)[0] if len(start) == 8 else length
        if header_size > min(_LONGEST_HEADER, length - 8):
            raise ConfigError(f"{path}: is not a safetensors file, or was cut off; download it again")
        try:
            header = json.loads(file.read(header_size))
            header.pop("__metadata__", None)
            stored = {name: _stored(path, 8 + header_size, entry) for name, entry in header.items()}
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ConfigError(f"{path}: has a damaged header ({error!r}); download it again") from None
    end = _end(path, stored, 8 + header_size)
    if end != length:
        raise ConfigError(f"{path}: holds {length} bytes and its header says {end}; download it again")
    return stored


def _end(path: Path, stored: dict[str, Stored], start: int) -> int:
    """The byte after the last tensor. ConfigError unless they follow each other without overlap and gap."""
    for name, tensor in sorted(stored.items(), key=lambda item: (item[1].offset, item[1].size)):
        if tensor.offset != start:
            fault = "overlaps the tensor before it" if tensor.offset < start else "leaves a gap before it"
            raise ConfigError(f"{path}: {name} begins at byte {tensor.offset} and not at {start}: it {fault}; download "
                              "it again")
        start += tensor.size
    return start


def _stored(path: Path, base: int, entry: dict) -> Stored:
    first, last = entry["data_offsets"]
    shape = tuple(entry["shape"])
    width = _SIZES.get(entry["dtype"], 1)
    if not all(type(number) is int and number >= 0 for number in (first, last, *shape)):
        raise ValueError(f"{entry}: its numbers must be whole and not negative")
    if last - first != math.prod(shape) * width:
        raise ValueError(f"{entry}: its bytes must be its shape's")
    return Stored(path, entry["dtype"], shape, base + first, last - first)


def write_file(path: Path, tensors: Iterable[tuple[str, np.dtype, tuple[int, ...]]], produce) -> None:
    """Writes one file, holding one tensor at a time.

    Args:
      tensors: name, dtype and shape of each, known beforehand.
      produce: name -> array; called in order.
    """
    header: dict[str, dict] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for name, dtype, shape in tensors:
        size = math.prod(shape) * dtype.itemsize
        header[name] = {"dtype": _CODES[dtype.name], "shape": list(shape), "data_offsets": [offset, offset + size]}
        offset += size
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with open(path, "wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for name, dtype, shape in tensors:
            array = produce(name)
            if array.dtype != dtype or array.shape != tuple(shape):
                raise ValueError(f"{name}: is {array.dtype}{array.shape}; it must be {dtype}{tuple(shape)}")
            file.write(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
        file.flush()
        os.fsync(file.fileno())
