"""Decoders by name, and what each can be told. Never imports jax until one is made: a command line lists them too.

The words about a decoder are the first line of its module and the first paragraph of its docstring; those about its
numbers the ``Attributes`` of it.
"""

import ast
import dataclasses
import difflib
import functools
import importlib
import inspect
import re
from pathlib import Path
from typing import Any

# name -> module of this package, class in it, and numbers other than its defaults
DECODERS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "ancestral": ("ancestral", "Ancestral", {}),
    "first_hitting": ("first_hitting", "FirstHitting", {}),
    "remdm_cap": ("remdm", "ReMDMCap", {}),
    "remdm_rescale": ("remdm", "ReMDMRescale", {}),
    "remdm_conf": ("remdm", "ReMDMConf", {}),
    "remdm_loop": ("remdm", "ReMDMLoop", {}),
    "p2": ("p2", "P2", {}),
    "prism": ("prism", "PRISM", {}),
    "low_confidence": ("low_confidence", "LowConfidence", {}),
    "dream": ("dream", "Dream", {}),
    "margin": ("margin", "Margin", {}),
    "threshold": ("threshold", "Threshold", {}),
    "smoothed": ("smoothing", "Smoothed", {}),
    "factor": ("threshold", "Factor", {}),
    "hierarchy": ("hierarchy", "Hierarchy", {}),
    "credit": ("credit", "Credit", {}),
    "entropy_bound": ("entropy_bound", "EntropyBound", {}),
    "klass": ("klass", "KLASS", {}),
    "saber": ("saber", "Saber", {}),
    "slow_fast": ("slow_fast", "SlowFast", {}),
    "prophet": ("prophet", "Prophet", {}),
    "lopa": ("lopa", "LoPA", {}),
    "wino": ("wino", "WINO", {}),
    "free_dave": ("free_dave", "FreeDave", {}),
    "assd": ("assd", "ASSD", {}),
    "draft_edit": ("draft_edit", "DraftEdit", {}),
    "block_threshold": ("block_threshold", "BlockThreshold", {}),
    "joint_threshold": ("joint_threshold", "JointThreshold", {"threshold": 0.7, "edit_threshold": 0.5}),
    "joint_speedy": ("joint_threshold", "JointThreshold", {"threshold": 0.5, "edit_threshold": 0.0}),
    "soft_parallel": ("soft_parallel", "SoftParallel", {}),
    "levenshtein": ("levenshtein", "Levenshtein", {}),
    "d2f": ("d2f", "D2F", {}),
    "adjust": ("adjust", "Adjust", {}),
    "adjust_verified": ("adjust_verified", "AdjustVerified", {}),
    "codd": ("codd", "CoDD", {}),
    "copula": ("copula", "Copula", {}),
    "maria": ("maria", "MARIA", {}),
}
# fields that the model fills
GIVEN = ("process", "mask_id", "delete_id", "insert_id", "joint", "quality", "circuit", "embedding", "twin", "causal",
         "fused")
_INNER = ("head_budget",)  # fields that change memory alone
_KINDS = {"float": float, "int": int, "bool": bool, "str": str, "tuple[int, ...]": tuple}
_USUAL = {  # words about numbers that mean the same everywhere, where a docstring spares them
    "temperature": "of the draw; 0 takes the likeliest token",
    "top_p": "draw from the likeliest tokens that hold this much probability; 1: from all",
    "top_k": "draw from the so many likeliest tokens; 0: from all",
}


@dataclasses.dataclass(frozen=True)
class Number:
    """A field of a decoder that may be set: its type, its default, and what the docstring says about it."""

    kind: type
    default: Any
    help: str


@dataclasses.dataclass(frozen=True)
class Entry:
    """A decoder by name: words about it, and its numbers."""

    name: str
    help: str
    numbers: dict[str, Number]
    reads_steps: bool


@dataclasses.dataclass(frozen=True)
class Usual:
    """How a kind of model is decoded unless told otherwise.

    Attributes:
      block_length: tokens written together; 0: the network's blocks, or everything at once.
    """

    decoder: str
    block_length: int = 0


def usual(family: str, attention: str) -> Usual:
    """For a family of `models.hf` ("": our own runs) and a contract."""
    if not family or family in ("mdlm", "smdm"):
        return Usual("ancestral")
    if family == "llada2":
        return Usual("block_threshold")
    if family in ("llada", "llada_moe"):
        return Usual("low_confidence", 32)
    return Usual("dream" if attention == "bidirectional" else "low_confidence")


@functools.cache
def entries() -> dict[str, Entry]:
    """All decoders, read from their sources."""
    return {name: _read(name, *where) for name, where in DECODERS.items()}


def require(name: str) -> Entry:
    """The entry of a name.

    Raises:
      ValueError: there is no such decoder; the message lists them.
    """
    if name not in DECODERS:
        close = difflib.get_close_matches(name, DECODERS, n=1)
        hint = f"; did you mean {close[0]}?" if close else ""
        raise ValueError(f"decoder={name!r}: choose one of {', '.join(DECODERS)}{hint}")
    return entries()[name]


def check(name: str, numbers: dict[str, Any]) -> dict[str, Any]:
    """The numbers, whole ones as floats where floats are wanted.

    Raises:
      ValueError: no such decoder, a number it does not have, or one of the wrong type.
    """
    entry = require(name)
    found: dict[str, Any] = {}
    for key, value in numbers.items():
        if key not in entry.numbers:
            close = difflib.get_close_matches(key, entry.numbers, n=1)
            hint = f"did you mean {close[0]}?" if close else f"it has {', '.join(entry.numbers)}"
            raise ValueError(f"{key}={value!r}: the decoder {name} has no such number; {hint}")
        kind = entry.numbers[key].kind
        if value is None and entry.numbers[key].default is None:
            found[key] = None
            continue
        if kind is float and isinstance(value, int) and not isinstance(value, bool):
            value = float(value)
        if kind is tuple and isinstance(value, list):
            value = tuple(value)
        if not isinstance(value, kind) or isinstance(value, bool) and kind is not bool:
            raise ValueError(f"{key}={value!r}: must be of type {kind.__name__}")
        if isinstance(value, tuple) and not all(type(x) is int for x in value):
            raise ValueError(f"{key}={value!r}: must hold whole numbers")
        found[key] = value
    return found


def decoder_class(name: str) -> type:
    """The class behind a name that `require` knows."""
    module, cls, _ = DECODERS[name]
    return getattr(importlib.import_module(f"{__package__}.{module}"), cls)


def make(name: str, *, process, numbers: dict[str, Any], **given):
    """The decoder ``name`` for a model's noise, with the numbers given and the others as they are.

    Args:
      process: `core.process.Process`.
      given: what else the model has of `GIVEN`: its ``joint`` layer (`models.joint.JointSampler`), ``quality`` head
        (`models.quality.QualityHead`), ``circuit`` (`models.circuit.Circuit`) or ``fused`` head
        (`models.fused.FusedHead`), its ``causal`` reading (`models.twin.LeftReading`) and the ``twin`` that the call
        names (`models.twin.Twin`), its table ``embedding`` [V, D], the ids of delete and insert. Left out, or None,
        where it has none.
    Raises:
      ValueError: as `check`, or a value that the decoder refuses.
    Examples:
      >>> from mdlm_jax.core.process import Process
      >>> make("threshold", process=Process(vocab_size=12, mask_id=11), numbers={"threshold": 0.8}).threshold
      0.8
    """
    numbers = check(name, numbers)
    cls, preset = decoder_class(name), DECODERS[name][2]
    fields = {field.name for field in dataclasses.fields(cls)}
    given |= {"process": process, "mask_id": process.mask_id}
    return cls(**{key: value for key, value in given.items() if key in fields}, **(preset | numbers))


def _read(name: str, module: str, cls: str, preset: dict[str, Any]) -> Entry:
    docs, fields = _class(module, cls)
    numbers = {}
    for field, (annotation, default) in fields.items():
        kind = _KINDS.get(annotation.partition(" | ")[0])
        if field not in GIVEN + _INNER and kind is not None:
            numbers[field] = Number(kind, preset.get(field, default), docs.get(field) or _USUAL.get(field, ""))
    about = (ast.get_docstring(ast.parse(_source(module))) or "").partition("\n\n")[0]
    return Entry(name, " ".join(f"{about} {docs['']}".split()), numbers, _reads_steps(module, cls))


def _reads_steps(module: str, cls: str) -> bool:
    """The nearest ``reads_steps = ...`` in the class and its bases; `Decoder` says yes."""
    tree = ast.parse(_source(module))
    node = next(node for node in tree.body if isinstance(node, ast.ClassDef) and node.name == cls)
    for item in node.body:
        if isinstance(item, ast.Assign) and getattr(item.targets[0], "id", "") == "reads_steps":
            return ast.literal_eval(item.value)
    bases = [_where(tree, module, base.id) for base in node.bases if isinstance(base, ast.Name)]
    return all(_reads_steps(*base) for base in bases if base)


def _source(module: str) -> bytes:
    return (Path(__file__).parent / f"{module}.py").read_bytes()


def _class(module: str, cls: str) -> tuple[dict[str, str], dict[str, tuple[str, Any]]]:
    """Words by field ("" for the class), and fields as (annotation, default), those of its bases first."""
    tree = ast.parse(_source(module))
    node = next(node for node in tree.body if isinstance(node, ast.ClassDef) and node.name == cls)
    docs: dict[str, str] = {}
    fields: dict[str, tuple] = {}
    for base in node.bases:
        if isinstance(base, ast.Name) and (found := _where(tree, module, base.id)):
            base_docs, base_fields = _class(*found)
            docs, fields = docs | base_docs, fields | base_fields
    docs |= _words(inspect.cleandoc(ast.get_docstring(node) or ""))
    for item in node.body:
        if isinstance(item, ast.AnnAssign) and isinstance(item.target, ast.Name):
            fields[item.target.id] = (ast.unparse(item.annotation), _default(item.value))
    return docs, fields


def _where(tree: ast.Module, module: str, name: str) -> tuple[str, str] | None:
    """Module and class of a base; None for `Decoder` itself, whose fields are none of a user's."""
    if name == "Decoder":
        return None
    if any(isinstance(node, ast.ClassDef) and node.name == name for node in tree.body):
        return module, name
    for node in tree.body:
        if isinstance(node, ast.ImportFrom) and node.module and any(alias.name == name for alias in node.names):
            return node.module.rpartition(".")[2], name
    return None


def _words(docstring: str) -> dict[str, str]:
    """{"": first paragraph, field: its lines under ``Attributes:``, several before one colon each}."""
    summary, _, rest = docstring.partition("\n\n")
    found, names = {"": " ".join(summary.split())}, list[str]()
    for line in rest.partition("Attributes:\n")[2].splitlines():
        if match := re.match(r"  (\w+(?:, \w+)*): (.*)", line):
            names, text = match[1].split(", "), match[2]
            found |= dict.fromkeys(names, text)
        elif line.startswith("    ") and names:
            found |= {name: f"{found[name]} {line.strip()}" for name in names}
        else:
            names = []
    return found


def _default(node: ast.expr | None) -> Any:
    """What a field is unless told otherwise; None where that is no literal."""
    if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "static":
        node = node.args[0] if node.args else None
    try:
        return None if node is None else ast.literal_eval(node)
    except ValueError:
        return None
