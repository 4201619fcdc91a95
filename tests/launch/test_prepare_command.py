"""launch.prepare in real processes: what it makes, what it survives, and errors of one line."""

import os
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest

from mdlm_jax.config import DataConfig
from mdlm_jax.data.pipeline import build
from tests.data.prepared_support import content, paragraphs, write_sources
from tests.launch.commands import assert_refused, command, environment, run
from tests.marks import slow_unless


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    """The folder of the sources, with the rows of all of them in ``rows``."""
    root = tmp_path_factory.mktemp("command")
    done = run("launch.prepare", f"--source={','.join(write_sources(root))}", f"--out={root / 'rows'}", "--length=32",
               "--workers=2", "--shards=2")
    assert done.status == 0, done
    assert "train " in done.out and "in 2 shards" in done.out and f"prepared:{root / 'rows'}" in done.out
    assert "tokens: 4/4 pieces (100%)" in done.err and "shards: 3/3 shards (100%)" in done.err
    assert not done.imported.intersection({"jax", "tensorflow", "tensorflow_datasets", "torch"})
    return root


def test_what_it_makes_can_be_trained_on(rows):
    built = build(DataConfig(source=f"prepared:{rows / 'rows'}", length=32), 8)
    assert built.train.num_rows > 500 and not (rows / "rows" / "unfinished").exists()


def test_the_same_command_again_does_nothing(rows):
    before = content(rows / "rows")
    sources = ",".join(str(rows / name) for name in ("book.txt", "folder", "lines.jsonl", "packed.jsonl.gz"))
    done = run("launch.prepare", f"--source={sources}", f"--out={rows / 'rows'}", "--length=32", "--shards=2")
    assert done.status == 0 and "tokens:" not in done.err
    assert content(rows / "rows") == before


def test_a_dry_run_writes_nothing(rows):
    before = content(rows)
    done = run("launch.prepare", f"--source={rows}/folder,{rows}/*.jsonl", "--tokenizer=bpe:300", "--dry_run")
    assert done.status == 0, done
    assert "FileTree, 1 pieces" in done.out and "JsonLines, 1 pieces" in done.out and "bpe:300" in done.out
    assert content(rows) == before


def test_verify_reads_everything(rows, tmp_path):
    shutil.copytree(rows / "rows", tmp_path / "rows")
    done = run("launch.prepare", "--verify", f"--out={tmp_path / 'rows'}")
    assert done.status == 0 and "3 shards" in done.out and "whole" in done.out
    for number in (0, 1):
        shard = tmp_path / "rows" / f"train-0000{number}-of-00002.array_record"
        data = bytearray(shard.read_bytes())
        data[len(data) // 3] ^= 1
        shard.write_bytes(bytes(data))
    done = run("launch.prepare", "--verify", f"--out={tmp_path / 'rows'}")
    assert_refused(done, "train-00000-of-00002.array_record, train-00001-of-00002.array_record")


def children(pid: int) -> list[int]:
    done = subprocess.run(["ps", "-o", "pid=", "--ppid", str(pid)], capture_output=True, text=True)
    return [int(word) for word in done.stdout.split()]


def alive(pid: int) -> bool:
    try:
        return "Z" not in Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False


@pytest.fixture(scope="module")
def slow_flags(tmp_path_factory):
    """Twelve sources and a tokenizer slow enough to be caught at work; the folder holds their rows in ``whole``."""
    root = tmp_path_factory.mktemp("slow")
    for number in range(12):
        (root / f"{number:02d}.txt").write_text("".join(paragraphs(1200, number)))
    small = run("launch.prepare", f"--source={root / '00.txt'}", f"--out={root / 'small'}", "--tokenizer=bpe:300")
    flags = [f"--source={root}/*.txt", f"--tokenizer={root / 'small' / 'tokenizer.json'}", "--length=32", "--shards=9",
             "--workers=2"]
    whole = run("launch.prepare", *flags, f"--out={root / 'whole'}")
    assert small.status == whole.status == 0, whole
    return flags, content(root / "whole")


@pytest.mark.skipif(not Path("/proc").is_dir() or not shutil.which("ps"), reason="needs /proc and ps")
@pytest.mark.parametrize("pattern", slow_unless(["*.train", "train-*.json"], "*.train"))
def test_a_kill_in_the_middle_costs_only_what_was_not_finished(slow_flags, tmp_path, pattern):
    """SIGKILL while pieces, or shards, are being made: no process stays, and the next start ends in the same bytes."""
    flags, whole = slow_flags
    unfinished = tmp_path / "rows" / "unfinished"
    process = subprocess.Popen(command("launch.prepare", *flags, f"--out={tmp_path / 'rows'}"), env=environment(),
                               stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 120
        while len(list(unfinished.glob(pattern))) < 3 and time.monotonic() < deadline and process.poll() is None:
            time.sleep(0.002)
        workers = children(process.pid)
    finally:
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
    assert process.returncode == -signal.SIGKILL and not (tmp_path / "rows" / "manifest.json").exists()
    deadline = time.monotonic() + 20
    while any(map(alive, workers)) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not any(map(alive, workers))
    finished = len(list(unfinished.glob("0*.json"))) + len(list(unfinished.glob("train-*.json")))
    assert 0 < finished
    again = run("launch.prepare", *flags, f"--out={tmp_path / 'rows'}")
    assert again.status == 0, again
    assert content(tmp_path / "rows") == whole


def test_mistakes_are_told_in_one_line(tmp_path):
    (tmp_path / "book.txt").write_text("".join(paragraphs(60)))
    (tmp_path / "empty.txt").write_text("")
    book = f"--source={tmp_path / 'book.txt'}"
    out = f"--out={tmp_path / 'rows'}"
    for arguments, fragments in [
        ([out], ["--source is missing"]),
        ([book], ["--out is missing"]),
        (["--source=/nowhere", out], ["--source='/nowhere'", "no such file or folder"]),
        ([f"--source={tmp_path / 'empty.txt'}", out], ["the file is empty"]),
        ([f"--source={tmp_path}/*.csv", out], ["no file fits this pattern"]),
        ([book, out, "--workers=0"], ["--workers=0", "must be positive"]),
        ([book, out, "--length=1"], ["--length=1", "at least 2"]),
        ([book, out, "--tokenizer=bpe"], ["--tokenizer='bpe'", "bpe:VOCAB_SIZE"]),
        ([book, out, "--tokenizer=nowhere.json"], ["nowhere.json", "is not a file"]),
        ([book, out, "--tokeniser=byte"], ["did you mean --tokenizer"]),
        ([book, "--out=gs://bucket/rows"], ["--out=gs://bucket/rows"]),
        ([book, f"--out={tmp_path / 'book.txt'}"], ["is not a folder"]),
        ([book, out, "--verify"], ["--source", "no meaning with --verify"]),
        (["--verify", out], ["there is no such folder"]),
    ]:
        assert_refused(run("launch.prepare", *arguments), *fragments)
    assert not (tmp_path / "rows").exists()


def test_help():
    done = run("launch.prepare", "--help")
    assert done.status == 0 and "--tokenizer" in done.out and "prepared:DIR" in done.out


def test_training_refuses_what_does_not_fit_before_jax(rows):
    train = ("launch.train", "--config=quickstart", "--dry_run", f"--config.data.source=prepared:{rows / 'rows'}")
    assert_refused(run(*train), "data.length=128", "32 tokens")
    assert_refused(run(*train, "--config.data.length=32"), "data.tokenizer='bpe:2048'", "'byte'")
    fits = run(*train, "--config.data.length=32", "--config.data.tokenizer=byte")
    assert fits.status == 0 and "jax" not in fits.imported, fits
