"""Waiting lines: what comes of a line of people, of ParallelBench's kind (arXiv 2510.04767); rows are made here.

A decoder that writes several tokens at once draws each by itself. Where one answer is right (line_copy, line_sort, ...)
it loses nothing; where many are (line_shuffle, ...) what it puts together need not be any of them. The languages of
those names (`data.languages.lines`) are their twins of one token a person.
"""

import dataclasses
import json
from collections import Counter
from collections.abc import Callable, Sequence

import numpy as np

from mdlm_jax.tasks.base import Row, Task, Verdict

_FIRST = ("Ada", "Ben", "Cleo", "Dev", "Edith", "Finn", "Gwen", "Hugo", "Iris", "Joel", "Kira", "Liam", "Mona", "Nils",
          "Opal", "Paul", "Quinn", "Rosa", "Sven", "Tara")
_LAST = ("Abbott", "Berg", "Costa", "Dunn", "Ellis", "Fox", "Grant", "Hall", "Ito", "Jones", "Klein", "Lopez", "Meyer",
         "Novak", "Olsen", "Price", "Reed", "Stone", "Tran", "Weber")
_NAMES = tuple(f"{first} {last}" for first in _FIRST for last in _LAST)
_PEOPLE = (3, 4, 5, 6)


@dataclasses.dataclass(frozen=True)
class Kind:
    """What is asked of a line, with {name} and {place} filled in; what is right; one right answer, drawn."""

    asked: str
    right: Callable[[Row, list], bool]
    answer: Callable[[Row, np.random.Generator], list]


def _edited(row: Row, place: int, removed: int, name: str | None) -> list:
    """The line without so many people from ``place``, with the new one there."""
    people = list(row["people"])
    people[place : place + removed] = [name] if name is not None else []
    return people


def _certain(asked: str, answer: Callable[[Row], list]) -> Kind:
    return Kind(asked, lambda row, found: found == answer(row), lambda row, rng: answer(row))


def _anywhere(asked: str, removed: int, comes: bool) -> Kind:
    """At any one place."""
    def options(row: Row) -> list[list]:
        places = len(row["people"]) + (not removed)
        return [_edited(row, place, removed, row["name"] if comes else None) for place in range(places)]

    return Kind(asked, lambda row, found: found in options(row), lambda row, rng: options(row)[
        rng.integers(len(options(row)))])


def _shuffled(row: Row, rng: np.random.Generator) -> list:
    people = list(row["people"])
    while people == row["people"]:
        people = [row["people"][i] for i in rng.permutation(len(people))]
    return people


KINDS = {
    "line_copy": _certain("Write the line as it is.", lambda row: list(row["people"])),
    "line_reverse": _certain("Reverse the line.", lambda row: row["people"][::-1]),
    "line_sort": _certain("Sort the line by name.", lambda row: sorted(row["people"])),
    "line_insert_index": _certain("Insert {name} so that they stand at place {place}.",
                                  lambda row: _edited(row, row["place"] - 1, 0, row["name"])),
    "line_remove_index": _certain("Remove who stands at place {place}.",
                                  lambda row: _edited(row, row["place"] - 1, 1, None)),
    "line_replace_index": _certain("Replace who stands at place {place} by {name}.",
                                   lambda row: _edited(row, row["place"] - 1, 1, row["name"])),
    "line_shuffle": Kind("Shuffle the line: the same people in any other order.",
                         lambda row, found: Counter(found) == Counter(row["people"]) and found != row["people"],
                         _shuffled),
    "line_insert": _anywhere("Insert {name} at any place.", 0, True),
    "line_remove": _anywhere("Remove any one person.", 1, False),
    "line_replace": _anywhere("Replace any one person by {name}.", 1, True),
}


@dataclasses.dataclass(frozen=True)
class WaitingLine(Task):
    """Rows with ``people``, a new ``name`` and a ``place`` counted from 1, and ``answer``, a right one, for examples.

    right: the list is one that was asked for. form: the answer holds a JSON list of texts at all.
    """

    name: str = "line_shuffle"
    fields: tuple[str, ...] = ("people", "name", "place", "answer")
    stop: tuple[str, ...] = ("\n",)
    new_tokens: int = 64
    main: str = "right"

    def make(self, rng: np.random.Generator, number: int) -> list[dict]:
        """Lines of 3 to 6 people in turn."""
        return [self.row(rng, _PEOPLE[i % len(_PEOPLE)]) for i in range(number)]

    def row(self, rng: np.random.Generator, people: int) -> dict:
        """A row of so many people, all distinct, and somebody else."""
        names = [_NAMES[i] for i in rng.choice(len(_NAMES), people + 1, replace=False)]
        row = {"people": names[:-1], "name": names[-1], "place": int(rng.integers(people)) + 1}
        return row | {"answer": KINDS[self.name].answer(row, rng)}

    def mistake(self, row: Row) -> str:
        people = row["people"]
        if not (_is_line(people) and _is_line(row["answer"]) and len(people) > 1 and isinstance(row["name"], str)):
            return "people, answer and name must be two lists of names and a name"
        if not (isinstance(row["place"], int) and 1 <= row["place"] <= len(people)):
            return f"place={row['place']!r} is none of 1 to {len(people)}"
        return "" if KINDS[self.name].right(row, row["answer"]) else "answer is none that the task accepts"

    def prompt(self, row: Row, shots: Sequence[Row]) -> str:
        solved = "".join(f"{self._asked(shot)} {json.dumps(shot['answer'])}\n\n" for shot in shots)
        return solved + self._asked(row)

    def _asked(self, row: Row) -> str:
        asked = KINDS[self.name].asked.format(name=row["name"], place=row["place"])
        return f"Waiting line: {json.dumps(row['people'])}\n{asked}\nNew line:"

    def records(self, row: Row) -> list[dict[str, str]]:
        return [{"prompt": self.prompt(row, ()), "completion": f" {json.dumps(row['answer'])}\n"}]

    def verdict(self, row: Row, answer: str) -> Verdict:
        found = _first_list(answer)
        right = found is not None and KINDS[self.name].right(row, found)
        return {"form": float(found is not None), "right": float(right)}


def _is_line(value) -> bool:
    return isinstance(value, list) and all(isinstance(one, str) for one in value)


def _first_list(text: str) -> list | None:
    """The JSON list of texts at the first bracket; None where there is none."""
    start = text.find("[")
    try:
        found = json.JSONDecoder().raw_decode(text, max(start, 0))[0] if start >= 0 else None
    except (ValueError, RecursionError):
        return None
    return found if _is_line(found) else None
