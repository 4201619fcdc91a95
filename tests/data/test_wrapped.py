"""Rows wrapped in [BOS] and [EOS], and the last documents held out: the OpenWebText and LM1B recipes."""

import json

import numpy as np
import pytest

from mdlm_jax.config import ConfigError, DataConfig
from mdlm_jax.data import pieces
from mdlm_jax.data.packing import make_batch, pack
from mdlm_jax.data.pipeline import build
from mdlm_jax.data.sources import open_source
from mdlm_jax.data.tokenizers import ByteTokenizer, Text8Tokenizer
from tests.data.prepared_support import LENGTH, content, make, write_sources


def rows_of(built):
    return [p.sequential(0, p.num_rows)["tokens"] for p in (built.train, built.valid)]


@pytest.mark.parametrize("count", [0, 3, 4, 29])
def test_a_row_is_bos_a_chunk_and_eos(count):
    text8, ids = Text8Tokenizer(), np.arange(8, 8 + count, dtype=np.uint16)
    rows = pack(ids, 6, "wrapped", text8)
    assert rows.dtype == ids.dtype and rows.shape == (count // 4, 6)
    for i, row in enumerate(rows):
        assert row.tolist() == [text8.bos_id, *ids[4 * i : 4 * i + 4], text8.eos_id]


def test_without_a_token_that_begins_a_text_the_end_token_does():
    tokenizer = ByteTokenizer()
    assert tokenizer.bos_id == tokenizer.eos_id
    assert pack(np.arange(4), 4, "wrapped", tokenizer).tolist() == [[257, 0, 1, 257], [257, 2, 3, 257]]


def test_the_batch_is_that_of_concat_and_bytes_are_those_of_the_text():
    tokenizer = Text8Tokenizer()
    rows = pack(tokenizer.encode("the quick brown fox jumps"), 12, "wrapped", tokenizer)
    wrapped, concat = (make_batch(rows, packing, tokenizer.eos_id, tokenizer.pad_id) for packing in ("wrapped",
                                                                                                     "concat"))
    for name, values in concat.items():
        np.testing.assert_array_equal(wrapped[name], values)
    assert wrapped["loss_mask"].all()
    assert tokenizer.token_bytes(rows).sum() == 20 and tokenizer.decode(rows.ravel()) == "the quick brown fox "


@pytest.mark.parametrize("number", range(4))
def test_prepared_rows_are_those_made_in_memory(tmp_path, number, monkeypatch):
    monkeypatch.setattr(pieces, "SIZE", 2000)
    source = write_sources(tmp_path)[number]
    fields = {"packing": "wrapped", "length": LENGTH, "tokenizer": "bpe:300"}
    manifest = make(tmp_path / "rows", source, valid_last=7, shards=3, **fields)
    memory = build(DataConfig(source=source, valid_last=7, **fields), 4)
    disk = build(DataConfig(source=f"prepared:{tmp_path / 'rows'}", **fields), 4)
    assert manifest["splits"]["valid"]["documents"] == memory.info["valid"]["documents"] == 7
    assert disk.info["train"] == memory.info["train"] and disk.info["valid"] == memory.info["valid"]
    assert 0 <= memory.info["train"]["dropped_tokens"] < LENGTH - 2
    for got, expected in zip(rows_of(disk), rows_of(memory), strict=True):
        np.testing.assert_array_equal(got, expected)
        assert (got[:, [0, -1]] == memory.tokenizer.eos_id).all()


def test_rows_wrapped_and_not_are_told_apart(tmp_path):
    sources = write_sources(tmp_path)
    for packing in ("wrapped", "concat"):
        make(tmp_path / packing, sources[0], packing=packing)
    for there, asked in (("wrapped", "concat"), ("wrapped", "documents"), ("concat", "wrapped")):
        config = DataConfig(source=f"prepared:{tmp_path / there}", length=LENGTH, packing=asked)
        with pytest.raises(ConfigError, match=f"data.packing='{asked}': the rows in .* prepared with '{there}'"):
            build(config, 4)
    build(DataConfig(source=f"prepared:{tmp_path / 'concat'}", length=LENGTH, packing="documents"), 4)
    with pytest.raises(ConfigError, match="data.packing='documents': choose concat, whose rows"):
        make(tmp_path / "other", sources[0], packing="documents")


# The last documents --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", range(4))
@pytest.mark.parametrize("last", [1, 5])
def test_the_last_documents_are_held_out(tmp_path, number, last):
    source = open_source(DataConfig(source=write_sources(tmp_path)[number], valid_last=last))
    everything = [d.name for d in source.read(lambda name: True)]
    assert [d.name for d in source.documents("valid")] == everything[-last:]
    assert [d.name for d in source.documents("train")] == everything[:-last]


def test_the_last_of_several_sources_though_their_names_are_the_same(tmp_path):
    paths = []
    for folder in ("a", "b", "c"):
        (tmp_path / folder).mkdir()
        paths.append(tmp_path / folder / "lines.jsonl")
        paths[-1].write_text("".join(json.dumps({"text": f"{folder}{i} " * 20}) + "\n" for i in range(10)))
    one, three = (make(tmp_path / name, *paths, workers=workers, valid_last=12, length=64)
                  for name, workers in (("one", 1), ("three", 3)))
    assert one["splits"] == three["splits"] and content(tmp_path / "one") == content(tmp_path / "three")
    assert one["splits"]["valid"]["documents"] == 12 and one["splits"]["train"]["documents"] == 18
    disk = build(DataConfig(source=f"prepared:{tmp_path / 'one'}", length=64), 4)
    train, valid = (ByteTokenizer().decode(rows.ravel()) for rows in rows_of(disk))
    assert "b7" in train and "b8" not in train and "c" not in train and "b8" in valid and "c9" in valid


@pytest.mark.parametrize(("last", "message"), [
    (10, "its train split holds no text .10 documents in all.; lower data.valid_last=10"),
    (99, "lower data.valid_last=99"),
])
def test_too_many(tmp_path, last, message):
    path = tmp_path / "lines.jsonl"
    path.write_text('{"text": "words"}\n' * 10)
    with pytest.raises(ConfigError, match=message):
        list(open_source(DataConfig(source=str(path), valid_last=last)).documents("train"))


@pytest.mark.parametrize(("fields", "message"), [
    ({"valid_last": -1}, "data.valid_last=-1: must not be negative"),
    ({"valid_last": 3, "valid_fraction": 0.1}, "data.valid_fraction=0.1: is not read with data.valid_last=3"),
    ({"source": "prepared:x", "valid_last": 3}, "data.valid_last=3: was settled"),
    ({"packing": "wrapped", "length": 2}, "data.length=2: must be at least 3"),
    ({"packing": "packed"}, "data.packing='packed': choose one of concat, documents, wrapped"),
])
def test_what_cannot_be(fields, message):
    with pytest.raises(ConfigError, match=message):
        DataConfig(**fields)
