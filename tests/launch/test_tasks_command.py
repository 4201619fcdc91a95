"""``launch.tasks``: asked, answered, judged, gone on with, and what it refuses before jax."""

import json
import threading
import time

import pytest

from launch import run_tasks, tasks
from mdlm_jax.config import ConfigError
from mdlm_jax.data.tokenizers import LanguageTokenizer
from mdlm_jax.loading import save_checkpoint
from tests.generation.models import bytes_model
from tests.launch.commands import assert_refused, part_of, run

ROWS = [{"prompt": f"row {n}:", "completion": letter} for n, letter in enumerate("abcab")]


@pytest.fixture
def place(tmp_path):
    """A model that writes a alone, rows of which two ask for it, and solved examples."""
    model = bytes_model({"a": 0.0})
    model.tokenizer.save(tmp_path / "tokenizer.json")
    save_checkpoint(tmp_path / "model", model, (tmp_path / "tokenizer.json").read_bytes())
    for name, rows in (("rows", ROWS), ("shots", ROWS[:2])):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tmp_path


def command(place, **flags):
    given = {"checkpoint": place / "model", "task": "match", "data": place / "rows.jsonl", "output": place / "out",
             "new_tokens": 4, "decoder": "low_confidence", "steps": 2} | flags
    return [f"--{name}={value}" for name, value in given.items() if value is not None]


def test_every_row_is_asked_and_judged(place, capsys):
    asked = command(place, shots=2, shots_from=place / "shots.jsonl")
    assert tasks.main(asked) == 0
    assert "match: match 0.4000 +- 0.2449 (5 answers)" in capsys.readouterr().out
    answers = [json.loads(line) for line in (place / "out" / "answers.jsonl").read_text().splitlines()]
    assert answers[1]["prompt"] == "row 0:a\nrow 1:b\nrow 1:"
    found = [json.loads(line) for line in (place / "out" / "verdicts.jsonl").read_text().splitlines()]
    assert [one["verdict"]["match"] for one in found] == [1, 0, 0, 1, 0] and found[0]["text"] == "aaaa"
    result = json.loads((place / "out" / "result.json").read_text())
    assert result["figures"]["match"][0] == 0.4 and (result["rows"], result["shots"], result["forwards"]) == (5, 2, 2)
    answers = (place / "out" / "answers.jsonl").stat().st_mtime_ns
    assert tasks.main(asked) == 0 and (place / "out" / "answers.jsonl").stat().st_mtime_ns == answers
    assert tasks.main([*asked, "--seed=1"]) == 2
    assert "holds answers of another job: seed" in capsys.readouterr().err


def test_a_task_of_two_turns(place, capsys):
    """The model writes a: the thought is aaaa, and so is the number, which is none."""
    rows = [{"question": f"How many, {n}?", "answer": f"1 + {n} = {n + 1}\n#### {n + 1}"} for n in range(3)]
    (place / "sums.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert tasks.main(command(place, task="gsm8k_twice", data=place / "sums.jsonl")) == 0
    assert "gsm8k_twice: strict 0.0000 +- 0.0000 (3 answers)" in capsys.readouterr().out
    last = [json.loads(line) for line in (place / "out" / "answers.jsonl").read_text().splitlines()]
    assert last[1]["prompt"] == "Question: How many, 1?\naaaa\n" and (place / "out" / "answers-1.jsonl").exists()
    records = place / "records.jsonl"
    assert tasks.main(["--task=gsm8k_twice", f"--data={place / 'sums.jsonl'}", f"--records={records}"]) == 0
    found = [json.loads(line) for line in records.read_text().splitlines()]
    assert found[2:4] == [{"prompt": "Question: How many, 1?\n", "completion": "Answer: 1 + 1 = 2"},
                          {"prompt": "Question: How many, 1?\nAnswer: 1 + 1 = 2\n", "completion": "#### 2"}]
    assert tasks.main(["--task=match", f"--data={place / 'rows.jsonl'}", f"--records={records}"]) == 2
    assert "has no form for training" in capsys.readouterr().err


def test_a_task_that_makes_its_rows(place, capsys):
    """Rows, what they teach, and a model that writes a alone: no list."""
    made, records = place / "made.jsonl", place / "records.jsonl"
    assert tasks.main(["--task=line_shuffle", f"--make={made}", "--items=5", "--seed=2"]) == 0
    assert tasks.main(["--task=line_shuffle", f"--data={made}", f"--records={records}"]) == 0
    rows = [json.loads(line) for line in made.read_text().splitlines()]
    assert [len(row["people"]) for row in rows] == [3, 4, 5, 6, 3]
    assert json.loads(records.read_text().splitlines()[4])["completion"] == f" {json.dumps(rows[4]['answer'])}\n"
    assert tasks.main(command(place, task="line_shuffle", data=made, shots=1, shots_from=made, max_length=512)) == 0
    out = capsys.readouterr().out
    assert "line_shuffle: form 0.0000 +- 0.0000 (5 answers)\nline_shuffle: right 0.0000 +- 0.0000 (5 answers)" in out
    for flags, said in ((["--task=match", f"--make={made}"], "task match: makes no rows"),
                        (["--task=sudoku", f"--make={made}", "--items=0"], "--items=0: must be at least 1"),
                        (["--task=sudoku", f"--make={place / 'no' / 'x.jsonl'}"], "must be a .jsonl file in a folder"),
                        (["--task=sudoku", f"--make={made}", "--seed=-1"], "--seed=-1: must lie in"),
                        (command(place, items=3), "--items=3: goes with --make; leave it out")):
        assert tasks.main(flags) == 2 and said in capsys.readouterr().err
    assert tasks.main(["--task=line_shuffle", f"--make={made}", "--items=5", "--seed=2"]) == 0  # the same again
    for flags in (["--task=sudoku", f"--make={made}"], ["--task=line_shuffle", f"--data={made}", f"--records={made}"]):
        assert tasks.main(flags) == 2 and "is there and holds something else" in capsys.readouterr().err
    assert len(made.read_text().splitlines()) == 5
    for more, said in (([], "error: --data: row 3, counted from 0, is "),
                       ([f"--shots_from={made}", "--shots=1"], "--data: row 3, counted from 0, with --shots=1, is ")):
        assert tasks.main([*command(place, task="line_shuffle", data=made), *more]) == 2
        assert said in (err := capsys.readouterr().err) and "shorten it" not in err and "raise --max_length" in err


def test_a_refusal_leaves_no_folder_behind_and_reads_well(place, capsys):
    """One model knows numbers alone."""
    LanguageTokenizer(256).save(place / "numbers.json")
    save_checkpoint(place / "numbers", bytes_model({"a": 0.0}), (place / "numbers.json").read_bytes())
    for flags, said in (({"checkpoint": place / "numbers"}, "--data: row 0, counted from 0: 'row 0:': a language's"),
                        ({"steps": 0}, "--steps=0: must be")):
        assert tasks.main(command(place, output=place / "new", **flags)) == 2 and said in capsys.readouterr().err
        assert not (place / "new").exists()


def test_several_samples_a_row_and_fewer_rows(place, capsys):
    """Row 0 is right in all of its samples and row 1 in none: two values, whose standard error is 0.5."""
    assert tasks.main(command(place, limit=2, num=3, task="match")) == 0
    assert "match: match 0.5000 +- 0.5000 (2 rows of 3 samples)" in capsys.readouterr().out
    result = json.loads((place / "out" / "result.json").read_text())
    assert result["figures"]["match"] == [0.5, 0.5] and result["samples"] == 3


def test_texts_with_other_ends_of_lines_are_judged(place):
    """An answer stands beside its prompt, both as they are."""
    row = {"prompt": "one\u2028two\u2029three\u0085:", "completion": "a"}
    (place / "rows.jsonl").write_text((json.dumps(row) + "\n") * 2)
    assert tasks.main(command(place)) == 0
    assert json.loads((place / "out" / "result.json").read_text())["figures"]["match"][0] == 1.0
    (place / "sums.jsonl").write_text(json.dumps({"question": row["prompt"], "answer": "#### 1"}) + "\n")
    (place / "twice").mkdir()
    assert tasks.main(command(place, task="gsm8k_twice", data=place / "sums.jsonl", output=place / "twice")) == 0


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_the_process_that_completes_the_answers_judges(place, capsys, order):
    first, last = order
    assert tasks.main(command(place, distributed=f"127.0.0.1:1,2,{first}")) == 0
    assert "whoever answers the last of" in capsys.readouterr().err and not (place / "out" / "result.json").exists()
    assert tasks.main(command(place, distributed=f"127.0.0.1:1,2,{last}")) == 0
    shown = capsys.readouterr()
    assert "match: match 0.4000 +- 0.2449 (5 answers)" in (shown.err if last else shown.out)
    assert json.loads((place / "out" / "result.json").read_text())["rows"] == 5
    assert not list((place / "out").glob("*.tmp"))


def test_processes_wait_for_each_other_between_turns(place, capsys, monkeypatch):
    monkeypatch.setattr(run_tasks, "_PAUSE", 0.05)
    rows = [{"question": f"How many, {n}?", "answer": f"#### {n}"} for n in range(3)]
    (place / "sums.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    asked, found = command(place, task="gsm8k_twice", data=place / "sums.jsonl"), []
    early = threading.Thread(target=lambda: found.append(tasks.main([*asked, "--distributed=127.0.0.1:1,2,0"])))
    early.start()
    output = place / "out" / "answers-1.jsonl"
    while early.is_alive() and not (part_of(output).exists() and part_of(output).read_text().count("\n") == 2):
        time.sleep(0.05)
    time.sleep(0.5)
    assert early.is_alive()  # though it has answered all that is its own
    assert tasks.main([*asked, "--distributed=127.0.0.1:1,2,1"]) == 0
    early.join(60)
    said = capsys.readouterr().err
    assert "turn 2 waits for 1 of 3 answers of turn 1, which other processes write" in said
    assert found == [0] and (place / "out" / "result.json").exists()
    assert len((place / "out" / "answers.jsonl").read_text().splitlines()) == 3


def test_all_turns_must_fit_before_the_first_is_asked(place):
    """128 positions: the question takes 24, and what stands behind an answer one."""
    row = {"question": "How many?", "answer": "#### 1"}
    (place / "sums.jsonl").write_text(json.dumps(row) + "\n")
    flags = {"checkpoint": str(place / "model"), "task": "gsm8k_twice", "data": str(place / "sums.jsonl"),
             "output": str(place / "out"), "decoder": "low_confidence"}
    assert tasks.read_options(flags | {"new_tokens": 53}).answering.new_tokens == 53
    for tokens in (55, 100):
        with pytest.raises(ConfigError, match=f"--task=gsm8k_twice: asks 2 times, with --new_tokens={tokens} up to "
                           f"{2 * tokens} new tokens in all: .*lower --new_tokens, or raise --max_length"):
            tasks.read_options(flags | {"new_tokens": tokens})
    assert tasks.read_options(flags | {"new_tokens": 100, "max_length": 256}).answering.new_tokens == 100


def test_what_programs_are_not_kept_from_is_said_once(place, capsys, monkeypatch):
    monkeypatch.setattr("mdlm_jax.tasks.sandbox.lacking", lambda: ["they can reach the network"])
    row = {"prompt": "def f():\n", "entry_point": "f", "test": "def check(f): pass"}
    (place / "programs.jsonl").write_text((json.dumps(row) + "\n") * 2)
    assert tasks.main(command(place, task="humaneval", data=place / "programs.jsonl")) == 0
    assert capsys.readouterr().err.count("not confined in full here: they can reach the network. Use a container") == 1
    assert tasks.main(command(place, output=place / "other")) == 0
    assert "confined" not in capsys.readouterr().err


@pytest.mark.parametrize(("flags", "said"), [
    ({"task": "mmlu"}, "--task=mmlu: choose one of gsm8k"),
    ({"task": "gsm8k"}, "line 1: has no field 'question', which the task gsm8k reads"),
    ({"data": "nowhere.jsonl"}, "--data=nowhere.jsonl: there is no such file"),
    ({"shots": 2}, "--shots, --shots_from: go together"),
    ({"shots": 3, "shots_from": "SHOTS"}, "--shots=3: SHOTS has 2 rows"),
    ({"limit": 0}, "--limit=0: must be at least 1"),
    ({"output": "no/where"}, "--output=no/where: must be a folder, in one that exists"),
    ({"new_tokens": 500}, "leaves"),
    ({"output": None}, "--output is missing"),
])
def test_mistakes_are_named(place, flags, said):
    flags = {name: str(place / "shots.jsonl") if value == "SHOTS" else value for name, value in flags.items()}
    values = {"checkpoint": str(place / "model"), "task": "match", "data": str(place / "rows.jsonl"),
              "output": str(place / "out")} | flags
    with pytest.raises(ConfigError) as caught:
        tasks.read_options({name: value for name, value in values.items() if value is not None})
    assert said.replace("SHOTS", str(place / "shots.jsonl")) in str(caught.value)


def test_refused_before_jax():
    assert_refused(run("launch.tasks", "--checkpoint=x"), "--task is missing")
