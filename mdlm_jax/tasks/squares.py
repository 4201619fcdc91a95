"""Squares of 4 x 4: ParallelBench's puzzles (arXiv 2510.04767); rows are made here.

A Sudoku with one solution has one right answer, so that all of it may be written at once; a Latin square is any of
4! 4! = 576, whose cells, each drawn by itself, hardly ever fit together.
"""

import dataclasses
import functools
import itertools
from collections.abc import Sequence

import numpy as np

from mdlm_jax.tasks.base import Row, Task, Verdict

SIZE = 4
_GIVEN = 12
_SYMBOLS = "ABCDEFGHJKLMNPQRSTUVWXYZ23456789"


def groups(boxes: bool) -> list[list[tuple[int, int]]]:
    """The cells that must differ: rows, columns and, of Sudokus, boxes of 2 x 2."""
    each = range(SIZE)
    found = [[(i, j) for j in each] for i in each] + [[(i, j) for i in each] for j in each]
    if boxes:
        found += [[(i + a, j + b) for a in (0, 1) for b in (0, 1)] for i in (0, 2) for j in (0, 2)]
    return found


def squares(symbols: str, boxes: bool) -> list[tuple[str, ...]]:
    """All that obey the rules, four lines each."""
    table = str.maketrans("1234", symbols)
    return [tuple(line.translate(table) for line in square) for square in _every(boxes)]


@functools.cache
def _every(boxes: bool) -> tuple[tuple[str, ...], ...]:
    lines = ["".join(line) for line in itertools.permutations("1234")]
    return tuple(square for square in itertools.product(lines, repeat=SIZE) if _obeys(square, "1234", boxes))


def _obeys(square: Sequence[str], symbols: str, boxes: bool) -> bool:
    return all({square[i][j] for i, j in group} == set(symbols) for group in groups(boxes))


@dataclasses.dataclass(frozen=True)
class Square(Task):
    """Rows with ``symbols``, ``grid`` (four lines, . for a cell that is to be filled) and ``answer``, a right square.

    right: the rules are kept, and what was given. form: the answer begins with four lines of four symbols.

    Attributes:
      boxes: whether the symbols of a box of 2 x 2 must differ too.
      given: cells of the grid that are given.
    """

    name: str = "latin_square"
    fields: tuple[str, ...] = ("symbols", "grid", "answer")
    stop: tuple[str, ...] = ("\n\n",)
    new_tokens: int = 48
    main: str = "right"
    boxes: bool = False
    given: int = 0

    def make(self, rng: np.random.Generator, number: int) -> list[dict]:
        """Latin squares of symbols drawn anew; Sudokus of 1, 2, 3, 4 with one solution."""
        found = []
        for _ in range(number):
            symbols = "1234" if self.boxes else "".join(rng.choice(list(_SYMBOLS), SIZE, replace=False))
            found.append(self._row(rng, symbols, squares(symbols, self.boxes)))
        return found

    def _row(self, rng: np.random.Generator, symbols: str, every: list[tuple[str, ...]]) -> dict:
        while True:
            answer = every[rng.integers(len(every))]
            shown = set(rng.choice(SIZE * SIZE, self.given, replace=False).tolist())
            grid = ["".join(c if i * SIZE + j in shown else "." for j, c in enumerate(line))
                    for i, line in enumerate(answer)]
            if not self.given or sum(_keeps(grid, one) for one in every) == 1:
                return {"symbols": symbols, "grid": grid, "answer": list(answer)}

    def mistake(self, row: Row) -> str:
        symbols, grid, answer = row["symbols"], row["grid"], row["answer"]
        if not isinstance(symbols, str) or len(set(symbols)) != SIZE or len(symbols) != SIZE:
            return f"symbols={symbols!r} are not {SIZE} different ones"
        if not all(isinstance(one, list) and len(one) == SIZE and all(isinstance(line, str) and len(line) == SIZE
                                                                      for line in one) for one in (grid, answer)):
            return f"grid and answer must be {SIZE} lines of {SIZE} symbols"
        return "" if self._right(row, answer) else "answer is none that the task accepts"

    def prompt(self, row: Row, shots: Sequence[Row]) -> str:
        solved = "".join(f"{self._asked(shot)}\n{_written(shot['answer'])}\n\n" for shot in shots)
        return solved + self._asked(row) + "\n"

    def _asked(self, row: Row) -> str:
        symbols = ", ".join(row["symbols"])
        if self.boxes:
            return (f"Complete the Sudoku: each of {symbols} once in every row, column and box of 2 x 2.\n"
                    f"{_written(row['grid'])}\nSolution:")
        return f"Write a Latin square, four lines of four: each of {symbols} once in every row and column.\nSquare:"

    def records(self, row: Row) -> list[dict[str, str]]:
        return [{"prompt": self.prompt(row, ()), "completion": f"{_written(row['answer'])}\n\n"}]

    def verdict(self, row: Row, answer: str) -> Verdict:
        lines = [line.replace(" ", "").split(",") for line in answer.strip().split("\n")[:SIZE]]
        form = len(lines) == SIZE and all(len(line) == SIZE and all(len(c) == 1 for c in line) for line in lines)
        return {"form": float(form), "right": float(form and self._right(row, ["".join(line) for line in lines]))}

    def _right(self, row: Row, square: Sequence[str]) -> bool:
        return _obeys(square, row["symbols"], self.boxes) and _keeps(row["grid"], square)


def _keeps(grid: Sequence[str], square: Sequence[str]) -> bool:
    return all(shown in (".", c) for a, b in zip(grid, square, strict=True) for shown, c in zip(a, b, strict=True))


def _written(lines: Sequence[str]) -> str:
    return "\n".join(",".join(line) for line in lines)
