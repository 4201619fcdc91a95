"""The text of --help. The words about each configuration field are its comment in mdlm_jax/config."""

import ast
import dataclasses
import inspect
import io
import sys
import textwrap
import tokenize
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mdlm_jax import config as config_module
from mdlm_jax.config import RunConfig
from mdlm_jax.data.languages.registry import LANGUAGES

from ._cli import Flag
from ._configs import shipped

_WIDTH = 116
_COLUMN = 42


def program(module: str) -> str:
    """How the user called us: the console script, or ``python -m`` with the module's own name."""
    name = Path(sys.argv[0]).name
    if name.startswith("mdlm-"):
        return name
    return f"python -m {__package__}.{module}"


def field_docs() -> dict[str, str]:
    """``section`` -> its docstring, and ``section.field`` -> its comment, read from the source of the dataclasses."""
    docs = {}
    for section in dataclasses.fields(RunConfig):
        kind = type(section.default)
        source = Path(inspect.getfile(kind)).read_text(encoding="utf-8")
        comments = {
            token.start[0]: token.string.lstrip("# ")
            for token in tokenize.generate_tokens(io.StringIO(source).readline)
            if token.type == tokenize.COMMENT
        }
        classes = {node.name: node for node in ast.parse(source).body if isinstance(node, ast.ClassDef)}
        node = classes[kind.__name__]
        docs[section.name] = ast.get_docstring(node) or ""
        for item in node.body:
            if isinstance(item, ast.AnnAssign) and isinstance(item.target, ast.Name):
                docs[f"{section.name}.{item.target.id}"] = comments.get(item.end_lineno or 0, "")
    return docs


def flag_lines(flags: Sequence[Flag]) -> str:
    """One aligned paragraph a flag."""
    names = [f"--{flag.name}" + (f"={flag.metavar}" if flag.metavar else "") for flag in flags] + ["--help"]
    words = [flag.help for flag in flags] + ["print this and stop"]
    return "\n".join(row(name, text) for name, text in zip(names, words, strict=True))


def config_lines() -> str:
    """Every configuration field with its default and its meaning, by section."""
    docs = field_docs()
    lines = []
    sections: tuple[Any, ...] = dataclasses.fields(RunConfig)
    for section in sections:
        lines.append(f"\n {section.name}: {docs[section.name]}")
        for field in dataclasses.fields(section.default):
            default = str(field.default).lower() if isinstance(field.default, bool) else field.default
            lines.append(row(f"--config.{section.name}.{field.name}={default}", docs[f"{section.name}.{field.name}"]))
    return "\n".join(lines).lstrip("\n")


_NAMES = {
    "process.schedule": "SCHEDULES",
    "train.objective": "OBJECTIVES",
    "train.weighting": "WEIGHTINGS",
    "train.level_law": "LEVEL_LAWS",
    "train.divergence": "DIVERGENCES",
    "train.optimizer": "OPTIMIZERS",
    "train.lr_schedule": "LR_SCHEDULES",
    "train.time_sampling": "TIME_SAMPLINGS",
    "data.detokenizer": "DETOKENIZERS",
    "data.chat_template": "CHAT_TEMPLATES",
}


def name_lines() -> str:
    """The names that fields take, from the registries that check them."""
    lines = []
    for field, registry in _NAMES.items():
        lines.append(f" {registry} (--config.{field})")
        lines += [row(choice.form, choice.meaning) for choice in getattr(config_module, registry).values()]
    lines.append(" oracle languages (--config.data.source=language:NAME or language:NAME:KEY=VALUE,...)")
    for name, maker in LANGUAGES.items():
        settings = ",".join(f"{key}={p.default}" for key, p in inspect.signature(maker).parameters.items())
        told = inspect.getmodule(maker) if maker.__name__ == "random" else maker
        lines.append(row(f"{name}:{settings}".removesuffix(":"), (inspect.getdoc(told) or "").partition("\n")[0]))
    return "\n".join(lines)


def shipped_lines() -> str:
    return "\n".join(row(name, doc) for name, doc in shipped().items())


def row(name: str, words: str) -> str:
    """The name on the left and the words, wrapped, on the right; a name too long for its column has a line alone."""
    left = f"  {name}"
    lines = textwrap.wrap(words, _WIDTH - _COLUMN) or [""]
    if len(left) + 2 > _COLUMN:
        lines.insert(0, left)
    else:
        lines[0] = f"{left:<{_COLUMN}}{lines[0]}"
    return "\n".join([lines[0].rstrip()] + [" " * _COLUMN + line for line in lines[1:]])
