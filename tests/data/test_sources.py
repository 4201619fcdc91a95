"""Documents from files, folders, JSON lines and the standard library, and their fixed split."""

import gzip
import hashlib
import json
import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mdlm_jax.config import ConfigError, DataConfig
from mdlm_jax.data import sources
from mdlm_jax.data.sources import Split, open_source, place


def names(source, split):
    return [document.name for document in source.documents(split)]


def all_documents(source):
    return list(source.read(lambda name: True))


def opened(path, **changes):
    return open_source(DataConfig(**{"source": str(path), "valid_fraction": 0.3} | changes))


def test_a_place_is_the_hash_of_the_name():
    assert place("some/name.py") == int(hashlib.sha256(b"some/name.py").hexdigest()[:16], 16)
    share = sum(place(str(i)) < 0.05 * 2**64 for i in range(20_000)) / 20_000
    assert abs(share - 0.05) < 5 * (0.05 * 0.95 / 20_000) ** 0.5


def test_names_that_are_no_unicode_have_a_place_too():
    assert 0 <= place(os.fsdecode(b"\xff.txt")) < 2**64


def held_out(sizes, valid_fraction, least_bytes):
    limit = Split(valid_fraction, least_bytes).limit(sizes)
    return {name for name in sizes if place(name) < limit}


@given(st.dictionaries(st.text(min_size=1, max_size=3), st.integers(1, 1000), min_size=2), st.floats(0.01, 0.5),
       st.integers(0, 2000))
def test_the_held_out_are_the_first_and_enough_and_never_all(sizes, fraction, least):
    found = held_out(sizes, fraction, least)
    usual = {name for name in sizes if place(name) < fraction * 2**64}
    order = sorted(sizes, key=place)
    assert found == set(order[: len(found)]) and (usual <= found or usual == set(sizes))
    if found < set(order[:-1]) and found != usual:  # no more than it takes
        extra = order[len(found) - 1]
        target = min(least, sum(sizes.values()) // 5)
        assert sum(sizes[name] for name in found - {extra}) < target <= sum(sizes[name] for name in found)


def test_a_small_source_holds_out_more_and_a_large_one_as_ever(tmp_path):
    """Two files, neither of which the hash of 1 % takes: the first is held out all the same, and one is left."""
    for name in ("a.txt", "b.txt"):
        (tmp_path / name).write_text("x" * 5000)
    first, second = sorted(("a.txt", "b.txt"), key=place)
    source = opened(tmp_path, valid_fraction=0.01)
    assert (names(source, "valid"), names(source, "train")) == ([first], [second])
    for i in range(400):
        (tmp_path / f"{i}.txt").write_text("x" * 5000)
    source = opened(tmp_path, valid_fraction=0.1)
    assert set(names(source, "valid")) == {p.name for p in tmp_path.iterdir() if place(p.name) < 0.1 * 2**64}


@pytest.fixture
def folder(tmp_path):
    for name in ("b/two.txt", "b/one.md", "a.txt", "c/d/three.py", ".git/config", "b/.hidden"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(f"text of {name}\r\n")
    (tmp_path / "picture.png").write_bytes(b"\x89PNG\xff\xfe")
    (tmp_path / "zeros.bin").write_bytes(b"a\0b")
    (tmp_path / "empty.txt").write_bytes(b"")
    return tmp_path


def test_folder_is_read_in_sorted_order_without_hidden_and_binary_files(folder):
    source = opened(folder)
    documents = all_documents(source)
    assert [d.name for d in documents] == ["a.txt", "b/one.md", "b/two.txt", "c/d/three.py", "empty.txt"]
    assert documents[1].text == "text of b/one.md\r\n"
    assert source.skipped == {"picture.png", "zeros.bin"}


def test_folder_passes_over_what_is_no_file(folder):
    (folder / "broken.txt").symlink_to(folder / "gone.txt")
    (folder / "loop").symlink_to(folder, target_is_directory=True)
    os.mkfifo(folder / "pipe.txt")
    (folder / "link.txt").symlink_to(folder / "a.txt")
    found = [d.name for d in all_documents(opened(folder))]
    assert found == ["a.txt", "b/one.md", "b/two.txt", "c/d/three.py", "empty.txt", "link.txt"]


def test_empty_documents_are_left_out(folder):
    source = opened(folder, valid_fraction=0.5)
    assert sorted(names(source, "train") + names(source, "valid")) == ["a.txt", "b/one.md", "b/two.txt", "c/d/three.py"]


def test_splits_are_disjoint_fixed_and_survive_new_documents(tmp_path):
    for i in range(50):
        (tmp_path / f"{i}.txt").write_text("x")
    first = opened(tmp_path)
    train, valid = names(first, "train"), names(first, "valid")
    assert train and valid and not set(train) & set(valid)
    assert set(train) | set(valid) == {f"{i}.txt" for i in range(50)}
    assert (names(first, "train"), names(opened(tmp_path, seed=5), "valid")) == (train, valid)
    for i in range(50, 90):
        (tmp_path / f"{i}.txt").write_text("x")
    assert set(valid) < set(names(opened(tmp_path), "valid"))
    assert set(valid) < set(names(opened(tmp_path, valid_fraction=0.9), "valid"))


def test_split_with_an_empty_side_says_what_to_do(tmp_path):
    (tmp_path / "only.txt").write_text("x")
    with pytest.raises(ConfigError, match="valid split holds no text .1 documents in all.; raise data.valid_fraction="):
        list(opened(tmp_path, valid_fraction=0.001).documents("valid"))
    with pytest.raises(ConfigError, match="train split holds no text .*; lower data.valid_fraction=0.999"):
        list(opened(tmp_path, valid_fraction=0.999).documents("train"))


def test_folder_of_binary_files_says_so(tmp_path):
    (tmp_path / "x.bin").write_bytes(b"\xff")
    with pytest.raises(ConfigError, match="1 documents in all, 1 of them skipped because they are not UTF-8"):
        list(opened(tmp_path, valid_fraction=1e-9).documents("train"))


@pytest.mark.parametrize(("make", "message"), [
    (lambda p: p / "nothing", "there is no such file or folder; choose an existing one, stdlib, tfds:NAME"),
    (lambda p: p, "there is no file to read"),
    (lambda p: (p / "empty.txt").touch() or p / "empty.txt", "the file is empty"),
])
def test_sources_that_are_not_there(make, message, tmp_path):
    path = make(tmp_path)
    with pytest.raises(ConfigError, match=message) as error:
        opened(path)
    assert repr(str(path)) in str(error.value)


@given(st.lists(st.sampled_from(["a", "line of text", "\n", "\r\n", "\r", "\n\n", "é" * 9, "東京 " * 5, " \t\n"]),
                max_size=60).map("".join))
def test_blocks_of_a_text_file_join_to_the_file(tmp_path_factory, tail):
    text = "start" + tail
    path = tmp_path_factory.mktemp("text") / "input.txt"
    path.write_bytes(text.encode())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sources, "_SMALLEST_BLOCK", 16)
        documents = all_documents(opened(path))
    assert "".join(d.text for d in documents) == text
    assert [d.name for d in documents] == [f"input.txt#{i}" for i in range(len(documents))]
    assert all(len(d.text) <= 5 * 16 for d in documents)


def test_blocks_end_at_blank_lines(tmp_path):
    paragraph = "some words in a line\n" * 50 + "\n"
    path = tmp_path / "book.txt"
    for copies, block in ((600, 16_384), (100, 100 * len(paragraph) // 32)):
        path.write_text(paragraph * copies)
        documents = all_documents(opened(path))
        assert len(documents) > 20
        assert all(d.text.endswith("\n\n") and block <= len(d.text) < block + len(paragraph) for d in documents[:-1])


def test_one_endless_line_is_cut_too(tmp_path):
    (tmp_path / "line.txt").write_text("é" * 300_000)
    documents = all_documents(opened(tmp_path / "line.txt"))
    assert max(len(d.text) for d in documents) <= 5 * 16_384
    assert sum(len(d.text) for d in documents) == 300_000


def test_text_file_that_is_not_utf8(tmp_path):
    (tmp_path / "latin.txt").write_bytes("café".encode("latin-1"))
    with pytest.raises(ConfigError, match="latin.txt': is not UTF-8 text .*convert it to UTF-8"):
        all_documents(opened(tmp_path / "latin.txt"))


def write_jsonl(path, lines):
    content = "".join(line + "\n" for line in lines).encode()
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)
    return path


@pytest.mark.parametrize("name", ["data.jsonl", "data.jsonl.gz"])
def test_json_lines(name, tmp_path):
    lines = [json.dumps({"text": f"row {i}", "n": i}) for i in range(3)]
    path = write_jsonl(tmp_path / name, [lines[0], "", lines[1], lines[2]])
    documents = all_documents(opened(path))
    assert [(d.name, d.text) for d in documents] == [(f"{name}#{n}", f"row {i}") for n, i in ((1, 0), (3, 1), (4, 2))]


def test_json_lines_with_another_field(tmp_path):
    path = write_jsonl(tmp_path / "qa.jsonl", [json.dumps({"question": "why?", "answer": "so"})])
    assert all_documents(opened(path, text_field="answer"))[0].text == "so"
    with pytest.raises(ConfigError, match="data.text_field='text': .*line 1 has no such .*are question, answer"):
        opened(path)


@pytest.mark.parametrize(("line", "message"), [
    ("{", "line 2: is not JSON"), ("[1]", "line 2: is a list, not an object"),
    ('{"text": 3}', "line 2 holds int there, not text; name a text field"),
    ('{"text": "\\ud800"}', "line 2: field 'text' is not valid Unicode"), ('{"other": 1}', "line 2 has no such field"),
])
def test_bad_json_lines_name_the_line(line, message, tmp_path):
    path = write_jsonl(tmp_path / "bad.jsonl", ['{"text": "fine"}', line])
    with pytest.raises(ConfigError, match=message):
        all_documents(opened(path))


@pytest.mark.parametrize("content", [b"not gzip at all", gzip.compress(b'{"text": "fine"}\n' * 9999)[:-20]])
def test_broken_gzip(content, tmp_path):
    (tmp_path / "x.jsonl.gz").write_bytes(content)
    with pytest.raises(ConfigError, match="is no whole gzip file"):
        all_documents(opened(tmp_path / "x.jsonl.gz"))


def test_standard_library():
    source = open_source(DataConfig())
    train, valid = list(source.documents("train")), list(source.documents("valid"))
    found = {d.name for d in train} | {d.name for d in valid}
    assert {"ast.py", "json/decoder.py", "asyncio/events.py"} <= found
    assert not any(part in ("test", "tests", "idle_test", "lib2to3", "site-packages", "__pycache__", "encodings")
                   for name in found for part in name.split("/"))
    assert len(found) == len(train) + len(valid) > 300
    assert sum(len(d.text) for d in train) > 5e6
    assert 0.01 < len(valid) / len(found) < 0.12
    assert [d.name for d in train] == sorted(d.name for d in train)


def test_standard_library_that_is_not_there(monkeypatch, tmp_path):
    for root in (tmp_path, tmp_path / "nowhere"):
        monkeypatch.setattr(sources.sysconfig, "get_path", lambda name, root=root: str(root))
        with pytest.raises(ConfigError, match="this Python keeps no .py files"):
            open_source(DataConfig())


@pytest.mark.parametrize(("names", "said"), (
    (("a.jsonl", "b.jsonl"), "holds files of records, as a.jsonl,"),
    (("a.parquet", "readme.txt"), "holds files of records, as a.parquet"),
    (("a.txt.gz", "b.txt.zst"), "a.txt.gz is compressed, and of compressed files only .jsonl.gz, .json.gz and"),
))
def test_a_folder_that_was_not_meant_as_texts_is_refused_by_name(tmp_path, names, said):
    for name in names:
        (tmp_path / name).write_text("x" * 100)
    with pytest.raises(ConfigError, match=said):
        opened(tmp_path)


def test_a_packed_file_among_texts_makes_no_folder_of_records(tmp_path):
    (tmp_path / "tests").mkdir()
    (tmp_path / "tests" / "a.json.gz").write_bytes(gzip.compress(b"{}"))
    with pytest.raises(ConfigError, match=r"as tests/a.json.gz.*as in \S*/tests/\*.json.gz"):
        opened(tmp_path)
    for name in "bc":
        (tmp_path / f"{name}.txt").write_text("text")
    assert [d.name for d in all_documents(opened(tmp_path))] == ["b.txt", "c.txt"]


def test_a_compressed_text_is_refused_by_name_and_one_among_texts_is_passed_over(tmp_path):
    (tmp_path / "a.txt.gz").write_bytes(gzip.compress(b"text"))
    with pytest.raises(ConfigError, match="a.txt.gz is compressed.*unpack it"):
        opened(tmp_path / "a.txt.gz")
    (tmp_path / "b.txt").write_text("text")
    (tmp_path / "c.jsonl").write_text("{}")
    assert [d.name for d in all_documents(opened(tmp_path))] == ["b.txt", "c.jsonl"]


def test_lines_of_a_json_gz(tmp_path):
    (tmp_path / "c4.json.gz").write_bytes(gzip.compress(b'{"text": "one"}\n{"text": "two"}\n'))
    assert [d.text for d in all_documents(opened(tmp_path / "c4.json.gz"))] == ["one", "two"]
