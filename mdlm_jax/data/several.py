"""Several sources as one: their documents one source after the other."""

import functools
import glob
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from mdlm_jax.config import ConfigError, DataConfig
from mdlm_jax.config.data import RECORDS
from mdlm_jax.data.sources import Document, Source, open_source, record_files
from mdlm_jax.data.splits import HeldOut, Split


class Several(Source):
    """The documents of its ``parts`` in order. A dataset with held-out text of its own keeps that; the documents of all
    the others are parted together, by the hashes of their names (see ``Split``)."""

    def __init__(self, label: str, split: Split, parts: Sequence[Source]):
        super().__init__(label, split)
        self.parts = tuple(parts)
        self.hashed = tuple(part for part in parts if not _has_own_splits(part))

    def read(self, wanted):
        for part in self.hashed:
            yield from part.read(wanted)
            self.skipped |= part.skipped

    def documents(self, split: str) -> Iterator[Document]:
        if self.split.last:
            yield from self._documents_by_number(split)
        elif self.hashed:
            yield from super().documents(split)
        for part in self.parts:
            if part not in self.hashed:
                yield from part.documents(split)

    def _documents_by_number(self, split: str) -> Iterator[Document]:
        for part, held in zip(self.parts, self.held_of_parts, strict=True):
            if part in self.hashed:
                yield from (d for d in part.read(_side(held, split == "valid")) if d.text)

    @functools.cached_property
    def held_of_parts(self) -> tuple[HeldOut, ...]:
        """Which documents of each part are held out; of a part with splits of its own, none by name."""
        if not self.split.last:
            by_hash = HeldOut(limit=self._limit if self.hashed else 0.0)
            return tuple(by_hash if part in self.hashed else HeldOut() for part in self.parts)
        left, found = self.split.last, {}
        for part in reversed(self.hashed):
            found[part] = part.last_names(left) if left else frozenset()
            left -= len(found[part])
        return tuple(HeldOut(names=found.get(part, frozenset())) for part in self.parts)


def _has_own_splits(source: Source) -> bool:
    splits = getattr(source, "splits", None)
    return splits is not None and any(split for split, _ in splits().values())


def _side(held: HeldOut, valid: bool) -> Callable[[str], bool]:
    """Asks whether a name is held out, or whether it is not."""
    return lambda name: held(name) == valid


def names_of(spec: str) -> list[str]:
    """The sources that ``A,B,...`` names, patterns of file names (``web/*.jsonl``) filled in, in sorted order, and a
    folder that holds nothing but files of records as those files.

    A path that exists as it is written is taken whole, commas and stars included.

    Raises:
      ConfigError: an empty name, a pattern that fits no file, the same source twice.
    """
    if Path(spec).expanduser().exists():
        return _records_of(spec)
    names = []
    for name in spec.split(","):
        if not name:
            raise ConfigError(f"--source={spec!r}: holds an empty name; write A,B without stray commas")
        plain = ":" in name or not glob.has_magic(name) or Path(name).expanduser().exists()
        found = [name] if plain else sorted(glob.glob(str(Path(name).expanduser()), recursive=True))
        if not found:
            raise ConfigError(f"--source={name!r}: no file fits this pattern; choose another")
        names += [file for one in found for file in _records_of(one)]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ConfigError(f"--source={spec!r}: names {twice[0]!r} twice; leave one out")
    return names


def _records_of(name: str) -> list[str]:
    folder = Path(name).expanduser()
    files, others = record_files(folder) if folder.is_dir() else ([], [])
    return [str(folder / file) for file in files] if files and not others else [name]


def open_sources(names: Sequence[str], length: int, text_field: str, data_dir: str, valid_fraction: float,
                 valid_last: int = 0) -> Several:
    """Opens them all; ``text_field`` and ``data_dir`` go to those that read them.

    Raises:
      ConfigError: one does not exist or has no text, or none reads the ``text_field`` or ``data_dir`` given.
    """
    fields = {name: name.startswith("tfds:") or name.endswith(RECORDS) for name in names}
    defaults = DataConfig()
    if text_field != defaults.text_field and not any(fields.values()):
        raise ConfigError(f"--text_field={text_field}: is read only from .jsonl, .parquet and tfds; leave it out")
    if data_dir and not any(name.startswith("tfds:") for name in names):
        raise ConfigError(f"--data_dir={data_dir}: is read only with --source=tfds:NAME; leave it out")
    parts = []
    for name in names:
        if name.partition(":")[0] in ("language", "prepared", "mixture"):
            raise ConfigError(f"--source={name}: holds no text to prepare; name a file, a folder, stdlib or tfds:NAME")
        parts.append(open_source(DataConfig(
            source=name, length=length, valid_fraction=valid_fraction, valid_last=valid_last,
            text_field=text_field if fields[name] else defaults.text_field,
            data_dir=data_dir if name.startswith("tfds:") else "")))
    return Several(",".join(names), parts[0].split, parts)
