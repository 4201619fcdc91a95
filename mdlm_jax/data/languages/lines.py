"""Waiting lines: a line of people and what becomes of it, the token-level twins of ParallelBench's tasks (2510.04767).

    row = line (m tokens) | a new person, where one comes | the line afterwards

    line_copy      as it was                      one right answer: nothing is lost by writing all its tokens at once
    line_reverse   from its end                   the same
    line_sort      by number                      the same
    line_shuffle   any other order                C = sum_i H(x_i) - H(x) given the prompt, close to m ln m - ln m!
    line_replace   the new person for any one     C = (m - 1) ln(m / (m - 1))
    line_insert    the new person anywhere
    line_remove    without any one

All rows are alike, and all can be written down (`enumerated`).
"""

import itertools
import math
from collections.abc import Callable, Iterator
from typing import NamedTuple

from mdlm_jax.config import ConfigError
from mdlm_jax.data.languages.enumerated import MOST_ROWS, Enumerated

Line = tuple[int, ...]


def _shuffled(line: Line, new: int) -> Iterator[Line]:
    del new
    return (order for order in itertools.permutations(line) if order != line)


def _replaced(line: Line, new: int) -> Iterator[Line]:
    return (line[:i] + (new,) + line[i + 1 :] for i in range(len(line)))


def _inserted(line: Line, new: int) -> Iterator[Line]:
    return (line[:i] + (new,) + line[i:] for i in range(len(line) + 1))


def _removed(line: Line, new: int) -> Iterator[Line]:
    del new
    return (line[:i] + line[i + 1 :] for i in range(len(line)))


class _Kind(NamedTuple):
    """What may stand there afterwards, by the line and the new person; whether one comes; in words."""

    afterwards: Callable[[Line, int], Iterator[Line]]
    comes: bool
    words: str


_KINDS = {
    "line_copy": _Kind(lambda line, new: iter([line]), False, "as it was."),
    "line_reverse": _Kind(lambda line, new: iter([line[::-1]]), False, "from its end."),
    "line_sort": _Kind(lambda line, new: iter([tuple(sorted(line))]), False, "by number."),
    "line_shuffle": _Kind(_shuffled, False, "any other order of it."),
    "line_replace": _Kind(_replaced, True, "somebody new for any one."),
    "line_insert": _Kind(_inserted, True, "with somebody new anywhere."),
    "line_remove": _Kind(_removed, False, "without any one."),
}


def _maker(kind: str) -> Callable[..., Enumerated]:
    def line(people: int = 4, names: int = 8) -> Enumerated:
        return _line(kind, people, names)

    line.__name__, line.__doc__ = kind, f"A line of people, and {_KINDS[kind].words}"
    return line


def _line(kind: str, people: int, names: int) -> Enumerated:
    if not 2 <= people < names <= 8:
        raise ConfigError(f"people={people}, names={names}: must be 2 <= people < names <= 8")
    afterwards, comes, _ = _KINDS[kind]
    each = sum(1 for _ in afterwards(tuple(range(people)), people))
    number = math.perm(names, people) * each * (names - people if comes else 1)
    if number > MOST_ROWS:
        raise ConfigError(f"people={people}: {kind} has {number:,} rows then, and at most {MOST_ROWS:,} can be written "
                          "down; lower it")
    rows = []
    for line in itertools.permutations(range(names), people):
        for new in sorted(set(range(names)) - set(line)) if comes else (-1,):
            rows += [line + (new,) * comes + after for after in afterwards(line, new)]
    return Enumerated.uniform(rows, names, given=people + comes)


LINES = {kind: _maker(kind) for kind in _KINDS}
