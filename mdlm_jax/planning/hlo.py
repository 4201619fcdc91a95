"""A compiled program read from its text, ``compiled.as_text()``: what runs how often, and its matrix products.

XLA's own ``cost_analysis`` counts the body of a loop once, so scanned layers and chunked heads look cheap there. Read
here, with loops multiplied out, on CPU, GPU and TPU. What is peculiar to TPU: a loop says its number of turns only in
its condition, matrix products are written as convolutions, and custom kernels (Pallas) hide their work. On GPU products
may be calls of cuBLAS; cuDNN's attention hides its work.
"""

import collections
import dataclasses
import math
import re

_WIDTH = {"pred": 1, "s4": 0.5, "u4": 0.5, "s8": 1, "u8": 1, "f8e4m3fn": 1, "f8e5m2": 1, "bf16": 2, "f16": 2, "s16": 2,
          "u16": 2, "f32": 4, "s32": 4, "u32": 4, "f64": 8, "s64": 8, "u64": 8, "c64": 8}
_COMPUTATION = re.compile(r"(ENTRY )?%?([\w.\-]+) \(.*\{$")
_INSTRUCTION = re.compile(r"\s+(?:ROOT )?%?([\w.\-]+) = (\(.*?\)|\S+) ([\w\-]+)\(([^)]*)\)(.*)")
_SHAPE = re.compile(r"\b([a-z]+\d*(?:e\dm\d(?:fn)?)?)\[([\d,]*)\]")
_CALLED = re.compile(r"(?:calls|to_apply|body|condition|true_computation|false_computation)=%?([\w.\-]+)")
_BRANCHES = re.compile(r"branch_computations=\{([^}]*)\}")
_CONDITION = re.compile(r"condition=%?([\w.\-]+)")
_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"\}')
_GEMM = re.compile(r'custom_call_target="__cublas\$.*?lhs_contracting_dimensions\W+([^\]]*)\]')
_LABELS = re.compile(r"dim_labels=(\w+)_(\w+)->(\w+)")


@dataclasses.dataclass(frozen=True)
class Instruction:
    """One line: ``name = shape operation(operands), rest``; ``computation`` holds it."""

    name: str
    shape: str
    operation: str
    operands: tuple[str, ...]
    rest: str
    computation: str

    @property
    def bytes(self) -> float:
        return sum(self.sizes())

    def sizes(self) -> list[float]:
        """Bytes of the result; of a tuple, of each element."""
        return [_WIDTH.get(kind, 0) * math.prod(numbers(sizes)) for kind, sizes in _SHAPE.findall(self.shape)]

    @property
    def dimensions(self) -> tuple[int, ...]:
        return dimensions(self.shape)


@dataclasses.dataclass(frozen=True)
class Program:
    """Computations by name, and how often each runs in one execution; NaN below a loop of unknown length."""

    computations: dict[str, list[Instruction]]
    times: dict[str, float]

    def running(self):
        """(instruction, how often it runs) of everything that runs."""
        for name, times in self.times.items():
            for instruction in self.computations[name]:
                yield instruction, times


def parse(text: str, unknown: float = math.nan) -> Program:
    """Splits optimised HLO text and counts executions from its ENTRY on; every branch of a conditional counts once.

    ``unknown``: turns of a loop of unknown length.
    """
    computations, entry = _split(text)
    times: dict[str, float] = collections.defaultdict(float)
    for name, share in _calls(computations, entry, unknown):
        times[name] += share
    return Program(computations, dict(times))


def known(times: float, instruction: Instruction) -> int:
    """``times`` as a whole number; ValueError below a loop whose number of turns the text does not say."""
    if math.isnan(times):
        raise ValueError(f"{instruction.name} in {instruction.computation}: runs in a loop of unknown length; give "
                         "loops a known one")
    return int(times)


def matmuls(program: Program) -> collections.Counter:
    """(shape of the result, number of terms in each sum) -> FLOPs of one execution, a multiply-add counting two."""
    found: collections.Counter = collections.Counter()
    shapes = {(i.computation, i.name): i.dimensions for lines in program.computations.values() for i in lines
              if not i.shape.startswith("(")}
    for instruction, times in program.running():
        gemm = instruction.operation == "custom-call" and _GEMM.search(instruction.rest)
        if not gemm and instruction.operation not in ("dot", "convolution"):
            continue
        left, right = (shapes[instruction.computation, name] for name in instruction.operands[:2])
        terms = _convolution_terms if instruction.operation == "convolution" else _dot_terms
        depth, flops = terms(instruction, left, right)
        found[instruction.dimensions, depth] += known(times, instruction) * flops
    return found


def kernels(program: Program) -> collections.Counter:
    """Name of a Pallas kernel -> how often it runs."""
    found: collections.Counter = collections.Counter()
    for instruction, times in program.running():
        if 'custom_call_target="tpu_custom_call"' in instruction.rest:
            name = re.search(r'kernel_name\W+([\w.\-]+)', instruction.rest)
            found[name[1] if name else instruction.name.split(".")[0]] += known(times, instruction)
    return found


def dimensions(shape: str) -> tuple[int, ...]:
    found = _SHAPE.search(shape)
    return numbers(found[2]) if found else ()


def numbers(text: str) -> tuple[int, ...]:
    return tuple(int(size) for size in text.split(",") if size)


def _split(text: str) -> tuple[dict[str, list[Instruction]], str]:
    computations: dict[str, list[Instruction]] = {}
    entry, name = "", None
    for line in text.splitlines():
        head = _COMPUTATION.match(line)
        if head and " = " not in line.split("(")[0]:
            name = head[2]
            computations[name] = []
            entry = name if head[1] else entry
        elif line == "}":  # kernels print metadata over several lines, with braces of their own
            name = None
        elif name is not None and (found := _INSTRUCTION.match(line)):
            label, shape, operation, operands, rest = found.groups()
            computations[name].append(Instruction(label, shape, operation, _operands(operands), rest, name))
    if not entry:
        raise ValueError("text: has no ENTRY computation; give the text of a compiled program")
    return computations, entry


def _operands(text: str) -> tuple[str, ...]:
    """Names alone: some backends print the shape, commas included, before each name."""
    named = re.findall(r"%([\w.\-]+)", text)
    return tuple(named) if named else tuple(part.strip().split(" ")[-1] for part in text.split(",") if part.strip())


def _calls(computations: dict[str, list[Instruction]], entry: str, unknown: float):
    """(computation, how often) from every place it is called, callers before what they call."""
    order: list[str] = []
    state: dict[str, bool] = {}

    def visit(name: str) -> None:
        if name in state or name not in computations:
            return
        state[name] = True
        for instruction in computations[name]:
            for called in _called(instruction.rest):
                visit(called)
        order.append(name)

    visit(entry)
    times: dict[str, float] = collections.defaultdict(float)
    times[entry] = 1.0
    for name in reversed(order):
        yield name, times[name]
        for instruction in computations[name]:
            turns = _turns(instruction, computations)
            turns = unknown if math.isnan(turns) else turns
            for called in _called(instruction.rest):
                times[called] += times[name] * turns


def _called(rest: str) -> list[str]:
    branches = _BRANCHES.search(rest)
    return _CALLED.findall(rest) + re.findall(r"[\w.\-]+", branches[1].replace("%", "") if branches else "")


def _turns(instruction: Instruction, computations) -> float:
    """1, or the turns of a loop: told, or from its counter; NaN where neither says.

    A scan that TPU runs compares a counter with a constant in its condition. It counts from 0, or from later where the
    compiler has peeled the first turns off.
    """
    if instruction.operation != "while":
        return 1.0
    told = _TRIPS.search(instruction.rest)
    if told:
        return float(told[1])
    condition = computations.get(_found(_CONDITION, instruction.rest)[1], [])
    bounds = {line.operands[0] for line in condition if line.operation == "constant" and line.shape.startswith("s32[]")}
    begin = _first_element(instruction, computations)
    return float(bounds.pop()) - begin if len(bounds) == 1 else math.nan


def _first_element(instruction: Instruction, computations) -> float:
    """The constant that is first in the tuple a loop begins with, its counter; NaN where it is none."""
    lines = {line.name: line for line in computations[instruction.computation]}
    line = lines.get(instruction.operands[0])
    while line is not None and line.operation in ("tuple", "copy", "bitcast"):
        line = lines.get(line.operands[0])
    return float(line.operands[0]) if line is not None and line.operation == "constant" else math.nan


def _dot_terms(instruction: Instruction, left, right) -> tuple[int, int]:
    contracted = _GEMM.search(instruction.rest) or re.search(r"lhs_contracting_dims=\{([\d,]*)\}", instruction.rest)
    depth = math.prod(left[int(axis)] for axis in re.findall(r"\d+", contracted[1])) if contracted else 1
    return depth, 2 * math.prod(instruction.dimensions) * depth


def _convolution_terms(instruction: Instruction, left, right) -> tuple[int, int]:
    """Pairs of a tap and an input that exist: matrix products with several axes come as windows over padding."""
    inputs, kernel, output = _found(_LABELS, instruction.rest).groups()
    depth = right[kernel.index("i")]
    flops = 2 * depth * instruction.dimensions[output.index("b")] * instruction.dimensions[output.index("f")]
    window = _window(instruction.rest)
    for n, axis in enumerate(c for c in output if c.isdigit()):
        pairs = _pairs(left[inputs.index(axis)], right[kernel.index(axis)], instruction.dimensions[output.index(axis)],
                       **{name: values[n] for name, values in window.items()})
        depth *= -(-pairs // instruction.dimensions[output.index(axis)])
        flops *= pairs
    return depth, flops


def _window(rest: str) -> dict[str, list]:
    """stride, pad, lhs_dilate and rhs_dilate of each spatial axis, where they are given."""
    text = re.search(r"window=\{([^}]*)\}", rest)
    fields = dict(part.split("=") for part in text[1].split()) if text else {}
    return {name: fields[name].split("x") for name in ("stride", "pad", "lhs_dilate", "rhs_dilate") if name in fields}


def _pairs(size: int, taps: int, outputs: int, stride=1, pad="0_0", lhs_dilate=1, rhs_dilate=1) -> int:
    before, stride, inner, outer = int(pad.split("_")[0]), int(stride), int(lhs_dilate), int(rhs_dilate)
    if taps == 1 and before == 0 and inner == 1:
        return outputs
    places = (o * stride + t * outer - before for o in range(outputs) for t in range(taps))
    return sum(1 for place in places if place >= 0 and place % inner == 0 and place // inner < size)


def _found(pattern: re.Pattern[str], text: str) -> re.Match[str]:
    found = pattern.search(text)
    assert found is not None, f"XLA writes no {pattern.pattern!r} in {text!r}"
    return found
