"""Pieces of a source: together they are its documents, wherever the cuts fall."""

import gzip
import json

import pytest

from mdlm_jax.config import ConfigError, DataConfig
from mdlm_jax.data import pieces
from mdlm_jax.data.several import names_of, open_sources
from mdlm_jax.data.sources import open_source

PARAGRAPHS = [f"paragraph {i} with an é, 漢字 and 🙂\r\n" * (1 + i % 4) + ("\n" if i % 3 else "\r") for i in range(900)]


def write_parquet(path, texts, rows=7):
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    parquet.write_table(pyarrow.table({"n": list(range(len(texts))), "body": texts}), path, row_group_size=rows)


@pytest.fixture
def root(tmp_path):
    (tmp_path / "book.txt").write_bytes("".join(PARAGRAPHS).encode())
    lines = [json.dumps({"text": text}, ensure_ascii=False) for text in PARAGRAPHS[:200]]
    lines[5] = ""  # blank lines count, but are no documents
    (tmp_path / "lines.jsonl").write_text("\n".join(lines), encoding="utf-8")  # no line end at the end
    (tmp_path / "packed.jsonl.gz").write_bytes(gzip.compress("\n".join(lines).encode()))
    (tmp_path / "folder").mkdir()
    for i in range(30):
        (tmp_path / "folder" / f"{i}.txt").write_text(PARAGRAPHS[i], newline="")
    (tmp_path / "folder" / "binary").write_bytes(b"\0\xff")
    write_parquet(tmp_path / "table.parquet", [*PARAGRAPHS[:100], None, ""])
    return tmp_path


def opened(root, name):
    fields = {"text_field": "body"} if name.endswith(".parquet") else {}
    return open_source(DataConfig(source=str(root / name), **fields))


@pytest.mark.parametrize("name", ["book.txt", "lines.jsonl", "packed.jsonl.gz", "folder", "table.parquet"])
@pytest.mark.parametrize("size", [1, 700, 5000, 1 << 30])
def test_together_they_are_the_source(root, name, size):
    source = opened(root, name)
    found = pieces.cut(source, size)
    if size == 1 and not name.endswith(".gz"):
        assert len(found) > 10
    if size == 1 << 30:
        assert len(found) == 1
    documents = [document for piece in found for document in pieces.read(source, piece)]
    assert documents == list(opened(root, name).read(lambda name: True))
    assert len({document.name for document in documents}) == len(documents) > 20


def test_pieces_are_read_in_any_order(root):
    source = opened(root, "book.txt")
    found = pieces.cut(source, 3000)
    texts = {piece: "".join(d.text for d in pieces.read(source, piece)) for piece in reversed(found)}
    assert "".join(texts[piece] for piece in found).encode() == (root / "book.txt").read_bytes()


def test_bytes_that_are_not_utf8_are_told_when_the_file_is_cut(root):
    (root / "bad.txt").write_bytes(b"good\n" * 5000 + b"\xff\n")
    with pytest.raises(ConfigError, match=r"bad\.txt.*is not UTF-8"):
        pieces.cut(opened(root, "bad.txt"), pieces.SIZE)


def test_parquet_without_the_column_or_no_parquet(root):
    with pytest.raises(ConfigError, match="data.text_field='text': .* no such column; its columns are n, body"):
        open_source(DataConfig(source=str(root / "table.parquet")))
    (root / "torn.parquet").write_bytes((root / "table.parquet").read_bytes()[:-9])
    with pytest.raises(ConfigError, match=r"torn\.parquet.* is no whole parquet file"):
        open_source(DataConfig(source=str(root / "torn.parquet")))
    with pytest.raises(ConfigError, match="holds int there, not text"):
        list(open_source(DataConfig(source=str(root / "table.parquet"), text_field="n")).read(lambda name: True))


def test_names_lists_and_patterns(root):
    (root / "a,b.txt").write_text("x")
    assert names_of(str(root / "a,b.txt")) == [str(root / "a,b.txt")]
    assert names_of("stdlib,tfds:x/y") == ["stdlib", "tfds:x/y"]
    assert names_of(f"{root}/folder/1*.txt,stdlib") == sorted(str(p) for p in root.glob("folder/1*.txt")) + ["stdlib"]
    for spec, said in (("a,,b", "empty name"), (f"{root}/none*.txt", "no file fits"), ("a,b,a", "'a' twice")):
        with pytest.raises(ConfigError, match=said):
            names_of(spec)


def open_several(root, *names, text_field="text", data_dir=""):
    paths = [name if ":" in name else str(root / name) for name in names]
    return open_sources(paths, 16, text_field, data_dir, 0.2)


def test_several_sources_are_one_after_the_other(root):
    several = open_several(root, "lines.jsonl", "folder")
    names = [d.name for d in several.read(lambda name: True)]
    assert names[:2] == ["lines.jsonl#1", "lines.jsonl#2"] and names[-1] == "9.txt"
    assert several.skipped == {"binary"}
    parted = [[d.name for d in several.documents(split)] for split in ("train", "valid")]
    assert sorted(parted[0] + parted[1]) == sorted(names) and all(parted)


def test_fields_that_no_source_reads_are_refused(root):
    for fields, said in (({"text_field": "body"}, "--text_field=body"), ({"data_dir": "d"}, "--data_dir=d")):
        with pytest.raises(ConfigError, match=said):
            open_several(root, "book.txt", "folder", **fields)
    with pytest.raises(ConfigError, match="language:hmm: holds no text"):
        open_several(root, "book.txt", "language:hmm")


def test_a_folder_of_records_is_its_files(tmp_path):
    for name in ("b.jsonl.gz", "sub/a.json.gz"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(gzip.compress(json.dumps({"text": name}).encode()))
    (tmp_path / "_SUCCESS").touch()
    (tmp_path / ".hidden").write_text("x")
    files = [str(tmp_path / name) for name in ("b.jsonl.gz", "sub/a.json.gz")]
    assert names_of(str(tmp_path)) == files and names_of(f"stdlib,{tmp_path}/") == ["stdlib", *files]
    assert [d.text for d in open_sources(files, 16, "text", "", 0.2).read(lambda name: True)] == ["b.jsonl.gz",
                                                                                                "sub/a.json.gz"]
    (tmp_path / "README.md").write_text("x")
    assert names_of(str(tmp_path)) == [str(tmp_path)]  # and then it is refused by name
    with pytest.raises(ConfigError, match=r"holds files of records, as b.jsonl.gz.* as in .*/\*.jsonl.gz"):
        open_sources([str(tmp_path)], 16, "text", "", 0.2)
