"""ParallelBench's tasks: rows, verdicts by brute force, and the twins of one token a person."""

import itertools
import json
import math

import numpy as np
import pytest

from mdlm_jax.data.languages.registry import make
from mdlm_jax.errors import ConfigError
from mdlm_jax.tasks.base import check_rows
from mdlm_jax.tasks.registry import TASKS
from mdlm_jax.tasks.squares import squares
from mdlm_jax.tasks.waiting_line import KINDS

RNG = np.random.default_rng
PUZZLES = ("latin_square", "sudoku")
ROW = {"people": ["Ann", "Bo", "Cy"], "name": "Di", "place": 2}
ALL = [list(line) for size in range(5) for line in itertools.product(["Ann", "Bo", "Cy", "Di"], repeat=size)]
ACCEPTED = {
    "line_copy": ["Ann Bo Cy"], "line_reverse": ["Cy Bo Ann"], "line_sort": ["Ann Bo Cy"],
    "line_insert_index": ["Ann Di Bo Cy"], "line_remove_index": ["Ann Cy"], "line_replace_index": ["Ann Di Cy"],
    "line_shuffle": ["Ann Cy Bo", "Bo Ann Cy", "Bo Cy Ann", "Cy Ann Bo", "Cy Bo Ann"],
    "line_insert": ["Ann Bo Cy Di", "Ann Bo Di Cy", "Ann Di Bo Cy", "Di Ann Bo Cy"],
    "line_remove": ["Ann Bo", "Ann Cy", "Bo Cy"],
    "line_replace": ["Ann Bo Di", "Ann Di Cy", "Di Bo Cy"],
}


@pytest.mark.parametrize("kind", KINDS)
def test_of_all_lists_those_that_were_asked_for_are_right(kind):
    task = TASKS[kind]
    right = [" ".join(line) for line in ALL if task.verdict(ROW, f" {json.dumps(line)}\n")["right"]]
    assert sorted(right) == ACCEPTED[kind]


@pytest.mark.parametrize(("answer", "form"), [
    ('["Bo", "Ann", "Cy"] and more', 1), (' The line: ["Bo","Ann","Cy"]', 1), ('["Bo", "Ann", "Cy"', 0), ("", 0),
    ("[1, 2]", 0), ("Bo, Ann, Cy", 0), ("[" * 5000, 0),
])
def test_the_first_list_of_names_counts(answer, form):
    assert TASKS["line_shuffle"].verdict(ROW, answer) == {"form": form, "right": form}


@pytest.mark.parametrize("name", [*KINDS, *PUZZLES])
def test_rows_follow_from_the_seed_and_their_answers_are_right(name):
    task = TASKS[name]
    rows = task.make(RNG(3), 12)
    assert rows == task.make(RNG(3), 12) != task.make(RNG(4), 12)
    check_rows(task, json.loads(json.dumps(rows)), "made")
    for row in rows:
        record, = task.records(row)
        assert task.verdict(row, record["completion"]) == {"form": 1, "right": 1}
        assert task.prompt(row, rows[:1]) == task.prompt(rows[0], ()) + record_of(task, rows[0]) + task.prompt(row, ())


def record_of(task, row):
    """An example's answer, as it stands before the next question: one empty line between."""
    return task.records(row)[0]["completion"].rstrip("\n") + "\n\n"


def test_a_prompt():
    assert TASKS["line_replace_index"].prompt(ROW, ()) == (
        'Waiting line: ["Ann", "Bo", "Cy"]\nReplace who stands at place 2 by Di.\nNew line:')
    assert {len(row["people"]) for row in TASKS["line_copy"].make(RNG(0), 8)} == {3, 4, 5, 6}


@pytest.mark.parametrize(("change", "said"), [
    ({"people": ["Ann"]}, "must be two lists of names and a name"), ({"place": 4}, "place=4 is none of 1 to 3"),
    ({"answer": ["Ann", "Bo", "Cy"]}, "answer is none that the task accepts"),
])
def test_rows_that_cannot_be_used_are_named(change, said):
    with pytest.raises(ConfigError, match=said):
        check_rows(TASKS["line_shuffle"], [ROW | {"answer": ["Bo", "Ann", "Cy"]} | change], "rows.jsonl")


def test_squares():
    latin, sudoku = squares("1234", False), squares("1234", True)
    assert (len(latin), len(sudoku)) == (576, 288) and set(sudoku) < set(latin)
    row = TASKS["sudoku"].make(RNG(1), 1)[0]
    assert sum(c != "." for line in row["grid"] for c in line) == 12
    right = [one for one in latin if TASKS["sudoku"].verdict(row, "\n".join(",".join(line) for line in one))["right"]]
    assert right == [tuple(row["answer"])]
    empty = {"symbols": "1234", "grid": ["...."] * 4, "answer": list(latin[0])}
    for one in latin[:50]:
        text = "\n".join(", ".join(line) for line in one)
        assert TASKS["latin_square"].verdict(empty, text)["right"]
        assert not TASKS["latin_square"].verdict(empty, text.replace("1", "2", 1))["right"]
    assert TASKS["latin_square"].verdict(empty, "1,2\n3,4") == {"form": 0, "right": 0}
    with pytest.raises(ConfigError, match="symbols='1123' are not 4 different ones"):
        check_rows(TASKS["latin_square"], [empty | {"symbols": "1123"}], "rows.jsonl")


@pytest.mark.parametrize("kind", ["line_copy", "line_reverse", "line_sort", "line_shuffle", "line_insert",
                                  "line_remove", "line_replace"])
def test_the_languages_are_the_tasks_with_a_token_a_person(kind):
    """Of every line, the rows of the language are what the task's rule accepts."""
    language = make(f"{kind}:people=3,names=5")
    for row in language.rows[:: max(1, len(language.rows) // 40)]:
        line, names = [str(i) for i in row[:3]], [str(i) for i in range(5)]
        same = language.rows[(language.rows[:, : language.given] == row[: language.given]).all(1)]
        asked = {"people": line, "name": str(row[3]) if language.given > 3 else "", "place": 1}
        after = language.length - language.given
        right = [list(x) for x in itertools.product(names, repeat=after) if KINDS[kind].right(asked, list(x))]
        assert sorted([str(i) for i in x[language.given :]] for x in same) == sorted(right)


@pytest.mark.parametrize(("name", "closed"), [
    ("shuffle", 6 * math.log(6) - math.log(720)), ("replace:size=5", 4 * math.log(5 / 4)), ("parity", math.log(2)),
    ("latin", 16 * math.log(4) - math.log(576)), ("sudoku", 16 * math.log(4) - math.log(288)),
    ("line_copy", 0), ("line_reverse", 0), ("line_sort", 0), ("line_replace", 3 * math.log(4 / 3)),
    ("line_replace:people=3,names=5", 2 * math.log(3 / 2)),
])
def test_what_one_forward_costs_is_the_closed_form(name, closed):
    assert make(name).correlation() == pytest.approx(closed, abs=1e-9)


def test_the_correlation_of_a_shuffled_line_by_hand():
    """Two other orders of three are cycles, three are swaps; each place keeps its own in 1 of 5 and else has 2 of 5."""
    each = -(0.2 * math.log(0.2) + 0.8 * math.log(0.4))
    assert make("line_shuffle:people=3,names=4").correlation() == pytest.approx(3 * each - math.log(5))


@pytest.mark.parametrize(("settings", "said"), [
    ("line_sort:people=1", "people=1, names=8: must be 2 <= people < names <= 8"),
    ("line_copy:names=9", "names=9: must be"),
    ("line_shuffle:people=5", "people=5: line_shuffle has 799,680 rows then"),
])
def test_lines_out_of_range_are_refused(settings, said):
    with pytest.raises(ConfigError, match=said):
        make(settings)
