"""Files fit on a few screens, modules import one another one way, and nothing in them is left over.

``python -m tests.test_tidiness`` lists the longest functions, and the names that only tests mention.
"""

import ast
import collections
import functools
import re
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

from tests.test_imports import imported_names

ROOT = Path(__file__).resolve().parents[1]
PROGRAM = ("mdlm_jax", "launch", "configs")
READERS = (*PROGRAM, "benchmarks", "notebooks", "docs", "tests")
LONGEST_FILE, LONGEST_FUNCTION = 500, 110  # lines; a docstring counts
_WORD = re.compile(r"[A-Za-z_]\w*")


def python_files(*folders: str) -> list[Path]:
    return [path for folder in folders for path in sorted((ROOT / folder).rglob("*.py"))]


@functools.cache
def parsed(path: Path) -> ast.Module:
    return ast.parse(path.read_bytes())


def module_of(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def imported_at_once(path: Path) -> set[str]:
    """Modules of ours that importing the file imports: not those inside functions, nor for a checker of types."""
    tree = parsed(path)
    inside = {id(node) for function in ast.walk(tree) if isinstance(function, ast.FunctionDef | ast.Lambda)
              or isinstance(function, ast.If) and ast.unparse(function.test) == "TYPE_CHECKING"
              for node in ast.walk(function)}
    kept = ast.Module([node for node in ast.walk(tree)
                       if isinstance(node, ast.Import | ast.ImportFrom) and id(node) not in inside], [])
    return imported_names(path, kept)


def functions(path: Path) -> Iterator[tuple[int, str]]:
    """Lines and names."""
    for node in ast.walk(parsed(path)):
        if isinstance(node, ast.FunctionDef):
            yield (node.end_lineno or node.lineno) - node.lineno + 1, f"{module_of(path)}.{node.name}"


def defined(path: Path) -> Iterator[str]:
    """Names of functions, classes and constants at the top of a module."""
    for node in parsed(path).body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            yield node.name
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            yield from (name.id for target in targets for name in ast.walk(target) if isinstance(name, ast.Name))


def mentioned(path: Path) -> set[str]:
    """Names that a file reads: of variables, attributes, imports and arguments, and the words of its strings."""
    if path.suffix != ".py":
        return set(_WORD.findall(path.read_text(encoding="utf-8")))
    found: set[str] = set()
    for node in ast.walk(parsed(path)):
        match node:
            case ast.Name(id=name, ctx=ast.Load()) | ast.Attribute(attr=name) | ast.alias(name=name):
                found |= {name.rpartition(".")[2]}
            case ast.Constant(value=str(text)):
                found |= set(_WORD.findall(text))
    return found


@functools.cache
def readers() -> dict[str, set[str]]:
    """name -> folders in which something mentions it."""
    where: dict[str, set[str]] = collections.defaultdict(set)
    files = [path for folder in READERS for path in (ROOT / folder).rglob("*")]
    for path in [*files, ROOT / "README.md", ROOT / "pyproject.toml"]:
        if path.suffix in (".py", ".md", ".ipynb", ".toml") and "__pycache__" not in path.parts:
            for name in mentioned(path):
                where[name].add(path.relative_to(ROOT).parts[0])
    return where


def names() -> Iterator[tuple[str, str]]:
    """(module, name) of all that is defined."""
    for path in python_files("mdlm_jax", "launch"):
        yield from ((module_of(path), name) for name in defined(path) if not name.startswith("__"))


@pytest.mark.parametrize("folder", READERS)
def test_files_are_short(folder):
    lengths = {path: len(path.read_bytes().splitlines()) for path in python_files(folder)}
    assert not [path for path, lines in lengths.items() if lines > LONGEST_FILE]


def test_functions_are_short():
    assert not [told for path in python_files(*PROGRAM) for told in functions(path) if told[0] > LONGEST_FUNCTION]


def test_modules_import_one_another_one_way():
    """Of all modules, not only of the packages that `test_imports` orders; raises where there is a circle."""
    modules = {module_of(path): path for path in python_files(*PROGRAM)}
    graph = {}
    for module, path in modules.items():
        wanted = imported_at_once(path)
        wanted |= {name.rpartition(".")[0] for name in wanted}
        graph[module] = {name for name in wanted if name in modules and not module.startswith(f"{name}.")} - {module}
    order = list(TopologicalSorter(graph).static_order())
    assert len(order) == len(modules) > 300 and sum(map(len, graph.values())) > 500


def test_nothing_is_left_over():
    unread = [f"{module}.{name}" for module, name in names() if not readers()[name]]
    assert not unread, f"nobody mentions {', '.join(unread)}"


def main() -> None:
    print("Longest functions, lines:")
    for lines, name in sorted((told for path in python_files(*PROGRAM) for told in functions(path)), reverse=True)[:15]:
        print(f"{lines:5d}  {name}")
    print("Mentioned by tests alone:")
    for module, name in names():
        if readers()[name] == {"tests"}:
            print(f"       {module}.{name}")


if __name__ == "__main__":
    main()
