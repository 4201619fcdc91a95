import hashlib
import json
import os
import random
import subprocess
import sys

import pytest

from mdlm_jax.training import manifest


@pytest.fixture
def directory(tmp_path):
    root = tmp_path / "step"
    (root / "state" / "deep").mkdir(parents=True)
    (root / "state" / "deep" / "array").write_bytes(bytes(range(256)) * 9)
    (root / "state" / "empty").write_bytes(b"")
    (root / "config.json").write_text('{"a": 1}')
    manifest.write(root)
    return root


def flip_bit(path, bit):
    data = bytearray(path.read_bytes())
    data[bit // 8] ^= 1 << (bit % 8)
    path.write_bytes(bytes(data))


def test_a_whole_directory_has_no_problem_and_the_entries_are_true(directory):
    assert manifest.verify(directory) == []
    files = json.loads((directory / "manifest.json").read_text())["files"]
    assert set(files) == {"state/deep/array", "state/empty", "config.json"}
    for name, entry in files.items():
        data = (directory / name).read_bytes()
        assert entry == {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}


def test_writing_again_gives_the_same_bytes(directory):
    before = (directory / "manifest.json").read_bytes()
    manifest.write(directory)
    assert (directory / "manifest.json").read_bytes() == before
    assert not list(directory.rglob("*.tmp"))


def test_flipped_bits_are_found_by_digest_and_only_by_digest(directory):
    rng = random.Random(0)
    for name in ("config.json", "state/deep/array"):
        path = directory / name
        bit = rng.randrange(path.stat().st_size * 8)
        flip_bit(path, bit)
        assert manifest.verify(directory) == [f"digest of {name} differs from manifest.json"]
        assert manifest.verify(directory, digests=False) == []
        flip_bit(path, bit)
    assert manifest.verify(directory) == []


def test_every_byte_of_the_manifest_itself_is_guarded(directory):
    path = directory / "manifest.json"
    for byte in range(path.stat().st_size):
        bit = 8 * byte + byte % 8
        flip_bit(path, bit)
        assert manifest.verify(directory, digests=False) == ["manifest.json is damaged"], f"bit {bit}"
        flip_bit(path, bit)
    assert manifest.verify(directory) == []


def test_each_kind_of_damage_is_named(directory):
    (directory / "config.json").write_text('{"a": 1')
    (directory / "state" / "empty").unlink()
    assert manifest.verify(directory) == [
        "size of config.json is 7, manifest.json says 8",
        "missing file state/empty",
    ]
    (directory / "manifest.json").unlink()
    assert manifest.verify(directory) == ["no manifest.json: the save never finished"]
    assert manifest.verify(directory / "nothing") == [f"{directory / 'nothing'} is not a directory"]


NONSENSE = [b"", b"[]", b"{}", b"\xff\xfe", b'{"files": 3}', b'{"files": {"a": null}}', b"null"]


@pytest.mark.parametrize("content", NONSENSE)
def test_nonsense_manifests_are_damage_not_crashes(directory, content):
    (directory / "manifest.json").write_bytes(content)
    assert manifest.verify(directory) == ["manifest.json is damaged"]


def test_files_outside_the_manifest_are_no_problem(directory):
    (directory / "notes.txt").write_text("mine")
    assert manifest.verify(directory) == []


def test_write_atomically_replaces_and_leaves_no_temporary(tmp_path):
    path = tmp_path / "file"
    manifest.write_atomically(path, "old")
    manifest.write_atomically(path, b"new\n")
    assert path.read_bytes() == b"new\n"
    assert os.listdir(tmp_path) == ["file"]


def test_the_module_needs_no_jax():
    code = "import sys, mdlm_jax.training.manifest; sys.exit('jax' in sys.modules or 'orbax' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
