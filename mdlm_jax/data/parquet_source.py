"""Text from a parquet file, read by pyarrow, which tensorflow-datasets brings along."""

from collections.abc import Callable, Iterator
from pathlib import Path

from mdlm_jax.config import ConfigError
from mdlm_jax.data.sources import Document, Source, Split, checked_text

_BATCH = 1024  # rows decoded at a time


class ParquetFile(Source):
    """A ``.parquet`` file: a row is a document, its text in the column ``text_field``; missing texts count as empty.

    A document is named by its file and its row, from 0 on.
    """

    def __init__(self, label: str, split: Split, path: Path, text_field: str):
        super().__init__(label, split)
        self.path, self.text_field = path, text_field
        names = self.open().schema_arrow.names
        if text_field not in names:
            raise ConfigError(f"data.text_field={text_field!r}: {label} has no such column; its columns are "
                              f"{', '.join(names)}")

    def open(self):
        """The file as pyarrow has it. ConfigError where it is none, or where pyarrow is missing."""
        try:
            import pyarrow
            from pyarrow import parquet
        except ImportError:
            raise ConfigError(f"data.source={self.label!r}: parquet needs pyarrow; pip install pyarrow") from None
        try:
            return parquet.ParquetFile(self.path)
        except pyarrow.ArrowException as error:
            raise ConfigError(f"data.source={self.label!r}: is no whole parquet file ({error}); renew it") from None

    def read(self, wanted):
        yield from self.read_groups(0, self.open().num_row_groups, 0, wanted)

    def read_groups(self, start: int, stop: int, first: int, wanted: Callable[[str], bool]) -> Iterator[Document]:
        """The documents of the row groups start..stop-1, of which the first row has the number ``first``."""
        groups = list(range(start, stop))
        number = first
        for batch in self.open().iter_batches(batch_size=_BATCH, row_groups=groups, columns=[self.text_field]):
            column = batch.column(0)
            for i in range(batch.num_rows):
                name = f"{self.path.name}#{number}"
                number += 1
                if wanted(name):
                    value = column[i].as_py()
                    where = f"data.source={self.label!r}, row {number - 1}"
                    yield Document(name, "" if value is None else checked_text(value, where, self.text_field))
