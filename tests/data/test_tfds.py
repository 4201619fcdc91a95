"""Text through tensorflow_datasets, with TensorFlow proven absent, and the builder that writes it."""

import subprocess
import sys

import numpy as np
import pytest

from mdlm_jax.config import ConfigError, DataConfig
from mdlm_jax.data import pieces
from mdlm_jax.data.pipeline import build
from mdlm_jax.data.preparation import Preparation
from mdlm_jax.data.prepare import prepare
from mdlm_jax.data.sources import open_source

TEXT = "".join(f"paragraph {i} of the book, with an é and more words to fill it\n" * 40 + "\n" for i in range(120))

PREPARE = """
import sys
from mdlm_jax.data.tfds_text import prepare
print("folder:", prepare({source!r}, {data_dir!r}, "mine", valid_fraction=0.3))
assert "tensorflow" not in sys.modules and "jax" not in sys.modules
"""
READ = """
import sys
from mdlm_jax.config import DataConfig
from mdlm_jax.data.pipeline import build
built = build(DataConfig(source="tfds:plain_text/mine", data_dir={data_dir!r}, length=64), 4)
assert "mdlm_jax.data.tfds_text" not in sys.modules  # read from the files alone
assert "tensorflow" not in sys.modules and "jax" not in sys.modules
print(built.train.fingerprint, built.valid.fingerprint)
"""


def run(code, **values):
    result = subprocess.run([sys.executable, "-c", code.format(**values)], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    return result.stdout


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """(text file, data_dir holding it as plain_text/mine), written by a process that has no TensorFlow."""
    root = tmp_path_factory.mktemp("tfds")
    (root / "book.txt").write_text(TEXT)
    run(PREPARE, source=str(root / "book.txt"), data_dir=str(root / "datasets"))
    return root / "book.txt", root / "datasets"


def test_written_and_read_without_tensorflow(prepared):
    _, data_dir = prepared
    prints = run(READ, data_dir=str(data_dir)).split()
    built = build(DataConfig(source="tfds:plain_text/mine", data_dir=str(data_dir), length=64), 4)
    assert prints == [built.train.fingerprint, built.valid.fingerprint]


@pytest.mark.parametrize("workers", [1, 2])
def test_prepared_rows_are_those_read_directly(prepared, tmp_path, monkeypatch, workers):
    """Its own held-out split included; cut into pieces of few examples, and read by other processes."""
    _, data_dir = prepared
    if workers == 1:
        monkeypatch.setattr(pieces, "_EXAMPLES", 5)
    fields = {"sources": ("tfds:plain_text/mine",), "data_dir": str(data_dir), "length": 64}
    prepare(Preparation(**fields), tmp_path / "rows", workers, "test", lambda *report: None)
    read = build(DataConfig(source=f"prepared:{tmp_path / 'rows'}", length=64), 4)
    built = build(DataConfig(source="tfds:plain_text/mine", data_dir=str(data_dir), length=64), 4)
    for split in ("train", "valid"):
        one, other = getattr(read, split), getattr(built, split)
        np.testing.assert_array_equal(one.sequential(0, one.num_rows)["tokens"],
                                      other.sequential(0, other.num_rows)["tokens"])


def test_the_dataset_holds_the_documents_of_the_file(prepared):
    path, data_dir = prepared
    through = open_source(DataConfig(source="tfds:plain_text/mine", data_dir=str(data_dir)))
    direct = open_source(DataConfig(source=str(path), valid_fraction=0.3))
    for split in ("train", "valid"):
        texts = [d.text for d in through.documents(split)]
        assert sorted(texts) == sorted(d.text for d in direct.documents(split))
        assert texts == [d.text for d in through.documents(split)]
    assert next(through.documents("valid")).name == "validation#0"


def test_the_files_are_array_records(prepared):
    import array_record.python.array_record_module as array_record

    _, data_dir = prepared
    files = sorted(path.name for path in data_dir.rglob("*array_record*"))
    assert files == [f"plain_text-{split}.array_record-00000-of-00001" for split in ("train", "validation")]
    reader = array_record.ArrayRecordReader(str(next(data_dir.rglob(files[1]))))
    assert reader.num_records() > 0


def test_another_text_field(prepared):
    _, data_dir = prepared
    source = open_source(DataConfig(source="tfds:plain_text/mine", data_dir=str(data_dir), text_field="name"))
    assert next(source.documents("train")).text.startswith("book.txt#")
    with pytest.raises(ConfigError, match="data.text_field='body': .* has no such field; its fields are name, text"):
        open_source(DataConfig(source="tfds:plain_text/mine", data_dir=str(data_dir), text_field="body"))


def test_preparing_twice_is_refused(prepared):
    from mdlm_jax.data.tfds_text import prepare

    path, data_dir = prepared
    with pytest.raises(ConfigError, match="exists already; delete it or choose another config_name"):
        prepare(str(path), data_dir, "mine")


def test_preparing_nothing_leaves_nothing(tmp_path):
    from mdlm_jax.data.tfds_text import prepare

    with pytest.raises(ConfigError, match="no such file or folder"):
        prepare(str(tmp_path / "absent.txt"), tmp_path / "datasets", "mine")
    assert not list(tmp_path.rglob("dataset_info.json"))


def dataset(tmp_path, splits, features=None):
    """A dataset with given splits, each a list of examples."""
    import tensorflow_datasets as tfds

    class Tiny(tfds.core.GeneratorBasedBuilder, skip_registration=True):
        VERSION = tfds.core.Version("1.0.0")
        url_infos = None

        def _info(self):
            return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(
                features or {"text": tfds.features.Text()}))

        def _split_generators(self, dl_manager):
            return {name: enumerate(examples) for name, examples in splits.items()}

        def _generate_examples(self):
            raise NotImplementedError

    Tiny(data_dir=tmp_path, file_format="array_record").download_and_prepare()
    return DataConfig(source="tfds:tiny", data_dir=str(tmp_path), valid_fraction=0.3)


def texts(*values):
    return [{"text": value} for value in values]


def test_train_alone_is_split_by_the_hash_of_the_index(tmp_path):
    source = open_source(dataset(tmp_path, {"train": texts(*(f"t{i}" for i in range(60)))}))
    train, valid = (list(source.documents(split)) for split in ("train", "valid"))
    assert sorted(d.text for d in train + valid) == sorted(f"t{i}" for i in range(60))
    assert len(valid) > 5 and all(d.name.startswith("train#") for d in train + valid)


@pytest.mark.parametrize("own", ["validation", "valid", "test"])
def test_own_held_out_split_is_used(own, tmp_path):
    splits = {"train": texts("a", "b"), own: texts("c", ""), "extra": texts("d")}
    source = open_source(dataset(tmp_path, splits))
    assert sorted(d.text for d in source.documents("train")) == ["a", "b"]
    assert [d.text for d in source.documents("valid")] == ["c"]


def test_validation_comes_before_test(tmp_path):
    source = open_source(dataset(tmp_path, {"train": texts("a"), "test": texts("b"), "validation": texts("c")}))
    assert [d.text for d in source.documents("valid")] == ["c"]


def test_own_held_out_split_without_text(tmp_path):
    source = open_source(dataset(tmp_path, {"train": texts("a"), "test": texts("")}))
    with pytest.raises(ConfigError, match="its valid split holds no text"):
        list(source.documents("valid"))


def test_dataset_without_train(tmp_path):
    with pytest.raises(ConfigError, match="has no train split, only test"):
        open_source(dataset(tmp_path, {"test": texts("a")}))


def test_field_that_is_no_text(tmp_path):
    import tensorflow_datasets as tfds

    features = {"text": tfds.features.Scalar(np.int32)}
    config = dataset(tmp_path, {"train": [{"text": 3}], "test": [{"text": 4}]}, features)
    with pytest.raises(ConfigError, match="example train#0 holds int there, not text"):
        list(open_source(config).documents("train"))


def test_bytes_that_are_no_unicode(tmp_path):
    config = dataset(tmp_path, {"train": texts(b"\xff"), "test": texts("a")})
    with pytest.raises(ConfigError, match="example train#0: field 'text' is not valid Unicode"):
        list(open_source(config).documents("train"))


def test_dataset_in_a_format_that_needs_tensorflow(tmp_path):
    import json

    config = dataset(tmp_path, {"train": texts("a"), "test": texts("b")})
    info = next(tmp_path.rglob("dataset_info.json"))
    info.write_text(json.dumps(json.loads(info.read_text()) | {"fileFormat": "tfrecord"}))
    with pytest.raises(ConfigError, match="prepare it again with file_format='array_record'"):
        open_source(config)


@pytest.mark.parametrize(("source", "message"), [
    ("tfds:nosuchdata", "neither tfds nor .* has 'nosuchdata'"),
    ("tfds:lm1b", "'tfds:lm1b': is not prepared in .*lm1b/1.1.0; point data.data_dir at the data_dir where it is"),
    ("tfds:c4/en", "'tfds:c4/en': is not prepared"),
    ("tfds:lm1b/klingon", "tfds cannot open it"),
    ("tfds:lm1b:0.0.1", "tfds cannot open it"),
    ("tfds:", "tfds cannot open it"),
    ("tfds:huggingface:c4", "needs the network at every start"),
])
def test_datasets_that_are_not_there(source, message, tmp_path):
    with pytest.raises(ConfigError, match=message):
        open_source(DataConfig(source=source, data_dir=str(tmp_path)))


def test_data_dir_that_is_not_there(tmp_path):
    with pytest.raises(ConfigError, match="data.data_dir='.*absent': there is no such folder"):
        open_source(DataConfig(source="tfds:lm1b", data_dir=str(tmp_path / "absent")))


def test_dataset_unknown_without_data_dir():
    with pytest.raises(ConfigError, match="tfds does not have 'nosuchdata'"):
        open_source(DataConfig(source="tfds:nosuchdata"))
