"""A ``tensorflow_datasets`` builder for your own text, in array_record format and without TensorFlow.

    prepare("my_texts/", data_dir="~/datasets", config_name="mine")

writes a dataset that ``data.source=tfds:plain_text/mine`` with ``data.data_dir=~/datasets`` reads, and any other tfds
user too. It takes what ``data.source`` takes: a folder, a text file, a ``.jsonl``.
"""

import dataclasses
from collections.abc import Iterator
from pathlib import Path

import tensorflow_datasets as tfds

from mdlm_jax.config import ConfigError, DataConfig
from mdlm_jax.data.detokenizers import detokenized
from mdlm_jax.data.sources import Source, open_source


@dataclasses.dataclass(eq=False)
class TextConfig(tfds.core.BuilderConfig):
    """Which text: ``data`` is read as training reads it, with its source, text field and held-out share."""

    data: DataConfig = DataConfig()


class PlainText(tfds.core.GeneratorBasedBuilder):
    """Documents with a name and a text, split into ``train`` and ``validation`` by the hash of the name."""

    VERSION = tfds.core.Version("1.0.0")
    url_infos = None  # no downloads, so no checksums; to look for them tfds needs a package that it does not require

    def _info(self):
        features = tfds.features.FeaturesDict({"name": tfds.features.Text(), "text": tfds.features.Text()})
        return tfds.core.DatasetInfo(builder=self, description="Plain text documents.", features=features)

    def _split_generators(self, dl_manager):
        del dl_manager  # nothing is downloaded
        data = self.builder_config.data
        source = open_source(data)
        return {"train": self._generate_examples(source, "train", data.detokenizer),
                "validation": self._generate_examples(source, "valid", data.detokenizer)}

    def _generate_examples(self, source: Source, split: str, rules: str) -> Iterator[tuple[str, dict[str, str]]]:
        for document in detokenized(source.documents(split), rules):
            yield document.name, {"name": document.name, "text": document.text}


def prepare(source: str, data_dir: str | Path, config_name: str = "text", **fields) -> Path:
    """Writes the documents of a source as the dataset ``plain_text/config_name`` and returns its folder.

    Args:
      source: as in ``DataConfig.source``, text only.
      data_dir: where tfds keeps datasets.
      config_name: tells several texts in one ``data_dir`` apart.
      **fields: further fields of ``DataConfig``: ``valid_fraction``, ``text_field``, ``detokenizer``.

    Raises:
      ConfigError: the source does not exist, one of its splits is empty, or the dataset is there already.
    """
    config = TextConfig(name=config_name, data=DataConfig(source=source, **fields))
    builder = PlainText(config=config, data_dir=Path(data_dir).expanduser(), file_format="array_record")
    if builder.is_prepared():
        raise ConfigError(f"{builder.data_path}: exists already; delete it or choose another config_name")
    builder.download_and_prepare()
    return Path(builder.data_path)
