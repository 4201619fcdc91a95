"""What Griffe must be told about the docstrings of this package.

Sections follow each other without an empty line, and names in backticks that exist become links.
"""

import ast
import functools
import re
import textwrap
from pathlib import Path

import griffe

PACKAGE = Path(__file__).resolve().parents[2] / "mdlm_jax"
_SECTION = re.compile(r"(?<=[^\n])\n(?=(Args|Attributes|Examples|Raises|Returns|Yields):\n)")
_GIVEN = re.compile(r"^(Returns|Yields):\n((?:  .*\n?)+)", re.M)  # without a type: the signature says it
_NAME = re.compile(r"(?<![`\[])`([A-Za-z_][\w.]*)`(?!`)")


class Docstrings(griffe.Extension):
    """Rewrites each docstring before it is parsed."""

    def on_object(self, *, obj: griffe.Object, **_) -> None:
        if not obj.is_alias and obj.docstring is not None:
            home = obj.path if obj.is_module else obj.module.path
            text = _SECTION.sub("\n\n", obj.docstring.value)
            obj.docstring.value = _linked(_GIVEN.sub(_sentence, text), home)


def _sentence(found: re.Match) -> str:
    return f"**{found[1]}:**\n{textwrap.dedent(found[2])}\n"


def _linked(text: str, home: str) -> str:
    """Links behind `names` that are full from below the package, or those of the same module."""
    return _NAME.sub(lambda found: next((f"[`{found[1]}`][{name}]" for name in (f"mdlm_jax.{found[1]}",
                                         f"{home}.{found[1]}") if name in _names()), found[0]), text)


@functools.cache
def _names() -> frozenset[str]:
    """Everything that the reference shows: modules, and public classes, functions and methods with a docstring."""
    found = set()
    for path in PACKAGE.rglob("*.py"):
        module = ".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts).removesuffix(".__init__")
        found |= {module, *_inside(ast.parse(path.read_bytes()), module)}
    return frozenset(found)


def _inside(node: ast.AST, name: str) -> set[str]:
    found = set()
    for item in node.body:
        if isinstance(item, (ast.ClassDef, ast.FunctionDef)) and ast.get_docstring(item) and item.name[0] != "_":
            here = f"{name}.{item.name}"
            found |= {here, *(_inside(item, here) if isinstance(item, ast.ClassDef) else ())}
    return found
