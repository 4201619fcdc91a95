"""What a class does, in a few digits: the same wherever the same code stands, and others once it is edited."""

import dis
import functools
import hashlib
import types
from typing import Any

import jax
import numpy as np

_OURS = __name__.partition(".")[0]


def digest(cls: type) -> str:
    """16 hex digits of what a class and its bases outside this library define, "" where they define nothing.

    Of functions: instructions, constants, names, defaults, and what they read around them and in their module as far as
    it is plain (numbers, strings, arrays, tuples of those) or a function or class of the same package; not what a call
    may change: lists, dicts and sets around it, and names that it assigns. Values of fields are those of objects, and
    no part of it; neither are places of files, names of modules and docstrings. Another minor version of Python has
    other instructions.
    """
    written = [base for base in cls.__mro__ if not _is_library(base)]
    return hashlib.sha256(repr(_Told(cls).classes(written)).encode()).hexdigest()[:16] if written else ""


def _is_library(cls: type) -> bool:
    return cls is object or _package(cls) in (_OURS, "typing", "abc")


def _package(thing) -> str:
    return (getattr(thing, "__module__", None) or "").partition(".")[0]


def _array(value) -> Any:
    """Its elements where they are numbers and all here, else its type and shape."""
    said = [str(value.dtype), list(np.shape(value))]
    plain = any(jax.dtypes.issubdtype(value.dtype, kind) for kind in (np.number, np.bool_))
    if plain and getattr(value, "is_fully_addressable", True):
        said.append(hashlib.sha256(np.asarray(value).tobytes()).hexdigest())
    return said


class _Told:
    """Says what things are in tuples of strings."""

    def __init__(self, cls: type):
        self._package = _package(cls)
        self._seen: set[int] = set()

    def classes(self, classes: list[type]) -> list:
        self._seen.update(map(id, classes))
        return [(cls.__qualname__.rpartition(".")[2], self._members(cls)) for cls in classes]

    def _members(self, cls: type) -> list:
        """Without fields, and what Python and `dataclasses` add, whose names begin with two underscores."""
        fields = vars(cls).get("__dataclass_fields__", {})
        return [(name, self._thing(value)) for name, value in sorted(vars(cls).items())
                if name not in fields and not (name.startswith("__") and name.endswith("__"))
                or name == "__post_init__"]

    def _around(self, value) -> Any:
        """As `_thing`; of what a call may change its type alone."""
        return type(value).__name__ if isinstance(value, (list, dict, set)) else self._thing(value)

    def _thing(self, value) -> Any:
        if value is None or isinstance(value, (bool, int, float, complex, str, bytes, type(...))):
            return repr(value)
        if isinstance(value, (tuple, list)):
            return [type(value).__name__, *map(self._thing, value)]
        if isinstance(value, (set, frozenset)):
            return ["set", *sorted(repr(self._thing(one)) for one in value)]
        if isinstance(value, dict):
            return ["dict", *((self._thing(key), self._thing(one)) for key, one in value.items())]
        if isinstance(value, types.CodeType):
            return self._code(value, None)
        if not isinstance(value, type) and hasattr(value, "dtype") and hasattr(value, "__array__"):
            return _array(value)
        return self._maker(value)

    def _maker(self, value) -> Any:
        """A function, what holds one, or a class; of anything else its type alone."""
        if isinstance(value, functools.partial):
            return ["partial", self._thing(value.func), self._thing(value.args), self._thing(value.keywords)]
        if isinstance(value, property):
            return ["property", self._thing(value.fget)]
        inner = getattr(value, "__func__", None) or getattr(value, "func", None) or getattr(value, "__wrapped__", None)
        if not isinstance(value, (types.FunctionType, type)) and inner is not None:
            return [type(value).__name__, self._maker(inner)]
        name = getattr(value, "__qualname__", type(value).__qualname__).rpartition(".")[2]
        own = isinstance(value, (types.FunctionType, type)) and _package(value) == self._package
        if not own or id(value) in self._seen:
            return name
        self._seen.add(id(value))
        return [name, self._members(value)] if isinstance(value, type) else self._function(value)

    def _function(self, function: types.FunctionType) -> list:
        code = function.__code__
        around = dict(zip(code.co_freevars, function.__closure__ or (), strict=True))
        return [
            self._code(code, function.__doc__),
            self._thing(function.__defaults__), self._thing(function.__kwdefaults__),
            [(name, self._cell(cell)) for name, cell in around.items()],
            [(name, self._around(function.__globals__[name])) for name in sorted(_reads(code))
             if name in function.__globals__],
        ]

    def _cell(self, cell) -> Any:
        try:
            return self._around(cell.cell_contents)
        except ValueError:  # nothing is in it yet
            return None

    def _code(self, code: types.CodeType, doc: str | None) -> list:
        constants = ["" if doc is not None and one == doc else self._thing(one) for one in code.co_consts]
        return [code.co_name, code.co_code.hex(), constants, code.co_names, code.co_freevars]


def _reads(code: types.CodeType) -> set[str]:
    """The global names that it, or a function in it, reads."""
    steps = list(dis.get_instructions(code))
    read = {str(one.argval) for one in steps if one.opname in ("LOAD_GLOBAL", "LOAD_NAME")}
    own = read - {str(one.argval) for one in steps if one.opname in ("STORE_GLOBAL", "STORE_NAME")}
    return own.union(*(_reads(one) for one in code.co_consts if isinstance(one, types.CodeType)))
