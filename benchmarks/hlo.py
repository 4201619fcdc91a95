"""What a compiled program does, counted in its text: matrix-product FLOPs and collectives, loops taken into account.

XLA's own ``cost_analysis`` counts the body of a loop once, so scanned layers and chunked heads look cheap there.
"""

import collections
import dataclasses
import math
import re

_WIDTH = {"pred": 1, "s8": 1, "u8": 1, "bf16": 2, "f16": 2, "s16": 2, "u16": 2, "f32": 4, "s32": 4, "u32": 4, "f64": 8,
          "s64": 8, "u64": 8}
_COMPUTATION = re.compile(r"(ENTRY )?%?([\w.\-]+) \(.*\{$")
_INSTRUCTION = re.compile(r"\s+(?:ROOT )?%?([\w.\-]+) = (\(.*?\)|\S+) ([\w\-]+)\(([^)]*)\)(.*)")
_SHAPE = re.compile(r"\b([a-z]+\d*)\[([\d,]*)\]")
_CALLED = re.compile(r"(?:calls|to_apply|body|condition|true_computation|false_computation)=%?([\w.\-]+)")
_BRANCHES = re.compile(r"branch_computations=\{([^}]*)\}")
_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"\}')
_COLLECTIVES = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute")


@dataclasses.dataclass
class Counts:
    """Per device and execution.

    Attributes:
      dots: (shape of the result, number of terms in each sum) -> FLOPs.
      number, bytes: kind of collective -> how many, and bytes of their results.
    """

    dots: collections.Counter = dataclasses.field(default_factory=collections.Counter)
    number: collections.Counter = dataclasses.field(default_factory=collections.Counter)
    bytes: collections.Counter = dataclasses.field(default_factory=collections.Counter)

    @property
    def flops(self) -> int:
        return sum(self.dots.values())

    def add(self, other: "Counts", times: int) -> None:
        for mine, theirs in ((self.dots, other.dots), (self.number, other.number), (self.bytes, other.bytes)):
            for name, value in theirs.items():
                mine[name] += times * value


def count(text: str) -> Counts:
    """Counts the optimised HLO text of an executable, ``compiled.as_text()``.

    Raises:
      ValueError: a loop around counted work whose number of turns the text does not say.
    """
    computations, entry = _split(text)
    done: dict[str, Counts] = {}

    def total(name: str) -> Counts:
        if name not in done:
            own = done[name] = Counts()
            shapes = {}
            for instruction in computations[name]:
                label, shape, operation, operands, rest = instruction
                shapes[label] = shape
                _count_one(own, shape, operation, operands, rest, shapes)
                trips = _trips(operation, rest)
                for called in _called(rest):
                    inner = total(called)
                    if trips is None and (inner.dots or inner.number):
                        raise ValueError(f"{label} in {name}: a loop of unknown length around {inner}")
                    own.add(inner, trips or 0)
        return done[name]

    return total(entry)


def _split(text: str) -> tuple[dict[str, list], str]:
    computations, entry, current = {}, "", None
    for line in text.splitlines():
        head = _COMPUTATION.match(line)
        if head and " = " not in line.split("(")[0]:
            current = computations.setdefault(head[2], [])
            entry = head[2] if head[1] else entry
        elif line.startswith("}"):
            current = None
        elif current is not None and (found := _INSTRUCTION.match(line)):
            current.append(found.groups())
    return computations, entry


def _called(rest: str) -> list[str]:
    branches = _BRANCHES.search(rest)
    return _CALLED.findall(rest) + re.findall(r"[\w.\-]+", branches[1].replace("%", "") if branches else "")


def _trips(operation: str, rest: str) -> int | None:
    if operation != "while":
        return 1
    known = _TRIPS.search(rest)
    return int(known[1]) if known else None


def _count_one(counts: Counts, shape, operation, operands, rest, shapes) -> None:
    if operation == "dot":
        result = _dimensions(shape)
        left = _dimensions(shapes[operands.split(",")[0].strip().split(" ")[-1].lstrip("%")])
        contracted = re.search(r"lhs_contracting_dims=\{([\d,]*)\}", rest)[1]
        depth = math.prod(left[int(axis)] for axis in contracted.split(",") if axis)
        counts.dots[result, depth] += 2 * math.prod(result) * depth
    kind = operation.removesuffix("-start")
    if kind in _COLLECTIVES:
        counts.number[kind] += 1
        counts.bytes[kind] += sum(_WIDTH[t] * math.prod(_numbers(d)) for t, d in _SHAPE.findall(shape))


def _dimensions(shape: str) -> tuple[int, ...]:
    return _numbers(_SHAPE.search(shape)[2])


def _numbers(text: str) -> tuple[int, ...]:
    return tuple(int(size) for size in text.split(",") if size)
