"""``launch.tasks``: asked, answered, judged, gone on with, and what it refuses before jax."""

import json

import pytest

from launch import tasks
from mdlm_jax.config import ConfigError
from mdlm_jax.loading import save_checkpoint
from tests.generation.models import bytes_model
from tests.launch.commands import assert_refused, run

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
    assert "holds answers of another command: seed" in capsys.readouterr().err


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


def test_several_samples_a_row_and_fewer_rows(place, capsys):
    assert tasks.main(command(place, limit=2, num=3, task="match")) == 0
    assert "(6 answers)" in capsys.readouterr().out


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
