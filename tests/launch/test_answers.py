"""launch.sample over a file of prompts: each answered once, in real processes that are killed."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest

from launch import sample
from mdlm_jax.config import ConfigError
from mdlm_jax.generation.answer_file import Answers
from mdlm_jax.loading import save_checkpoint
from tests.generation.models import bytes_model, tokens_model
from tests.launch import commands
from tests.models.hf.support import GOLDEN

KEYS = [(index, sample) for index in range(5) for sample in range(2)]
JOB = {"seed": 1, "count": 5}


def line(key):
    return {"index": key[0], "sample": key[1], "text": "äöü\n" * key[0]}


def lines_of(path):
    return [json.loads(text) for text in path.read_text().splitlines()]


# The files -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("counts", [(1, 1), (1, 3), (3, 2), (4, 1)])
def test_any_number_of_processes_after_any_other(counts, tmp_path):
    """Each of the first answers one prompt and dies, with a line half written."""
    output, first, then = tmp_path / "out.jsonl", *counts
    for number in range(first):
        one = Answers(output, JOB, KEYS, number, first)
        (key, *_) = one.open()
        one.add([line(key)])
        with open(commands.part_of(output, number), "a") as file:
            file.write('{"index": 4, "sam')
    assert not output.exists()
    told = []
    for number in range(then):
        one = Answers(output, JOB, KEYS, number, then)
        left = one.open()
        told += left
        one.add([line(key) for key in left])
        missing = one.join()
        assert (missing == 0) == (number == then - 1) == output.exists()
    assert len(told) == len(set(told)) == len(KEYS) - first
    assert [(found["index"], found["sample"]) for found in lines_of(output)] == KEYS
    assert lines_of(output) == [line(key) for key in KEYS]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out.jsonl", "out.jsonl.job.json"]
    again = Answers(output, JOB, KEYS)
    assert again.open() == [] and again.join() == 0


def test_files_of_another_command_are_left_alone(tmp_path):
    output = tmp_path / "out.jsonl"
    Answers(output, JOB | {"seed": 3}, KEYS).open()  # and answered nothing
    one = Answers(output, JOB, KEYS)
    one.open()
    one.add([line(KEYS[0])])
    with pytest.raises(ConfigError, match="holds answers of another job: seed is 1 there and 2 here"):
        Answers(output, JOB | {"seed": 2}, KEYS).check()
    foreign = tmp_path / "mine.jsonl"
    foreign.write_text("{}\n")
    with pytest.raises(ConfigError, match="mine.jsonl: is there already, and no mine.jsonl.job.json says"):
        Answers(foreign, JOB, KEYS).check()
    assert foreign.read_text() == "{}\n"


def test_a_line_that_a_power_cut_spoiled_is_answered_again(tmp_path):
    one = Answers(tmp_path / "out.jsonl", JOB, KEYS)
    one.open()
    one.add([line(KEYS[0])])
    with open(commands.part_of(tmp_path / "out.jsonl"), "ab") as file:
        file.write(b"\0\0\0\n[]\n\xff\n")
    assert one.open() == KEYS[1:]
    one.add([line(key) for key in KEYS[1:]])
    assert one.join() == 0 and len(lines_of(tmp_path / "out.jsonl")) == len(KEYS)


def test_what_json_writes_otherwise_is_taken_up_again(tmp_path):
    """Tuples come back as lists, and half of a UTF-16 pair in a prompt's line has no UTF-8."""
    job, lines = JOB | {"defer": (7, 8)}, [line(key) | {"id": "\ud83d"} for key in KEYS]
    Answers(tmp_path / "out.jsonl", job, KEYS).open()
    one = Answers(tmp_path / "out.jsonl", job, KEYS)
    one.add(lines[:1])
    one = Answers(tmp_path / "out.jsonl", job, KEYS)
    assert one.open() == KEYS[1:]
    one.add(lines[1:])
    assert one.join() == 0 and lines_of(tmp_path / "out.jsonl") == lines


def test_another_field_of_the_same_file_is_another_command(tmp_path):
    (tmp_path / "prompts.jsonl").write_text('{"prompt": [1], "question": [2]}\n')
    flags = {"checkpoint": str(GOLDEN / "llada_ckpt"), "prompts": str(tmp_path / "prompts.jsonl"), "max_length": 8,
             "output": str(tmp_path / "out.jsonl")}
    first, other = (sample.job(sample.read_options(flags | {"prompt_field": name})) for name in ("prompt", "question"))
    first.open()
    first.add([line((0, 0))])
    with pytest.raises(ConfigError, match="another job: its prompts, or the fields beside them, are others"):
        other.check()


def test_a_process_that_opens_while_another_joins_answers_nothing_again(tmp_path, monkeypatch):
    output = tmp_path / "out.jsonl"
    one = Answers(output, JOB, KEYS)
    one.add([line(key) for key in one.open()])
    late, mkdir = Answers(output, JOB, KEYS, 1, 2), type(tmp_path).mkdir
    monkeypatch.setattr(type(tmp_path), "mkdir", lambda *args, **options: (one.join(), mkdir(*args, **options)))
    assert late.open() == [] and late.done == set(KEYS) and late.join() == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out.jsonl", "out.jsonl.job.json"]


def test_parts_that_a_kill_left_behind_are_removed(tmp_path, monkeypatch):
    one = Answers(tmp_path / "out.jsonl", JOB, KEYS)
    one.add([line(key) for key in one.open()])
    monkeypatch.setattr("shutil.rmtree", lambda *args, **options: None)
    one.join()
    monkeypatch.undo()
    assert (tmp_path / "out.jsonl.parts").exists() and Answers(tmp_path / "out.jsonl", JOB, KEYS).open() == []
    assert not (tmp_path / "out.jsonl.parts").exists() and len(lines_of(tmp_path / "out.jsonl")) == len(KEYS)


# The command ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A model of bytes that writes a and b, and 200 prompts."""
    folder = tmp_path_factory.mktemp("answers")
    save_checkpoint(folder / "model", bytes_model(), b'{"mdlm_jax_tokenizer": "byte"}')
    rows = [{"id": f"q{i}", "prompt": "xyz"[: 1 + i % 3] * (1 + i % 5)} for i in range(200)]
    (folder / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def arguments(folder, output, **flags):
    flags = {"checkpoint": folder / "model", "prompts": folder / "prompts.jsonl", "output": output, "new_tokens": 8,
             "steps": 2, "batch_size": 4} | flags
    return [f"--{name}={value}" for name, value in flags.items()]


@pytest.mark.slow
def test_killed_and_resumed_by_more_processes_each_prompt_is_answered_once(folder, tmp_path):
    output = tmp_path / "killed.jsonl"
    command = [sys.executable, "-m", "launch.sample", *arguments(folder, output)]
    first = subprocess.Popen(command, cwd=commands.ROOT, env=commands.environment(), stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 300
    while not (part := commands.part_of(output)).exists() or len(part.read_bytes()) < 2000:
        assert first.poll() is None and time.monotonic() < deadline, first.communicate()
        time.sleep(0.002)
    first.send_signal(signal.SIGKILL)
    first.wait()
    answered = len(part.read_bytes().splitlines())
    assert 8 <= answered < 200 and not output.exists()

    done = subprocess.run(
        [sys.executable, "-m", "launch.local", "--processes=2", "--devices_per_process=1", "--", *command],
        cwd=commands.ROOT, env=commands.environment(), capture_output=True, text=True, timeout=500,
    )
    assert done.returncode == 0, done.stderr
    assert "200 of 200 answers" in done.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == ["killed.jsonl", "killed.jsonl.job.json"]

    whole = tmp_path / "whole.jsonl"
    assert sample.main(arguments(folder, whole, batch_size=64)) == 0  # at one go, in other batches
    assert lines_of(output) == lines_of(whole)
    found = lines_of(whole)
    assert [one["index"] for one in found] == list(range(200)) and found[7]["id"] == "q7"
    assert all(set(one["text"]) <= {"a", "b"} and one["finish"] == "length" and one["tokens"] == 8 for one in found)
    assert len({one["text"] for one in found}) > 100
    before = os.stat(whole).st_mtime_ns
    assert sample.main(arguments(folder, whole)) == 0 and os.stat(whole).st_mtime_ns == before
    assert sample.main(arguments(folder, whole, temperature=0.5)) == 2


def test_text_files_samples_and_stop_strings(folder, tmp_path, capsys):
    (tmp_path / "prompts.txt").write_text("one\n\ntwo\r\n", encoding="utf-8-sig")
    output = tmp_path / "out.jsonl"
    flags = dict(prompts=tmp_path / "prompts.txt", num=3, stop='["bbb", "aba"]', decoder="low_confidence",
                 temperature=1, remasking="random", block_length=4)
    assert sample.main(arguments(folder, output, **flags)) == 0
    found = lines_of(output)
    assert [(one["prompt"], one["index"], one["sample"]) for one in found] == [
        (text, i, k) for i, text in enumerate(("one", "two")) for k in range(3)
    ]
    assert len({one["text"] for one in found}) > 1
    assert all("bbb" not in one["text"] and (one["finish"] == "stop" or len(one["text"]) == 8) for one in found)
    assert "6 of 6 answers" in capsys.readouterr().err


def test_a_hugging_face_directory_without_a_tokenizer(tmp_path):
    (tmp_path / "prompts.jsonl").write_text('{"q": [3, 1, 4]}\n{"q": "1 5 9"}\n')
    output = tmp_path / "out.jsonl"
    flags = [f"--checkpoint={GOLDEN / 'llada_ckpt'}", f"--prompts={tmp_path / 'prompts.jsonl'}", "--prompt_field=q",
             f"--output={output}", "--new_tokens=4"]
    assert sample.main(flags) == 0
    found = lines_of(output)
    assert [len(one["token_ids"]) for one in found] == [4, 4] and found[0]["text"] is None
    assert found[0]["q"] == [3, 1, 4] and found[0]["forwards"] == 4


def test_an_empty_prompt_is_answered_or_refused_before_the_others(tmp_path, capsys, monkeypatch):
    (tmp_path / "prompts.jsonl").write_text('{"prompt": [3, 1]}\n{"prompt": ""}\n')
    output = tmp_path / "out.jsonl"
    flags = [f"--prompts={tmp_path / 'prompts.jsonl'}", f"--output={output}", "--new_tokens=4", "--batch_size=1"]
    assert sample.main([f"--checkpoint={GOLDEN / 'llada_ckpt'}", *flags]) == 0
    assert [len(one["token_ids"]) for one in lines_of(output)] == [4, 4]
    save_checkpoint(tmp_path / "shifted", tokens_model(family="llama", logit_shift=True))
    monkeypatch.setattr("mdlm_jax.load", None)
    flags[1] = f"--output={tmp_path / 'other.jsonl'}"
    assert sample.main([f"--checkpoint={tmp_path / 'shifted'}", *flags]) == 2
    assert "--prompts, prompt 1: is empty, and this network scores a token from" in capsys.readouterr().err
    assert not (tmp_path / "other.jsonl.job.json").exists()


@pytest.mark.parametrize(("text", "flags", "fragments"), [
    ('{"prompt": "x"}\n{"prompt": \n', [], ["prompts.jsonl, line 2", "is not JSON"]),
    ('{"prompt": "x"}\n{"question": "y"}\n', [], ["line 2", "no object with the field 'prompt'", "--prompt_field"]),
    ('{"prompt": 3}\n', [], ["line 1", "must be a string, or a list of token ids"]),
    ('{"text": "x"}\n', ["--prompt_field=text"], ["line 1: has the field 'text', which the answer", "name it"]),
    ('{"prompt": "x"}\n{"prompt": "x", "index": 7}\n', [], ["line 2: has the field 'index'"]),
    ('{"prompt": [1, 2]}\n{"prompt": [300, 1]}\n', [], ["--prompts, prompt 1: holds the id 300; ids must"]),
    ('{"prompt": [1, 2]}\n{"prompt": [1, 256]}\n', [], ["--prompts, prompt 1: holds the mask, 256"]),
    ('{"prompt": "x"}\n', ["--decoder=threshold", "--threshold=2"], ["threshold=2"]),
    ('{"prompt": "x"}\n', ["--cache=foo"], ["cache='foo': choose one of none"]),
    ('{"prompt": "x"}\n', ["--grid=foo"], ["grid='foo': choose one of uniform"]),
    ('{"prompt": "x"}\n', ["--block_length=3", "--decoder=margin", "--new_tokens=8", "--steps=2"],
     ["steps=2: must be a multiple of the 3 blocks"]),
    ("\n\n", [], ["prompts.jsonl: holds no prompts"]),
    ('{"prompt": "x"}\n', ["--prompt=y"], ["--prompt=y: does not go with --prompts"]),
    ('{"prompt": "x"}\n', ["--picture=a.png"], ["--picture=a.png: does not go with --prompts"]),
    ('{"prompt": "x"}\n', ["--length=9"], ["--length=9: does not go with --prompts"]),
    ('{"prompt": "x"}\n', ["--new_tokens=0"], ["--new_tokens=0: must be at least 1"]),
    ('{"prompt": "x"}\n', ["--new_tokens=400"], ["prompt 0 is 1 tokens long, which leaves 127 of the 128 positions"]),
    ('{"prompt": "x"}\n', ["--decoder=best"], ["--decoder='best': choose one of ancestral, first_hitting"]),
    ('{"prompt": "x"}\n', ["--remasking=random"], ["--remasking=random: the decoder ancestral has no such number"]),
    ('{"prompt": "x"}\n', ["--eta=2", "--decoder=p2", "--kappa"], ["--kappa: needs a value"]),
    ('{"prompt": "x"}\n', ["--stop=[1]"], ["--stop=[1]: a list is written as JSON"]),
    ('{"prompt": "x"}\n', ["--mesh=rows:2"], ["--mesh='rows:2': axes are replica, fsdp"]),
    ('{"prompt": "x"}\n', ["--dtype=int8"], ["--dtype=int8: choose float32 or bfloat16"]),
    ('{"prompt": "x"}\n', ["--distributed=here"], ["--distributed=here: write auto or HOST:PORT,N,I"]),
    ('{"prompt": ""}\n', ["--guidance=1"], ["--guidance=1.0: guides towards a prompt"]),
])
def test_mistakes(text, flags, fragments, folder, tmp_path, capsys, monkeypatch):
    """Met without the weights, and nothing is written."""
    monkeypatch.setattr("mdlm_jax.load", None)
    (tmp_path / "prompts.jsonl").write_text(text)
    given = [f"--checkpoint={folder / 'model'}", f"--prompts={tmp_path / 'prompts.jsonl'}", *flags]
    assert sample.main([*given, f"--output={tmp_path / 'out.jsonl'}"]) == 2
    told = capsys.readouterr().err
    assert len(told.splitlines()) == 1 and all(fragment in told for fragment in fragments), told
    assert [path.name for path in tmp_path.iterdir()] == ["prompts.jsonl"]


@pytest.mark.parametrize(("flags", "fragments"), [
    (["--prompts=gone.jsonl"], ["--prompts=gone.jsonl: is not a file"]),
    (["--batch_size=3"], ["--batch_size=3: needs --prompts"]),
    (["--length=9", "--new_tokens=3"], ["--length, --new_tokens", "give one of them"]),
    (["--live"], ["--live: the output is not a terminal"]),
    (["--threshold=0.5"], ["--threshold"]),
])
def test_flags_that_do_not_go_together(flags, fragments, folder, capsys):
    assert sample.main([f"--checkpoint={folder / 'model'}", *flags]) == 2
    told = capsys.readouterr().err
    assert all(fragment in told for fragment in fragments), told


def test_numbers_out_of_range_are_met_before_the_weights_are_read(folder, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("mdlm_jax.load", None)
    (tmp_path / "prompts.txt").write_text("x\n")
    for flags, message in (({"decoder": "p2", "planner": "best"}, "planner='best': choose one of self, uniform"),
                           ({"decoder": "remdm_cap", "eta": 3}, "eta=3.0: must lie in [0, 1]"),
                           ({"block_length": 3}, "steps=2: must be a multiple of the 3 blocks of 3 tokens"),
                           ({"cache": "block", "block_length": 4}, "cache='block': is for block_causal and causal")):
        output = tmp_path / "out.jsonl"  # one for all: where nothing is answered, another command may begin
        assert sample.main(arguments(folder, output, prompts=tmp_path / "prompts.txt", **flags)) == 2
        assert message in capsys.readouterr().err and not output.exists()


def test_one_prompt_of_a_published_model(capsys):
    """Text stands for ids where there is no tokenizer."""
    checkpoint = f"--checkpoint={GOLDEN / 'llada_ckpt'}"
    assert sample.main([checkpoint, "--prompt=3 1 4", "--num=2", "--new_tokens=4"]) == 0
    out = capsys.readouterr().out
    assert out.count("\n3 1 4 ") == 2 and out.startswith("--- sample 1 ---\n")
    assert sample.main([checkpoint, "--prompt=three"]) == 2
    assert "the checkpoint has no tokenizer.json; write token ids" in capsys.readouterr().err
    assert tokens_model().tokenizer is None


@pytest.mark.parametrize("numbers", [((0, 1), (0, 1)), ((0, 2), (1, 2))], ids=["one place", "two places"])
def test_two_jobs_at_once_never_mix(numbers, tmp_path):
    """Neither has an answer when the other begins."""
    output, other = tmp_path / "out.jsonl", JOB | {"seed": 99}
    with Answers(output, JOB, KEYS, *numbers[0]) as first, Answers(output, other, KEYS, *numbers[1]) as second:
        left = first.open()
        if numbers[0] == numbers[1]:
            with pytest.raises(ConfigError, match="is being written by process"):
                second.open()
        else:
            second.add([line(key) | {"text": "of the other"} for key in second.open()])
        first.add([line(key) for key in left])
        missing = first.join()
    assert missing == len(KEYS) - len(left)
    assert output.exists() == (not missing)
    if missing:  # each process had places of its own
        return
    assert [one["text"] for one in lines_of(output)] == [line(key)["text"] for key in KEYS]
    with pytest.raises(ConfigError, match="holds answers of another job: seed is"):
        Answers(output, other, KEYS).open()
    assert Answers(output, JOB, KEYS).open() == []
