"""Text from a prepared ``tensorflow_datasets`` data_dir, read through ``as_data_source``: TensorFlow is not needed."""

import importlib
from collections.abc import Iterator
from pathlib import Path

from mdlm_jax.config import ConfigError
from mdlm_jax.data.sources import Document, Source, Split, checked_text

_VALID_SPLITS = ("validation", "valid", "test")
_LEGACY = ("text", "summarization", "translate", "question_answering")  # register their builders only when imported
_CHUNK = 1024


class TfdsSource(Source):
    """A dataset in array_record (or parquet) format; a document is one example, named by split and index.

    Its own split ``validation``, ``valid`` or ``test`` is held out where it has one, and ``valid_fraction`` is then not
    used (``valid_last`` refused); a dataset with ``train`` alone is split as any other source.
    """

    def __init__(self, label: str, split: Split, data_dir: str, text_field: str):
        super().__init__(label, split)
        self.text_field = text_field
        builder = _find_builder(label, data_dir)
        if not builder.is_prepared():
            raise ConfigError(f"data.source={label!r}: is not prepared in {builder.data_path}; point data.data_dir at "
                              "the data_dir where it is, or prepare it with file_format='array_record'")
        if text_field not in builder.info.features:
            raise ConfigError(f"data.text_field={text_field!r}: {label} has no such field; "
                              f"its fields are {', '.join(sorted(builder.info.features))}")
        splits = list(builder.info.splits)
        if "train" not in splits:
            raise ConfigError(f"data.source={label!r}: has no train split, only {', '.join(splits)}; choose another")
        self._own_valid = next((split for split in _VALID_SPLITS if split in splits), None)
        if split.last and self._own_valid:
            raise ConfigError(f"data.valid_last={split.last}: {label} has a split {self._own_valid!r} of its own, "
                              "which is held out; leave it out")
        used = ["train"] if self._own_valid is None else ["train", self._own_valid]
        try:
            self._data = {split: builder.as_data_source(split) for split in used}
        except NotImplementedError:
            raise ConfigError(f"data.source={label!r}: is prepared as {builder.info.file_format}, which cannot be read "
                              "without TensorFlow; prepare it again with file_format='array_record'") from None

    def documents(self, split: str) -> Iterator[Document]:
        if self._own_valid is None:
            yield from super().documents(split)
            return
        found = 0
        for document in self.read_examples({"train": "train", "valid": self._own_valid}[split], lambda name: True):
            if document.text:
                found += 1
                yield document
        if not found:
            raise ConfigError(self._empty(split, len(self._data["train"])))

    def read(self, wanted):
        return self.read_examples("train", wanted)

    def splits(self) -> dict[str, tuple[str, int]]:
        """Its own splits that are read, each with what they are for us and how many examples they have.

        "" stands for both of ours: its documents are parted by the hash.
        """
        ours = {"train": "" if self._own_valid is None else "train", self._own_valid: "valid"}
        return {split: (ours[split], len(data)) for split, data in self._data.items()}

    def read_examples(self, split: str, wanted, start: int = 0, stop: int | None = None) -> Iterator[Document]:
        """Some examples of one of its own splits."""
        data = self._data[split]
        last = len(data) if stop is None else stop
        for begin in range(start, last, _CHUNK):
            names = {i: f"{split}#{i}" for i in range(begin, min(begin + _CHUNK, last))}
            indices = [i for i, name in names.items() if wanted(name)]
            for i, example in zip(indices, data.__getitems__(indices), strict=True):
                where = f"data.source={self.label!r}, example {names[i]}"
                yield Document(names[i], checked_text(example[self.text_field], where, self.text_field))


def _find_builder(label: str, data_dir: str):
    import tensorflow_datasets as tfds

    name = label.removeprefix("tfds:")
    local = data_dir and "://" not in data_dir
    root = Path(data_dir).expanduser() if local else data_dir
    if isinstance(root, Path) and not root.is_dir():
        raise ConfigError(f"data.data_dir={data_dir!r}: there is no such folder; name the one {label} is prepared in")
    if name.startswith("huggingface:"):
        raise ConfigError(f"data.source={label!r}: needs the network at every start; prepare the text as a dataset "
                          "(mdlm_jax.data.tfds_text) or as a .jsonl file")
    try:
        try:
            return tfds.builder(name, data_dir=root or None)
        except tfds.core.DatasetNotFoundError:
            for module in _LEGACY:
                importlib.import_module(f"tensorflow_datasets.{module}")
            return tfds.builder(name, data_dir=root or None)
    except tfds.core.DatasetNotFoundError:
        where = f"neither tfds nor {data_dir!r} has" if data_dir else "tfds does not have"
        raise ConfigError(f"data.source={label!r}: {where} {name!r}; check the name and data.data_dir") from None
    except (ValueError, AssertionError, ImportError) as error:  # a bad name, version or config; no package for gs://
        reason = str(error).strip().partition("\n")[0]
        raise ConfigError(f"data.source={label!r}: tfds cannot open it ({reason}); check data.source and data.data_dir"
                          ) from error
