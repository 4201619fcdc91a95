"""Preparing rows: the rows of the in-memory pipeline, whatever the processes, and whatever was done before."""

import gzip
import hashlib
import json

import numpy as np
import pytest

from mdlm_jax.config import ConfigError, DataConfig
from mdlm_jax.data import manifest as manifests
from mdlm_jax.data import prepare as writer
from mdlm_jax.data.pipeline import build
from mdlm_jax.data.several import names_of
from mdlm_jax.data.tokenizers import load_tokenizer
from tests.data.prepared_support import LENGTH, content, make, paragraphs, silent, write_sources


@pytest.fixture
def sources(tmp_path):
    return write_sources(tmp_path)


def rows_of(built):
    return [p.sequential(0, p.num_rows)["tokens"] for p in (built.train, built.valid)]


@pytest.mark.parametrize("number", range(4))
@pytest.mark.parametrize("tokenizer", ["byte", "bpe:300"])
def test_the_rows_are_those_made_in_memory(sources, number, tokenizer, tmp_path, monkeypatch):
    monkeypatch.setattr(writer.pieces, "SIZE", 2000)  # many pieces
    fields = {"length": LENGTH, "tokenizer": tokenizer, "valid_fraction": 0.2}
    manifest = make(tmp_path / "rows", sources[number], **fields, shards=3)
    memory = build(DataConfig(source=sources[number], **fields), 8)
    fields.pop("valid_fraction")
    for packing in ("concat", "documents"):
        disk = build(DataConfig(source=f"prepared:{tmp_path / 'rows'}", **fields, packing=packing), 8)
        same = build(DataConfig(source=sources[number], **fields, valid_fraction=0.2, packing=packing), 8)
        for step in (0, 5, 10**6):
            for name, expected in same.train.batch(step).items():
                np.testing.assert_array_equal(disk.train.batch(step)[name], expected)
        for got, expected in zip(rows_of(disk), rows_of(same), strict=True):
            np.testing.assert_array_equal(got, expected)
    accounts = {split: {k: manifest["splits"][split][k] for k in ("documents", "bytes", "tokens", "rows")}
                for split in ("train", "valid")}
    assert all(memory.info[split] | account == memory.info[split] for split, account in accounts.items())
    assert disk.info["train"] == memory.info["train"] and disk.info["valid"] == memory.info["valid"]


def test_one_process_or_three_write_the_same_bytes(sources, tmp_path):
    fields = {"tokenizer": "bpe:300", "shards": 5}
    make(tmp_path / "one", *sources, workers=1, **fields)
    make(tmp_path / "three", *sources, workers=3, **fields)
    one, three = content(tmp_path / "one"), content(tmp_path / "three")
    assert one == three
    assert len([name for name in one if name.startswith("train-")]) == 5 and manifests.NAME in one


def test_the_manifest_tells_what_is_there(sources, tmp_path):
    manifest = make(tmp_path / "rows", *sources, shards=2)
    folder = tmp_path / "rows"
    assert manifest == manifests.read(folder)
    assert sorted(content(folder)) == sorted([manifests.NAME, "tokenizer.json", "train-00000-of-00002.array_record",
                                              "train-00001-of-00002.array_record", "valid-00000-of-00001.array_record"])
    for shard in manifests.shards(manifest):
        data = (folder / shard["name"]).read_bytes()
        assert (shard["bytes"], shard["sha256"]) == (len(data), hashlib.sha256(data).hexdigest())
    assert manifest["tokenizer"]["sha256"] == hashlib.sha256((folder / "tokenizer.json").read_bytes()).hexdigest()
    assert (manifest["tokenizer"]["spec"], manifest["tokenizer"]["vocab_size"]) == ("byte", 259)
    assert (manifest["length"], manifest["dtype"], manifest["library"]) == (LENGTH, "uint16", "test")
    assert [s["source"] for s in manifest["sources"]] == sources and manifest["sources"][1]["files"] == 40
    for split in manifest["splits"].values():
        assert split["tokens"] == split["bytes"] + split["documents"]  # of bytes, each document with its end
        assert split["rows"] == split["tokens"] // LENGTH == sum(shard["rows"] for shard in split["shards"])
        assert split["dropped_tokens"] == split["tokens"] % LENGTH
    assert max(s["rows"] for s in manifest["splits"]["train"]["shards"]) - min(
        s["rows"] for s in manifest["splits"]["train"]["shards"]) <= 1


def test_rows_need_32_bits_only_for_many_tokens(tmp_path, monkeypatch):
    (tmp_path / "book.txt").write_text("".join(paragraphs(300)))
    monkeypatch.setattr(writer.Work, "dtype", np.dtype("<u4"))
    assert make(tmp_path / "wide", tmp_path / "book.txt")["dtype"] == "uint32"
    narrow = build(DataConfig(source=str(tmp_path / "book.txt"), length=LENGTH), 4)
    wide = build(DataConfig(source=f"prepared:{tmp_path / 'wide'}", length=LENGTH), 4)
    np.testing.assert_array_equal(rows_of(wide)[0], rows_of(narrow)[0])


def test_a_finished_preparation_is_not_done_again(sources, tmp_path, monkeypatch):
    manifest = make(tmp_path / "rows", *sources)
    before = content(tmp_path / "rows")
    monkeypatch.setattr(writer, "_prepare", None)
    (tmp_path / "rows" / "unfinished").mkdir()  # as a kill after the manifest leaves it
    assert make(tmp_path / "rows", *sources) == manifest
    assert content(tmp_path / "rows") == before


class Stop(Exception):
    pass


@pytest.mark.parametrize("moment", ["tokens 0", "tokens 2", "tokens 4", "shards 1", "shards 3"])
def test_what_is_finished_is_kept(sources, tmp_path, moment):
    """Stopped after so many pieces or shards, a second start does the others and ends with the same bytes."""
    preparation = writer.Preparation(tuple(sources), tokenizer="bpe:300", length=LENGTH, shards=3)
    writer.prepare(preparation, tmp_path / "whole", 1, "test", silent)
    done = []

    def stopping(name, count, total):
        done.append((name, count, total))
        if f"{name} {count}" == moment:
            raise Stop

    with pytest.raises(Stop):
        writer.prepare(preparation, tmp_path / "rows", 1, "test", stopping)
    with pytest.raises(ConfigError, match="were not finished; run the same launch.prepare again"):
        manifests.read(tmp_path / "rows")
    again = []
    writer.prepare(preparation, tmp_path / "rows", 1, "test", lambda *report: again.append(report))
    name, count = moment.split()
    assert (name, int(count), {"tokens": 4, "shards": 4}[name]) in again
    assert not any(report[0] == name and report[1] < int(count) for report in again)
    assert content(tmp_path / "rows") == content(tmp_path / "whole")


def test_a_file_that_only_looks_finished_is_made_again(sources, tmp_path):
    make(tmp_path / "whole", *sources, shards=2)
    preparation = writer.Preparation(tuple(sources), length=LENGTH, shards=2)

    def stopping(name, count, total):
        if (name, count) == ("shards", 2):
            raise Stop

    with pytest.raises(Stop):
        writer.prepare(preparation, tmp_path / "rows", 1, "test", stopping)
    unfinished = tmp_path / "rows" / "unfinished"
    (unfinished / "000001.train").write_bytes((unfinished / "000001.train").read_bytes()[:-7])
    (tmp_path / "rows" / "train-00001-of-00002.array_record").write_bytes(b"")
    (unfinished / "train-00000-of-00002.array_record.77.tmp").write_bytes(b"left by a kill")
    writer.prepare(preparation, tmp_path / "rows", 1, "test", silent)
    assert content(tmp_path / "rows") == content(tmp_path / "whole")


def test_another_preparation_in_the_same_folder_is_refused(sources, tmp_path):
    make(tmp_path / "rows", *sources)
    for fields, said in (({"length": 16}, "prepared with length=32, and now it is 16"),
                         ({"tokenizer": "bpe:300"}, "tokenizer='byte'"), ({"shards": 2}, "shards=0")):
        with pytest.raises(ConfigError, match=said):
            make(tmp_path / "rows", *sources, **fields)
    with pytest.raises(ConfigError, match="prepared with sources="):
        make(tmp_path / "rows", sources[0])
    (tmp_path / "book.txt").write_text("".join(paragraphs(301)))
    with pytest.raises(ConfigError, match="as it was before it changed"):
        make(tmp_path / "rows", *sources)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine").write_text("precious")
    with pytest.raises(ConfigError, match="is not empty and holds no prepared rows"):
        make(tmp_path / "full", *sources)
    assert content(tmp_path / "full") == {"mine": b"precious"}


def test_two_at_once_are_refused(sources, tmp_path):
    def second(name, done, total):
        if name == "shards":
            with pytest.raises(ConfigError, match="another launch.prepare is at work"):
                make(tmp_path / "rows", *sources)
            raise Stop

    with pytest.raises(Stop):
        writer.prepare(writer.Preparation(tuple(sources), length=LENGTH), tmp_path / "rows", 1, "test", second)


def test_a_tokenizer_file_is_copied_and_may_be_named_later(sources, tmp_path):
    make(tmp_path / "one", sources[0], tokenizer="bpe:300")
    file = tmp_path / "one" / "tokenizer.json"
    manifest = make(tmp_path / "two", sources[1], tokenizer=str(file))
    assert manifest["tokenizer"]["sha256"] == manifests.read(tmp_path / "one")["tokenizer"]["sha256"]
    assert load_tokenizer(tmp_path / "two" / "tokenizer.json").vocab_size == manifest["tokenizer"]["vocab_size"]
    for spec in (str(file), str(tmp_path / "two" / "tokenizer.json")):
        build(DataConfig(source=f"prepared:{tmp_path / 'two'}", tokenizer=spec, length=LENGTH), 4)


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"length": 1}, "data.length=1"),
        ({"length": 10**6}, "do not fill a row of --length=1000000"),
        ({"shards": 10**6}, "there are only .* training rows"),
        ({"shards": -1}, "--shards=-1"),
        ({"valid_fraction": 0.0}, "data.valid_fraction=0.0"),
        ({"tokenizer": "bpe:7"}, "data.tokenizer='bpe:7'"),
        ({"tokenizer": "nowhere.json"}, "nowhere.json"),
        ({"text_field": "body"}, "--text_field=body"),
    ],
)
def test_bad_input(tmp_path, fields, said):
    (tmp_path / "book.txt").write_text("".join(paragraphs(60)))
    with pytest.raises(ConfigError, match=said):
        make(tmp_path / "rows", tmp_path / "book.txt", **fields)


def test_a_broken_line_far_into_a_file_is_named(tmp_path):
    lines = [json.dumps({"text": text}) for text in paragraphs(50)]
    (tmp_path / "lines.jsonl").write_text("\n".join([*lines, '{"text": 7}', *lines]))
    with pytest.raises(ConfigError, match="line 51 holds int there, not text"):
        make(tmp_path / "rows", tmp_path / "lines.jsonl", workers=2)


def test_a_failure_before_anything_is_finished_leaves_nothing(tmp_path):
    (tmp_path / "lines.jsonl").write_text('{"text": "one"}\nno json\n')
    with pytest.raises(ConfigError, match="line 2: is not JSON"):
        make(tmp_path / "rows", tmp_path / "lines.jsonl")
    assert not (tmp_path / "rows").exists()


def test_a_mistake_in_the_settings_does_not_block_the_next_try(sources, tmp_path, monkeypatch):
    """What was finished stays for the same settings, and is gone with others."""
    monkeypatch.setattr(writer.pieces, "SIZE", 2000)
    with pytest.raises(ConfigError, match="--shards=9999: there are only"):
        make(tmp_path / "rows", sources[0], shards=9999)
    kept = content(tmp_path / "rows")
    assert "unfinished/failed" in kept and "unfinished/000001.json" in kept and "tokenizer.json" in kept
    with pytest.raises(ConfigError, match="--shards=9999"):
        make(tmp_path / "rows", sources[0], shards=9999)
    assert content(tmp_path / "rows") == kept
    make(tmp_path / "rows", sources[2], shards=2, tokenizer="bpe:300")
    make(tmp_path / "fresh", sources[2], shards=2, tokenizer="bpe:300")
    assert content(tmp_path / "rows") == content(tmp_path / "fresh")


def test_who_works_on_after_a_failure_is_not_swept_away(sources, tmp_path, monkeypatch):
    monkeypatch.setattr(writer, "_prepare", lambda *args: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        make(tmp_path / "rows", sources[0])
    (tmp_path / "rows" / "unfinished" / "failed").touch()
    with pytest.raises(KeyboardInterrupt):  # at work again
        make(tmp_path / "rows", sources[0])
    with pytest.raises(ConfigError, match="holds rows prepared with"):
        make(tmp_path / "rows", sources[2])


def test_a_folder_of_packed_lines(sources, tmp_path):
    (tmp_path / "web").mkdir()
    for number, name in enumerate(("a", "b")):
        lines = "".join(json.dumps({"text": text}) + "\n" for text in paragraphs(60, number))
        (tmp_path / "web" / f"{name}.jsonl.gz").write_bytes(gzip.compress(lines.encode()))
    make(tmp_path / "rows", *names_of(f"{tmp_path}/web"))
    make(tmp_path / "same", *names_of(f"{tmp_path}/web/*.jsonl.gz"))
    assert content(tmp_path / "rows") == content(tmp_path / "same")
