"""Every place in the code that raises an error of its own, found in the sources.

A site is a ``raise`` with a message, or a call of one of `TELLERS`, the functions that build a message from their last
arguments. `key` names it without line numbers, so that a list of sites outlives an edit above them.
"""

import ast
import dataclasses
import functools
from pathlib import Path

ROOT = Path(__file__).parents[2]
PACKAGES = ("mdlm_jax", "launch", "configs")
TELLERS = ("require", "_require", "check", "_check", "refuse")
# No errors of a user: an end, what callers say in words of their own, what getattr must raise, and what only a fault of
# ours brings.
_SIGNALS = ("Preempted", "BlockingIOError", "NoLocks", "StopIteration", "AttributeError", "AssertionError",
            "NotImplementedError")
_CLI = "--{0} is missing: {2}, as in --{0}={1}"  # what _cli.require says


@dataclasses.dataclass(frozen=True)
class Site:
    """One place: where it stands, the lines of the statement and the message with its values as ``{}``."""

    file: str
    function: str
    lines: range
    message: str
    teller: str = ""

    @property
    def key(self) -> str:
        return f"{self.file} {self.function}: {self.message}"


@functools.cache
def sites() -> list[Site]:
    found = []
    for package in PACKAGES:
        for path in sorted((ROOT / package).rglob("*.py")):
            _collect(ast.parse(path.read_text(encoding="utf-8")), str(path.relative_to(ROOT)), "", found)
    return found


def _collect(node: ast.AST, file: str, function: str, found: list[Site]) -> None:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Raise) and isinstance(child.exc, ast.Call):
            if ast.unparse(child.exc.func) not in _SIGNALS:
                found.append(_site(child, file, function, child.exc.args[:1]))
        elif isinstance(child, ast.Call) and _told(child):
            found.append(_site(child, file, function, _told(child), _last_name(child.func)))
        inner = isinstance(child, (ast.FunctionDef, ast.ClassDef))
        _collect(child, file, ".".join(filter(None, (function, child.name))) if inner else function, found)


def _site(node: ast.AST, file: str, function: str, parts: list[ast.expr], teller: str = "") -> Site:
    message = _CLI.format(*map(template, parts)) if len(parts) == 3 else ": ".join(map(template, parts))
    return Site(file, function, range(node.lineno, node.end_lineno + 1), message, teller)


def _told(call: ast.Call) -> list[ast.expr]:
    """The name and the remedy among the arguments of a teller; none where the call is of something else."""
    name = _last_name(call.func)
    if name not in TELLERS or len(call.args) < 2 or not isinstance(call.args[-1], (ast.Constant, ast.JoinedStr)):
        return []
    if isinstance(call.func, ast.Attribute):  # _cli.require(flags, name, example, why); others are methods
        return call.args[1:4] if ast.unparse(call.func) == "_cli.require" else []
    return [call.args[name in ("require", "_require", "_check")], call.args[-1]]


def _last_name(function: ast.expr) -> str:
    return function.attr if isinstance(function, ast.Attribute) else getattr(function, "id", "")


def template(expression: ast.expr) -> str:
    """A message as far as the source tells it: what is filled in is ``{}``."""
    if isinstance(expression, ast.Constant) and isinstance(expression.value, str):
        return expression.value
    if isinstance(expression, ast.JoinedStr):
        return "".join(template(part) for part in expression.values)
    if isinstance(expression, ast.BinOp) and isinstance(expression.op, ast.Add):
        return template(expression.left) + template(expression.right)
    if isinstance(expression, ast.IfExp):
        return template(expression.body)
    return "{}"
