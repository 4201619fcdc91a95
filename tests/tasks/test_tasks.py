"""Prompts as published, verdicts by hand, and the real problems with their own solutions."""

import gzip
import json

import pytest

from mdlm_jax.errors import ConfigError
from mdlm_jax.tasks.base import Mean, check_rows, read_rows
from mdlm_jax.tasks.match import bleu
from mdlm_jax.tasks.numbers import number
from mdlm_jax.tasks.registry import TASKS

DUCKS = {"question": "How many eggs?", "answer": "3 + 15 = <<3+15=18>>18\n#### 1,018"}
ADD = {"prompt": "def add(a, b):\n", "entry_point": "add", "test": "def check(f):\n    assert f(2, 3) == 5\n"}
SQUARE = {"text": "Write a function to square a number.", "code": "def square(x):\n    return x * x",
          "test_list": ["assert square(3) == 9", "assert square(-1) == 1"]}


def test_gsm8k_asks_after_solved_examples_and_reads_the_number():
    task = TASKS["gsm8k"]
    assert task.prompt(DUCKS, [DUCKS]) == (f"Question: How many eggs?\nAnswer: {DUCKS['answer']}\n\n"
                                           "Question: How many eggs?\nAnswer:")
    for answer, strict, flexible in (
        (" so #### 1018", 1, 1), ("#### $1,018.00", 1, 1), ("#### 1018.", 1, 1), ("#### 3 #### 1018", 1, 1),
        ("it is 1018 eggs", 0, 1), ("#### 1017", 0, 0), ("", 0, 0), ("#### 10.18e2", 0, 0), ("#### ,", 0, 0),
    ):
        assert task.verdict(DUCKS, answer) == {"strict": strict, "flexible": flexible}, answer


@pytest.mark.parametrize(("text", "value"), [("$1,000", 1000), ("0.50", 0.5), ("-3", -3), ("1.2.3", None), ("-", None)])
def test_numbers_as_they_are_written(text, value):
    assert number(text) == value


def test_programs_are_run_against_their_tests():
    task = TASKS["humaneval"]
    assert task.prompt(ADD, [ADD]) == ADD["prompt"]
    assert task.verdict(ADD, "    return a + b\n") == {"passed": 1, "timed_out": 0}
    assert task.verdict(ADD, "    return a - b\n") == {"passed": 0, "timed_out": 0}
    assert task.verdict(ADD, "    return (") == {"passed": 0, "timed_out": 0}
    mbpp = TASKS["mbpp"]
    asked = mbpp.prompt(SQUARE, [SQUARE])
    assert asked.count("[BEGIN]\n") == 2 and f"[BEGIN]\n{SQUARE['code']}\n[DONE]\n\nYou are" in asked
    assert asked.endswith("assert square(3) == 9\nassert square(-1) == 1\n[BEGIN]\n")
    assert mbpp.verdict(SQUARE, SQUARE["code"])["passed"]
    assert not mbpp.verdict(SQUARE, "def square(x): return x")["passed"]


@pytest.mark.parametrize("leaving", ["exit()", "sys.exit(0)", "raise SystemExit", "os._exit(0)"])
def test_a_wrong_program_that_leaves_before_its_tests_fails(leaving):
    wrong = f"def square(x): return x\nimport os, sys\n{leaving}"
    assert TASKS["mbpp"].verdict(SQUARE, wrong) == {"passed": 0, "timed_out": 0}
    assert not TASKS["humaneval"].verdict(ADD, f"    import os, sys\n    {leaving}\n")["passed"]


def test_the_main_block_of_an_answer_is_not_run():
    main = "\n\ndef main():\n    print(square(int(input())))\n    return 0\n\n\nif __name__ == '__main__':\n"
    verdict = TASKS["mbpp"].verdict
    assert verdict(SQUARE, SQUARE["code"] + main + "    main()\n")["passed"] == 1
    assert not verdict(SQUARE, "def square(x): return x" + main + "    import sys\n    sys.exit(0)\n")["passed"]


def test_match_is_a_substring_and_bleu_of_characters():
    task = TASKS["match"]
    row = {"prompt": "Known as the composer,", "completion": " Uriah Hawthorne"}
    assert task.verdict(row, " it was URIAH hawthorne.")["match"] == 1 and not task.verdict(row, " Uriah")["match"]
    assert task.verdict(row, " Uriah Hawthorne")["bleu"] == pytest.approx(1.0)
    # abcd in abcde: precisions 4/5, 3/4, 2/3, 1/2, no brevity; abc: 3/3, 2/2, 1/1 and none of four
    assert bleu("abcd", "abcde") == pytest.approx((4 / 5 * 3 / 4 * 2 / 3 * 1 / 2) ** 0.25)
    assert bleu("abcdefgh", "abcd") == pytest.approx(pytest.approx(2.718281828**-1)) and bleu("abcd", "abc") == 0.0
    assert bleu("aab", "aaaaa") == 0.0 and bleu("abcd", "") == 0.0


def test_means_have_errors():
    assert str(Mean.of([1.0, 0.0, 1.0, 0.0])) == "0.5000 +- 0.2887" and str(Mean.of([1.0])) == "1.0000"
    # a row of which all samples are right and one of which none is are two values, not eight
    several = [(row, float(row)) for row in (0, 1) for _ in range(4)]
    assert Mean.of_rows(several) == Mean.of([0.0, 1.0]) and Mean.of_rows(several).stderr == 0.5


def test_files_that_hold_no_rows_are_named(tmp_path):
    path = tmp_path / "rows.jsonl.gz"
    with gzip.open(path, "wt") as file:
        file.write(json.dumps(DUCKS) + "\n\n" + json.dumps(DUCKS) + "\n")
    assert read_rows(path, "--data") == [DUCKS, DUCKS]
    for content, said in (('{"a": 1}\n[1]\n', "line 2: is a list"), ("{", "line 1: is not JSON")):
        (tmp_path / "bad.jsonl").write_text(content)
        with pytest.raises(ConfigError, match=said):
            read_rows(tmp_path / "bad.jsonl", "--data")
    odd = DUCKS | {"question": "How\u2028many\u0085eggs?"}
    (tmp_path / "odd.jsonl").write_bytes((json.dumps(odd, ensure_ascii=False) + "\r\n").encode() * 2)
    assert read_rows(tmp_path / "odd.jsonl", "--data") == [odd, odd]
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(ConfigError, match="cannot be read"):
        read_rows(path, "--data")
    for task in ("gsm8k", "gsm8k_twice"):
        check_rows(TASKS[task], [DUCKS], "--data")
        with pytest.raises(ConfigError, match="--data, line 2: answer ends in no '#### NUMBER'"):
            check_rows(TASKS[task], [DUCKS, DUCKS | {"answer": "no number"}], "--data")
    with pytest.raises(ConfigError, match="line 1: has no field 'prompt', which the task match reads"):
        check_rows(TASKS["match"], [DUCKS], "--data")
