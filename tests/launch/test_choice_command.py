"""``launch.evaluate --task=decoders`` on tiny runs: judged samples, rows that can be said, and pairs."""

import dataclasses
import json

import pytest

from launch import _choice, evaluate, run_choice
from mdlm_jax.config import ConfigError, RunConfig
from mdlm_jax.evaluation.frontier import Setting
from tests.launch.commands import assert_refused, run
from tests.launch.test_evaluate_command import trained

FEW = ("--task=decoders", "--samples=6", "--batch_size=3", "--only=threshold,joint_speedy,adjust")


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("choice")
    trained(folder / "hmm", **{"eval.draws": 2, "sample.steps": 2})
    trained(folder / "lines", **{"eval.draws": 2, "sample.steps": 2, "data.length": 6,
                                 "data.source": "language:line_copy:people=3,names=5"})
    return folder


def record(folder):
    return json.loads((folder / "evaluation.json").read_text())


def test_settings_are_measured_once_and_one_is_recommended(runs, capsys, monkeypatch):
    command = [f"--checkpoint={runs / 'hmm'}", *FEW, "--floor=9"]
    measured, stop = [], run_choice.Subject.measured

    def some(self, setting):
        if len(measured) == 3:
            raise KeyboardInterrupt
        measured.append(setting)
        return stop(self, setting)

    monkeypatch.setattr(run_choice.Subject, "measured", some)
    assert evaluate.main(command) == 130
    monkeypatch.setattr(run_choice.Subject, "measured",
                        lambda self, setting: measured.append(setting) or stop(self, setting))
    assert evaluate.main(command) == 0
    assert len(measured) == len(set(one.label for one in measured)) == 1 + 5 + 1 + 3
    assert measured[0] == Setting("ancestral", {"reuse": True, "temperature": 1.0}, 1)
    parts = record(runs / "hmm")["decoders"]
    assert parts["held-out"]["entropy"][0] > 0
    found = parts["threshold, threshold 0.9, temperature 1"]
    assert found["forwards"] == found["work"] and 1 / 16 <= found["forwards"] <= 1 and found["speed"] > 0
    assert found["entropy"][0] > 0 and found["quality"][0] > 0
    assert not any(label.startswith("adjust") for label in parts)
    out = capsys.readouterr().out
    assert "recommended for at most 9.000" in out and "| ancestral" not in out
    assert "left out: adjust, tokens 8, temperature 1: tokens=8: Adjust needs a joint layer" in out
    assert (runs / "hmm" / "decoders.png").stat().st_size > 10_000
    command[-2] = "--only=threshold,joint_speedy"
    assert evaluate.main([*command[:-1], "--floor=0"]) == 0
    assert len(measured) == 10
    assert "nothing here reaches at most 0.000" in capsys.readouterr().out


def test_the_recommended_command_line_is_what_was_measured(runs, capsys):
    """In blocks, too: steps are those of a whole answer."""
    command = [f"--checkpoint={runs / 'hmm'}", *FEW[:-1], "--only=margin,ancestral", "--floor=9", "--least_entropy=0",
               f"--output={runs / 'blocks.json'}"]
    assert evaluate.main([*command, "--block_length=4"]) == 0
    out = capsys.readouterr().out
    assert "--steps=4 --block_length=4" in out and "--new_tokens=16" in out and "8 a step" not in out
    assert evaluate.main([*command, "--block_length=4", "--cache=dual"]) == 0
    out = capsys.readouterr().out
    assert "--block_length=4 --cache=dual" in out and "left out: ancestral, reuse true" in out
    parts = json.loads((runs / "blocks.json").read_text())["decoders"]
    dual = parts["margin, temperature 1, 4 a step"]
    assert dual["work"] == pytest.approx(dual["forwards"] * 4 / 32)  # canvases are filled up


def test_rows_that_the_language_can_say_are_right(runs, capsys, monkeypatch):
    """Prompts are kept, and the share is that of the rows that came out."""
    seen = []
    share = run_choice._share
    monkeypatch.setattr(run_choice, "_share", lambda right: seen.append(right) or share(right))
    assert evaluate.main([f"--checkpoint={runs / 'lines'}", *FEW[:-1], "--only=threshold"]) == 0
    parts = record(runs / "lines")["decoders"]
    assert "held-out" not in parts and all(part["entropy"] is None for part in parts.values())
    assert parts["threshold, threshold 0.5, temperature 1"]["quality"] == list(share(seen[1]))
    assert "right answers" in capsys.readouterr().out


def test_answers_that_equal_their_completions_are_right(runs, tmp_path, monkeypatch):
    file = tmp_path / "pairs.jsonl"
    file.write_text("".join(json.dumps({"prompt": f"{i} 1", "completion": "2 3"}) + "\n" for i in range(4)))
    answers = []
    job = run_choice._in_order
    monkeypatch.setattr(run_choice, "_in_order", lambda made: answers.append(job(made)) or answers[-1])
    command = [f"--checkpoint={runs / 'lines'}", "--task=decoders", f"--validation={file}", "--only=margin"]
    assert evaluate.main([*command, f"--output={tmp_path / 'e.json'}"]) == 0
    assert all(len(one) == 4 for one in answers)
    assert {len(one.row) for one in answers[0]} == {5}  # two of the prompt, two of the completion, the end
    parts = json.loads((tmp_path / "e.json").read_text())["decoders"]
    for found, part in zip(answers, parts.values(), strict=True):
        assert part["quality"][0] == sum(str(one) == "2 3" for one in found) / 4
    assert (tmp_path / "decoders.png").exists()


@pytest.mark.parametrize(("flags", "said"), [
    ({"task": "gsm8k"}, "--task=gsm8k: choose decoders"),
    ({"threshold": 0.5}, "--threshold=0.5: every decoder is tried with numbers of its own"),
    ({"steps": "4"}, "--steps=4: every decoder"),
    ({"only": "margin,nobody"}, "--only: decoder='nobody'"),
    ({"by": "price"}, "--by=price: choose one of work, time"),
    ({"least_entropy": 1.5}, "--least_entropy=1.5: must lie in [0, 1]"),
    ({"samples": 1}, "--samples=1: must be at least 2"),
    ({"temperature": 0.0}, "--temperature=0: all samples would be one and the same"),
    ({"validation": "PAIRS", "samples": 4}, "--samples=4: --validation says how many"),
    ({"new_tokens": 4}, "--new_tokens=4: is read with --validation only"),
    ({"block_length": -1}, "--block_length=-1: must be at least 0"),
    ({"validation": "x.txt"}, "must be a .jsonl file"),
    ({"validation": "x.jsonl"}, "--validation=x.jsonl: is not a file"),
    ({"validation": "EMPTY"}, "prompt 0 has no completion"),
    ({"validation": "PAIRS", "judge": "oracle"}, "--judge=oracle: answers are right or wrong here"),
    ({"validation": "PAIRS", "floor": 2.0}, "--floor=2: must lie in [0, 1]"),
])
def test_mistakes_are_named(runs, tmp_path, flags, said):
    files = {"EMPTY": {"prompt": "1"}, "PAIRS": {"prompt": "1", "completion": "2"}}
    for name, line in files.items():
        (tmp_path / f"{name}.jsonl").write_text(json.dumps(line) + "\n")
    flags = {name: str(tmp_path / f"{value}.jsonl") if value in files else value for name, value in flags.items()}
    with pytest.raises(ConfigError) as caught:
        evaluate._chooser({"checkpoint": str(runs / "hmm"), "task": "decoders"} | flags)
    assert said in str(caught.value)


def test_flags_of_the_choice_alone_are_refused_before_jax(runs):
    assert_refused(run("launch.evaluate", f"--checkpoint={runs / 'hmm'}", "--floor=2"), "--floor", "--task=decoders")


def test_a_language_that_moves_with_time_has_no_right_answers():
    data = dataclasses.replace(RunConfig().data, source="language:drift")
    assert not _choice.choosy(dataclasses.replace(RunConfig(), data=data))
