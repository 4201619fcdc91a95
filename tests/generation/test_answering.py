"""LanguageModel.answer: each prompt once, whatever interrupts it, and the same file as without."""

import dataclasses
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from launch import train
from mdlm_jax.errors import ConfigError
from mdlm_jax.generation import code
from mdlm_jax.generation.answer_file import Answers
from mdlm_jax.sampling.confidence import ByConfidence
from mdlm_jax.sampling.decoder import decoder, take_best
from mdlm_jax.sampling.low_confidence import LowConfidence
from tests.errors.form import faults
from tests.generation.models import bytes_model, tokens_model
from tests.launch import commands

PROMPTS = [{"id": f"q{i}", "prompt": "xyz"[: 1 + i % 3] * (1 + i % 5)} for i in range(20)]
HOW = {"new_tokens": 8, "steps": 2, "batch_size": 4, "seed": 3, "progress": False}


class Interrupted(Exception):
    pass


@pytest.fixture(scope="module")
def model():
    """Writes a and b."""
    return bytes_model()


@pytest.fixture(scope="module")
def whole(model, tmp_path_factory):
    """The file of a job that nothing interrupts."""
    output = tmp_path_factory.mktemp("whole") / "out.jsonl"
    model.answer(PROMPTS, output, **HOW)
    return output.read_bytes()


def interrupted(model, output, after, **more):
    """Stops once so many answers are there."""
    def progress(done, total):
        assert total == 20
        if done >= after:
            raise Interrupted

    with pytest.raises(Interrupted):
        model.answer(PROMPTS, output, **HOW | {"progress": progress} | more)


def test_every_prompt_gets_what_generate_gives_it(model, whole, tmp_path):
    found = model.answer(PROMPTS, tmp_path / "out.jsonl", **HOW)
    assert found == [json.loads(line) for line in whole.splitlines()]
    own = model.generate([one["prompt"] for one in PROMPTS], **HOW)
    for i, (one, answer) in enumerate(zip(found, own, strict=True)):
        assert one == PROMPTS[i] | {"index": i, "sample": 0, "text": answer.text, "finish": "length", "tokens": 8,
                                    "forwards": answer.forwards}
    assert len({one["text"] for one in found}) > 10
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out.jsonl", "out.jsonl.job.json"]


@pytest.mark.parametrize("torn", ["", '{"id": "q7", "prompt": "zz', "\0\0\n"])
def test_a_job_that_was_stopped_goes_on(torn, model, whole, tmp_path, monkeypatch):
    output = tmp_path / "out.jsonl"
    interrupted(model, output, 8)
    part = commands.part_of(output)
    assert len(part.read_bytes().splitlines()) == 8 and not output.exists()
    with open(part, "a") as file:
        file.write(torn)
    seen, add = [], Answers.add
    monkeypatch.setattr(Answers, "add", lambda self, lines: (seen.extend(lines), add(self, lines))[1])
    told = []
    found = model.answer(PROMPTS, output, **HOW | {"batch_size": 16, "progress": lambda *now: told.append(now)})
    assert len(seen) == 12 and told == [(20, 20)]
    assert output.read_bytes() == whole and len(found) == 20
    model.answer(PROMPTS, output, **HOW)  # done: nothing more is written
    assert len(seen) == 12 and output.read_bytes() == whole
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out.jsonl", "out.jsonl.job.json"]


def test_a_bar_shows_what_was_done_before(model, tmp_path, capsys):
    interrupted(model, tmp_path / "out.jsonl", 8)
    model.answer(PROMPTS, tmp_path / "out.jsonl", **HOW | {"progress": True})
    told = capsys.readouterr().err.splitlines()
    assert told[0].startswith("answers: 12/20 answers (60%)") and told[-1].startswith("answers: 20/20 answers (100%)")


def test_generate_is_silent_unless_asked(model, capsys):
    texts = [one["prompt"] for one in PROMPTS[:6]]
    how = HOW | {"progress": True}
    silent, shown = (model.generate(texts, **HOW), model.generate(texts, **how))
    told = capsys.readouterr().err.splitlines()
    assert [one.text for one in silent] == [one.text for one in shown]
    assert told[0].startswith("answers: 4/6 answers (66%)") and told[-1].startswith("answers: 6/6 answers (100%)")
    counts = []
    model.infill("a<mask>b<mask>", progress=lambda *now: counts.append(now))
    assert counts == [(1, 1)] and capsys.readouterr().err == ""
    with pytest.raises(ConfigError, match="progress='bar': must be True, False, or a function") as caught:
        model.generate("x", progress="bar")
    assert not faults(str(caught.value))
    with pytest.raises(ConfigError, match="progress=True: there is no such option"):
        model.stream("x", progress=True)


def test_several_samples_ids_labels_and_a_single_prompt(tmp_path):
    model = tokens_model(classes=3, conditioning="time")
    rows = [[3, 1, 4], np.array([1]), [5, 9]]
    how = {"new_tokens": 8, "num": 2, "stop_id": None, "progress": False, "label": [0, 1, 2]}
    found = model.answer(iter(rows), tmp_path / "out.jsonl", **how)
    assert [(one["index"], one["sample"], one["prompt"]) for one in found] == [
        (i, k, np.asarray(row).tolist()) for i, row in enumerate(rows) for k in range(2)]
    own = model.generate([row for row in rows for _ in range(2)], new_tokens=8, stop_id=None, label=[0, 0, 1, 1, 2, 2])
    assert [one["token_ids"] for one in found] == [one.tokens.tolist() for one in own]
    assert found[0]["token_ids"] != found[1]["token_ids"] and found[0]["text"] is None
    (alone,) = model.answer([3, 1, 4], tmp_path / "alone.jsonl", new_tokens=8, label=0, stop_id=None)
    assert alone["token_ids"] == found[0]["token_ids"]


@pytest.mark.parametrize(("change", "message"), [
    ({"seed": 4}, "seed is 3 there and 4 here"),
    ({"new_tokens": 6}, "new_tokens is 8 there and 6 here"),
    ({"temperature": 0.5}, "temperature is not given there and 0.5 here"),
    ({"decoder": LowConfidence(256, temperature=1.0)},
     "decoder is not given there and 'LowConfidence [0-9a-f]{16}' here"),
    ({"bias": {5: 1.0}}, "bias is not given there and {'5': 1.0} here"),
    ({"stop": ["ab"]}, r"stop is \[\] there and \['ab'\] here"),
    ({"num": 2}, "num is 1 there and 2 here"),
])
def test_another_job_is_refused(change, message, model, tmp_path):
    interrupted(model, tmp_path / "out.jsonl", 4)
    before = commands.snapshot(tmp_path)
    with pytest.raises(ConfigError, match=f"output=.*out.jsonl: holds answers of another job: {message}") as caught:
        model.answer(PROMPTS, tmp_path / "out.jsonl", **HOW | change)
    assert not faults(str(caught.value)) and commands.snapshot(tmp_path) == before


def test_other_prompts_fields_and_weights_are_another_job(model, tmp_path):
    interrupted(model, tmp_path / "out.jsonl", 4)
    other = dataclasses.replace(model, params=model.params | {"head_bias": model.params["head_bias"].at[0].add(1e-6)})
    others = r"its prompts, or the fields beside them, are others than these \(20 both times\);"
    for asked, prompts, thing in ((model, PROMPTS[:-1] + [{"id": "q19", "prompt": "other"}], others),
                                  (model, PROMPTS[:-1] + [PROMPTS[-1] | {"id": "q20"}], others),
                                  (model, PROMPTS[:-1], "20 prompts there and 19 here;"),
                                  (other, PROMPTS, "its weights are others than these;")):
        with pytest.raises(ConfigError, match=f"answers of another job: {thing}") as caught:
            asked.answer(prompts, tmp_path / "out.jsonl", **HOW)
        assert not faults(str(caught.value))
    same = dataclasses.replace(model, params=jax.tree.map(lambda leaf: jnp.array(np.asarray(leaf)), model.params))
    assert len(same.answer(PROMPTS, tmp_path / "out.jsonl", **HOW)) == 20


def test_a_refusal_names_what_to_delete_for_a_new_beginning(model, tmp_path):
    output = tmp_path / "out.jsonl"
    interrupted(model, output, 4)
    remedy = "choose another file, or delete out.jsonl.parts and out.jsonl.job.json to begin anew$"
    with pytest.raises(ConfigError, match=remedy):
        model.answer(PROMPTS, output, **HOW | {"seed": 4})
    model.answer(PROMPTS, output, **HOW)
    with pytest.raises(ConfigError, match="or delete out.jsonl and out.jsonl.job.json to begin anew$"):
        model.answer(PROMPTS, output, **HOW | {"seed": 4})


def test_the_file_of_a_command_is_refused_by_its_name(model, tmp_path):
    output, job = tmp_path / "out.jsonl", {"seed": 3, "count": 20, "checkpoint": "runs/first"}
    with Answers(output, job, [(0, 0)]) as answers:
        answers.open()
        answers.add([{"index": 0, "sample": 0}])
    with pytest.raises(ConfigError, match="another job: launch.sample began it, which LanguageModel.answer cannot go"):
        model.answer(PROMPTS, output, **HOW)
    interrupted(model, tmp_path / "other.jsonl", 4)
    with pytest.raises(ConfigError, match="another job: LanguageModel.answer began it, which launch.sample cannot"):
        Answers(tmp_path / "other.jsonl", job, [(0, 0)], flag="--output").check()


# A decoder of one's own -----------------------------------------------------------------------------------------------

FACTOR = 1.0


def scaled(score):
    return score * FACTOR


def ruled(sign=1.0, table=None, edited=False, doc="One."):
    """An object of a class made anew, as by running a cell or a program again."""
    table = np.ones(4, np.float32) if table is None else table
    if edited:
        @decoder
        class Mine(ByConfidence):
            def reveal(self, drawn, look):
                return take_best(scaled(sign * drawn.top_log_prob * table[0]) - look.place, look.masked, look.due)
    else:
        @decoder
        class Mine(ByConfidence):
            def reveal(self, drawn, look):
                return take_best(scaled(sign * drawn.top_log_prob * table[0]), look.masked, look.due)

    Mine.__doc__ = doc
    return Mine(256, temperature=1.0)


def test_a_decoder_whose_code_changed_is_another_job(model, tmp_path, monkeypatch):
    output = tmp_path / "out.jsonl"
    interrupted(model, output, 4, decoder=ruled())
    monkeypatch.setitem(globals(), "FACTOR", 2.0)
    changed = [ruled(), ruled(sign=-1.0), ruled(edited=True), ruled(table=np.zeros(4, np.float32))]
    for factor, other in zip((2.0, 1.0, 1.0, 1.0), changed, strict=True):
        monkeypatch.setitem(globals(), "FACTOR", factor)
        with pytest.raises(ConfigError, match="another job: its decoder's class has other code than this;") as caught:
            model.answer(PROMPTS, output, **HOW | {"decoder": other})
        assert not faults(str(caught.value))
    found = model.answer(PROMPTS, output, **HOW | {"decoder": ruled(doc="Another.")})
    own = model.generate([one["prompt"] for one in PROMPTS], **HOW | {"decoder": ruled()})
    assert [one["text"] for one in found] == [one.text for one in own]


RULE = """
import functools
from mdlm_jax.sampling.confidence import ByConfidence
from mdlm_jax.sampling.decoder import decoder, static

WEIGHTS = {"a": (1, 2.5, {None}), "b": [True]}
def helped(x, *, by=WEIGHTS): return later(x) + by["a"][0]
def later(x): return helped(x) if x > 3 else x
class Base:
    turn = functools.partial(helped, by=2)
    @property
    def kind(self): return "base"
    @classmethod
    def made(cls): return cls(3)
    @functools.cached_property
    def kept(self): return [one for one in (1, 2)]
@decoder
class Rule(Base, ByConfidence):
    name: str = static("x")
    wants = ("entropy",)
    def reveal(self, drawn, look): return super().kind, helped(len(drawn)), self.turn(1), (lambda: unknown + 1)
"""


def digits(text, place="a.py", package="mine"):
    names = {"__name__": package}
    exec(compile(text, place, "exec"), names)
    return code.digest(names["Rule"])


def test_the_digits_of_code_are_those_of_what_it_does():
    first = digits(RULE)
    assert digits("\n\n# moved\n" + RULE, "other/b.py", "another") == first == digits(RULE.replace('("x")', '("y")'))
    for old, new in (("2.5", "2.25"), ("by=2)", "by=3)"), ('"base"', '"case"'), ("cls(3)", "cls(4)"),
                     ("(1, 2)]", "(2, 1)]"), ('("entropy",)', '("argmax",)'), ("unknown + 1", "unknown - 1"),
                     ("x > 3", "x > 4"), ("[True]", "[False]"), ("{None}", "{0}"), ("super().kind", "self.kind")):
        assert old in RULE and digits(RULE.replace(old, new)) != first, old
    assert code.digest(LowConfidence) == ""


CALLED = """
import jax, numpy as np
calls, seen, KEY = 0, [], jax.random.key(0)
class Rule:
    kind = np.float32
    def reveal(self, drawn, look, dtype=np.float32):
        global calls
        calls += 1
        seen.append(seen)
        return jax.random.fold_in(KEY, calls), dtype
"""


def test_the_digits_of_code_are_those_of_another_process_and_stay_when_it_is_called():
    names = {"__name__": "mine"}
    exec(compile(CALLED, "a.py", "exec"), names)
    first = code.digest(names["Rule"])
    names["Rule"]().reveal(1, 2)
    told = "import sys; from mdlm_jax.generation import code; names = {'__name__': 'mine'}; " \
           "exec(sys.argv[1], names); print(code.digest(names['Rule']))"
    other = subprocess.run([sys.executable, "-c", told, CALLED], capture_output=True, text=True, check=True).stdout
    assert code.digest(names["Rule"]) == first == other.strip() and len(first) == 16


def test_two_at_once_are_one_too_many(model, tmp_path):
    def progress(done, total):
        with pytest.raises(ConfigError, match=f"out.jsonl: is being written by process {os.getpid()} on .*; wait for"):
            model.answer(PROMPTS, tmp_path / "out.jsonl", **HOW)

    model.answer(PROMPTS, tmp_path / "out.jsonl", **HOW | {"progress": progress})


@pytest.mark.parametrize(("prompts", "options", "message"), [
    ([], {}, "prompts: there are none"),
    (None, {}, "prompts=None: must be a string"),
    ([{"question": "x"}], {}, r"prompts\[0\]: is a dict without 'prompt'; give the text"),
    ([{"prompt": "x", "text": "y"}], {}, r"prompts\[0\]: has the field 'text', which the answer beside it would"),
    ([{"prompt": "x", "id": {1}}], {}, r"prompts\[0\]: cannot be written as JSON .*; give strings"),
    (["x", 3.5], {}, r"prompts\[1\]=3.5: must be a string, or whole numbers"),
    ("x", {"row_ids": [0]}, r"row_ids=\[0\]: the place of a prompt .*; leave it out"),
    ("x", {"trace": True}, "trace=True: the file keeps no canvases; leave it out"),
    ("x", {"num": 0}, "num=0: must be a whole number of at least 1"),
    ("x", {"progress": 3}, "progress=3: must be True, False"),
    ("x", {"steps": 0}, "steps=0: must be a whole number of at least 1"),
    ("x", {"output": "."}, r"output=\.: is a folder; give a file in it"),
    ("x", {"output": "out.jsonl.gz"}, "output=out.jsonl.gz: is written as plain text.*; leave out .gz"),
    ("mine.jsonl", {}, r"prompts='mine.jsonl': is a file, and no prompt; give .*json.loads\(line\) for line in open"),
    ("mine.txt", {}, r"prompts='mine.txt': is a file, and no prompt; give .*open\('mine.txt'\).read\(\).split"),
    (Path("gone.jsonl"), {}, "prompts='gone.jsonl': is a file, and no prompt"),
    ("x", {"output": "gone/out.jsonl"}, "output=gone/out.jsonl: there is no folder gone; make it"),
    ("x", {"output": "mine.jsonl"}, "output=mine.jsonl: is there already, and no mine.jsonl.job.json says"),
    ("x", {"output": "odd.jsonl"}, "output=odd.jsonl: odd.jsonl.job.json cannot be read .*; choose another file"),
    ("x", {"output": "list.jsonl"}, "output=list.jsonl: list.jsonl.job.json holds no object; choose another file"),
])
def test_mistakes(prompts, options, message, model, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("mine.jsonl", "mine.txt"):
        (tmp_path / name).write_text("{}\n")
    (tmp_path / "odd.jsonl.job.json").write_text("{")
    (tmp_path / "list.jsonl.job.json").write_text("[]")
    before = commands.snapshot(tmp_path)
    with pytest.raises(ConfigError, match=message) as caught:
        model.answer(prompts, **{"output": "out.jsonl"} | HOW | options)
    assert not faults(str(caught.value)) and commands.snapshot(tmp_path) == before


def test_a_folder_that_is_not_ours(model, tmp_path, monkeypatch):
    monkeypatch.setattr(os, "access", lambda *args: False)
    with pytest.raises(ConfigError, match="out.jsonl: no permission to write there; choose another file"):
        model.answer("x", tmp_path / "out.jsonl")


# A program of its own, killed ----------------------------------------------------------------------------------------

PROGRAM = """
import sys
import mdlm_jax

model = mdlm_jax.load(sys.argv[1])
prompts = [f"def f{i}(" + "x, " * (i % 7) for i in range(1000)]
found = model.answer(prompts, sys.argv[2], new_tokens=24, steps=8, temperature=0.8, seed=1)
print(len(found), "answers")
"""
SMALL = ("data.tokenizer=byte", "data.length=64", "model.layers=1", "model.d_model=32", "model.heads=2",
         "train.steps=20", "train.warmup_steps=2", "train.batch_size=16", "train.checkpoint_every=20", "eval.every=20",
         "eval.rows=8", "eval.final_rows=8", "eval.draws=2", "sample.num=1", "sample.steps=4")


@pytest.mark.slow
def test_a_program_that_is_killed_answers_a_thousand_prompts_once(tmp_path):
    """By SIGKILL, twice; and a line is torn, as a kill in the middle of a write leaves it."""
    (tmp_path / "sample.py").write_text(PROGRAM)
    assert train.main(["--config=quickstart", f"--workdir={tmp_path / 'model'}", f"--config.data.source={__file__}",
                       *(f"--config.{field}" for field in SMALL)]) == 0
    output = tmp_path / "killed.jsonl"

    def start(name):
        return subprocess.Popen([sys.executable, "sample.py", "model", name], cwd=tmp_path, text=True,
                                env=commands.environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE)

    answered = 0
    for wanted in (200, 500):
        one, deadline = start(output.name), time.monotonic() + 900
        while not (part := commands.part_of(output)).exists() or part.read_bytes().count(b"\n") < wanted:
            assert one.poll() is None and time.monotonic() < deadline, one.communicate()
            time.sleep(0.001)
        one.send_signal(signal.SIGKILL)
        one.communicate()
        lines = part.read_bytes().count(b"\n")
        assert answered < lines < 1000 and lines >= wanted and not output.exists()
        answered = lines
        with open(part, "ab") as file:
            file.write(b'{"prompt": "def f99')
    last = start(output.name)
    out, err = last.communicate(timeout=900)
    assert last.returncode == 0 and out == "1000 answers\n", err
    first = re.search(r"answers: (\d+)/1000 answers", err)
    assert int(first[1]) > answered and "1000/1000 answers (100%)" in err
    whole = start("whole.jsonl")
    assert whole.wait(900) == 0 and output.read_bytes() == (tmp_path / "whole.jsonl").read_bytes()
    found = [json.loads(line) for line in output.read_text().splitlines()]
    assert [one["index"] for one in found] == list(range(1000)) and len({one["prompt"] for one in found}) == 1000
    assert len({one["text"] for one in found}) > 500
