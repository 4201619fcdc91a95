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

import functools
import itertools
from collections.abc import Callable, Iterator

from mdlm_jax.config import ConfigError
from mdlm_jax.data.languages.enumerated import Enumerated

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


_AFTERWARDS: dict[str, tuple[Callable[[Line, int], Iterator[Line]], bool]] = {  # what may follow; whether one comes
    "line_copy": (lambda line, new: iter([line]), False),
    "line_reverse": (lambda line, new: iter([line[::-1]]), False),
    "line_sort": (lambda line, new: iter([tuple(sorted(line))]), False),
    "line_shuffle": (_shuffled, False),
    "line_replace": (_replaced, True),
    "line_insert": (_inserted, True),
    "line_remove": (_removed, False),
}


def _line(kind: str, people: int = 4, names: int = 8) -> Enumerated:
    if not 2 <= people < names <= 8:
        raise ConfigError(f"people={people}, names={names}: must be 2 <= people < names <= 8")
    if kind in ("line_shuffle", "line_insert") and people > 4:
        raise ConfigError(f"people={people}: {kind} has too many rows to write down beyond 4; lower it")
    afterwards, comes = _AFTERWARDS[kind]
    rows = []
    for line in itertools.permutations(range(names), people):
        for new in sorted(set(range(names)) - set(line)) if comes else (-1,):
            rows += [line + (new,) * comes + after for after in afterwards(line, new)]
    return Enumerated.uniform(rows, names, given=people + comes)


LINES: dict[str, Callable[..., Enumerated]] = {kind: functools.partial(_line, kind) for kind in _AFTERWARDS}
