"""What a task is: rows of a file to prompts, and an answer to a verdict."""

import abc
import dataclasses
import gzip
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mdlm_jax.errors import ConfigError

Row = Mapping[str, Any]
Verdict = dict[str, float]  # figures of one answer; booleans count 0 and 1


@dataclasses.dataclass(frozen=True)
class Task(abc.ABC):
    """Free of jax.

    Attributes:
      name: on the command line. ``fields``: what a row of its file must hold.
      stop: strings that end an answer. ``new_tokens``: that it may have, unless told otherwise.
      main: the figure that counts.
      turns: how often the model is asked; the last answer is judged.
    """

    name: str
    fields: tuple[str, ...]
    stop: tuple[str, ...]
    new_tokens: int
    main: str
    turns: int = 1

    def make(self, rng: np.random.Generator, number: int) -> list[dict[str, Any]]:
        """Rows of its own, of tasks that make them."""
        raise ConfigError(f"task {self.name}: makes no rows, it reads those of a file; give one")

    def mistake(self, row: Row) -> str:
        """What is wrong with a row that has all fields; empty where nothing is."""
        del row
        return ""

    @abc.abstractmethod
    def prompt(self, row: Row, shots: Sequence[Row]) -> str:
        """What the model is given, after solved examples."""

    def follow(self, prompt: str, answer: str) -> str:
        """What it is given next, of tasks with several turns."""
        raise NotImplementedError(f"{self.name}: has one turn")

    def records(self, row: Row) -> list[dict[str, str]]:
        """What a solved row teaches: pairs of ``prompt`` and ``completion`` for training."""
        raise ConfigError(f"task {self.name}: has no form for training; choose another")

    def lacking(self) -> list[str]:
        """What this machine cannot keep from the programs that verdicts run, a clause each; of others nothing."""
        return []

    @abc.abstractmethod
    def verdict(self, row: Row, answer: str) -> Verdict:
        """Of the text that came back, cut at a stop string."""


@dataclasses.dataclass(frozen=True)
class Mean:
    """Of a figure over independent values, with its standard error."""

    value: float
    stderr: float
    number: int

    @classmethod
    def of(cls, values: Sequence[float]) -> "Mean":
        number = len(values)
        mean = sum(values) / number
        if number == 1:
            return cls(mean, math.nan, 1)
        return cls(mean, math.sqrt(sum((v - mean) ** 2 for v in values) / (number - 1) / number), number)

    @classmethod
    def of_rows(cls, values: Sequence[tuple[int, float]]) -> "Mean":
        """Of pairs (row, value): samples of one row depend on each other, so that their mean counts once."""
        rows: dict[int, list[float]] = {}
        for row, value in values:
            rows.setdefault(row, []).append(value)
        return cls.of([sum(samples) / len(samples) for samples in rows.values()])

    def __str__(self) -> str:
        return f"{self.value:.4f}" if math.isnan(self.stderr) else f"{self.value:.4f} +- {self.stderr:.4f}"


def read_rows(path: Path, label: str) -> list[dict[str, Any]]:
    """The objects of a .jsonl or .jsonl.gz file; blank lines hold none. ConfigError, naming ``label`` and the line,
    where one is no object."""
    opener = gzip.open if path.suffix == ".gz" else open
    try:
        with opener(path, "rt", encoding="utf-8-sig", newline="\n") as file:  # at no other ends of lines
            lines = [(number, line) for number, line in enumerate(file, 1) if line.strip()]
    except (OSError, EOFError, UnicodeError) as error:
        raise ConfigError(f"{label}: cannot be read ({error}); renew it") from None
    return [_object(line, f"{label}, line {number}") for number, line in lines]


def _object(line: str, where: str) -> dict[str, Any]:
    try:
        found = json.loads(line)
    except ValueError as error:
        raise ConfigError(f"{where}: is not JSON ({error}); write one object a line") from None
    if not isinstance(found, dict):
        raise ConfigError(f"{where}: is a {type(found).__name__}; write one object a line")
    return found


def check_rows(task: Task, rows: Sequence[Row], label: str) -> None:
    """ConfigError, naming the line, where a row lacks a field, or holds there what the task cannot use."""
    for number, row in enumerate(rows, 1):
        for field in task.fields:
            if field not in row:
                raise ConfigError(f"{label}, line {number}: has no field {field!r}, which the task {task.name} reads; "
                                  f"it has {', '.join(row)}")
        if wrong := task.mistake(row):
            raise ConfigError(f"{label}, line {number}: {wrong}, which the task {task.name} reads; repair the row, or "
                              "leave it out")
