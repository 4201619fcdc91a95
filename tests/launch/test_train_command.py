"""``python -m launch.train`` as a user meets it: exit status, one line of error, nothing written, no jax."""

import json
import os
import re
import resource
import signal
import subprocess
import time

import pytest

import launch
from launch import train
from mdlm_jax.config import RunConfig, to_dict
from tests.launch.commands import HEAVY, assert_refused, command, environment, outcome, run, snapshot

MODULE = "launch.train"
START = ["--config=quickstart", "--workdir=new"]


def test_help_is_quick_and_complete(tmp_path):
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    result = run(MODULE, "--help", cwd=tmp_path)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert (result.status, result.err) == (0, "") and snapshot(tmp_path) == {}
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 1.0
    assert not result.imported.intersection(HEAVY)
    for flag in train.FLAGS:
        assert f"--{flag.name}" in result.out
    for text in (
        "python -m launch.train --config=quickstart",
        "--config.train.steps=1000",
        "exit status",
        "quickstart",
    ):
        assert text in result.out


def test_dry_run_prints_what_would_run(tmp_path):
    result = run(
        MODULE,
        "--config.train.steps",
        "700",
        "--config=quickstart",
        "--config.process.mixing=0.1",
        "--dry_run",
        cwd=tmp_path,
    )
    assert result.status == 0 and snapshot(tmp_path) == {}
    assert re.fullmatch(r"all right: at most [23],\d{3},\d{3} parameters, 1,433,600 tokens in 700 steps, "
                        r"at most \d\.\d\de\+13 FLOPs", result.err)
    printed = json.loads(result.out)
    assert printed["train"]["steps"] == 700 and printed["process"]["mixing"] == 0.1
    assert {name: set(section) for name, section in printed.items()} == {
        name: set(section) for name, section in to_dict(RunConfig()).items()
    }
    assert not result.imported.intersection(HEAVY)


@pytest.mark.parametrize(
    ("arguments", "fragments"),
    [
        ([], ["--config is missing", "--config=quickstart"]),
        (["--config=quickstart"], ["--workdir is missing", "--workdir=runs/first"]),
        (["--config=quickstart", "--workdir="], ["--workdir is missing"]),
        (["--config=quikstart", "--workdir=new"], ["quikstart", "no such file", "did you mean quickstart?"]),
        (["--config=bad.py", "--workdir=new"], ["bad.py:1: NameError"]),
        ([*START, "--config.train.stepz=3"], ["did you mean --config.train.steps?"]),
        ([*START, "--config.trian.clip_norm=3"], ["no such section", "clip_norm?"]),
        ([*START, "--config.train.steps=many"], ["=many", "a whole number"]),
        ([*START, "--config.train.steps=-1"], ["train.steps=-1", "must be positive"]),
        ([*START, "--config.process.mixing=1.5"], ["process.mixing=1.5", "[0, 1]"]),
        ([*START, "--config.process.mixing=nan"], ["process.mixing=nan"]),
        ([*START, "--config.model.heads=999"], ["model.heads=999", "must divide"]),
        ([*START, "--config.data.source=gone.txt"], ["gone.txt", "no such file"]),
        (
            [*START, "--config.data.source=bad.py", "--config.data.tokenizer=byte"],
            ["'bad.py': 5 bytes of text are too few", "16 training rows (train.batch_size)", "(data.length)"],
        ),
        ([*START, "--config.data.tokenizer=gone.json"], ["gone.json", "not a file"]),
        (
            [*START, "--config.data.source=language:klingon", "--config.data.tokenizer=byte"],
            ["klingon", "hmm"],
        ),
        ([*START, "--config.data.tokenizer=bpe:5"], ["data.tokenizer='bpe:5'", "bpe:4096"]),
        (["--config=quickstart", "--workdir=bad.py"], ["bad.py is not a folder"]),
        (["--config=quickstart", "--workdir=used"], ["holds another run", "model.layers is 99 there"]),
        (["--config=quickstart", "--wrokdir=new"], ["did you mean --workdir?"]),
        (["--config=" + "x" * 300 + ".py", "--workdir=new"], ["File name too long"]),
        (["train"], ["'train': is not a flag"]),
    ],
)
def test_mistakes(arguments, fragments, tmp_path):
    (tmp_path / "bad.py").write_text("oops\n")
    (tmp_path / "used" / "checkpoints" / "00000500").mkdir(parents=True)
    stored = to_dict(RunConfig())
    stored["model"]["layers"] = 99
    (tmp_path / "used" / "config.json").write_text(json.dumps(stored))
    before = snapshot(tmp_path)
    assert_refused(run(MODULE, *arguments, cwd=tmp_path), *fragments)
    assert snapshot(tmp_path) == before


def test_a_missing_tfds_data_dir_is_one_line(tmp_path):
    """tfds itself must be imported to know; jax and TensorFlow need not."""
    result = run(
        MODULE,
        *START,
        "--config.data.source=tfds:lm1b",
        f"--config.data.data_dir={tmp_path}",
        cwd=tmp_path,
    )
    assert result.status == 2 and len(result.err.splitlines()) == 1 and "not prepared" in result.err
    assert not result.imported.intersection({"jax", "tensorflow"}) and snapshot(tmp_path) == {}


def test_interrupt_is_130_without_a_traceback(tmp_path):
    (tmp_path / "slow.py").write_text("import pathlib, time\npathlib.Path('started').touch()\ntime.sleep(60)\n")
    process = subprocess.Popen(
        command(MODULE, "--config=slow.py", "--workdir=new"),
        cwd=tmp_path,
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a suite in the background inherits "ignore"
    )
    deadline = time.monotonic() + 60
    while not (tmp_path / "started").exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    result = outcome(process.returncode, out, err)
    assert (result.status, result.out, result.err) == (130, "", "interrupted")


def test_a_closed_pipe_is_no_error(tmp_path):
    reading, writing = os.pipe()
    os.close(reading)
    done = subprocess.run(
        command(MODULE, "--help"),
        cwd=tmp_path,
        env=environment(),
        stdout=writing,
        stderr=subprocess.PIPE,
        text=True,
        timeout=60,
    )
    os.close(writing)
    result = outcome(done.returncode, "", done.stderr)
    assert (result.status, result.err) == (0, "")


def test_the_run_receives_config_and_workdir(tmp_path, monkeypatch):
    class Recorder:
        calls = []

        def main(self, *arguments):
            self.calls.append(arguments)

    monkeypatch.setattr(launch, "run_train", Recorder(), raising=False)
    arguments = ["--config=quickstart", f"--workdir={tmp_path}/new", "--config.train.steps=300"]
    assert train.main(arguments) == 0
    ((config, workdir, profile),) = Recorder.calls
    assert profile is None
    assert isinstance(config, RunConfig) and config.train.steps == 300
    assert workdir == tmp_path / "new" and not workdir.exists()


def test_a_dry_run_knows_that_the_template_needs_other_tokens(tmp_path, capsys):
    rows = [{"messages": [{"role": "user", "content": "hi" * n}, {"role": "assistant", "content": "ho"}]}
            for n in range(300)]
    (tmp_path / "chat.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    flags = ["--config=quickstart", f"--config.data.source={tmp_path / 'chat.jsonl'}", "--config.data.tokenizer=byte",
             "--config.data.messages_field=messages", "--dry_run"]
    assert train.main(flags) == 2
    assert "data.chat_template='chatml': data.tokenizer='byte' has no token for <|im_start|>" in capsys.readouterr().err
    assert train.main([*flags, "--config.data.chat_template=plain"]) == 0
