"""What every command line shares: flags, values and errors of one line. Never imports jax."""

import dataclasses
import difflib
import math
import os
import sys
from collections.abc import Callable, Collection, Sequence
from typing import Any

from mdlm_jax.config import ConfigError, RunConfig
from mdlm_jax.config.names import nearest
from mdlm_jax.errors import Preempted

_BOOLEANS = {"true": True, "1": True, "yes": True, "false": False, "0": False, "no": False}


@dataclasses.dataclass(frozen=True)
class Flag:
    """One ``--name=VALUE``; of type bool, a switch that stands alone or takes ``=true`` or ``=false``.

    A name that ends in ``.*`` is every name with that beginning, with a text or nothing behind it. ``written``: its
    value is a file or folder that the command writes, all processes of a job to the same one.
    """

    name: str
    metavar: str
    help: str
    type: Callable[[str], Any] = str
    written: bool = False


@dataclasses.dataclass(frozen=True)
class Arguments:
    """A parsed command line: the flags that were given, and the config overrides by ``section.field``."""

    flags: dict
    overrides: dict
    help: bool = False


def amount(text: str) -> float:
    """A number, or one with K, M, B or T for thousands to trillions, as in 300B."""
    exponent = {"K": 3, "M": 6, "B": 9, "T": 12}.get(text[-1:].upper())
    return float(text) if exponent is None else float(f"{text[:-1]}e{exponent}")


_EXPECTED = {int: "a whole number", float: "a finite number", bool: "true or false",
             amount: "a number, as in 2.3e12, 300B or 2.3T"}


# What a command does once its arguments are checked; it may give back an exit status of its own.
Work = Callable[[], int | None]


def run(prepare: Callable[[list[str]], Work | None], argv: Sequence[str] | None = None) -> int:
    """Runs a command in two parts and returns its exit status.

    Args:
      prepare: checks the arguments (and answers --help); gives back the work itself, or None when there is none left.

    Returns:
      0, or what the work gives back; 2 after a ConfigError or a file that cannot be read or written (one line on
      stderr); 130 after Ctrl-C; 143 after SIGTERM, where the work could save.
    """
    try:
        work = _prepared(prepare, list(sys.argv[1:] if argv is None else argv))
        return (work() if work else None) or 0
    except (ConfigError, FileNotFoundError, NotADirectoryError, PermissionError) as error:
        return complain(error)
    except Preempted as stop:
        print(stop, file=sys.stderr)
        return 143
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130


def complain(error: Exception) -> int:
    """Says it in one line; the exit status."""
    print("error:", " ".join(str(error).split()), file=sys.stderr)
    return 2


def _prepared(prepare, argv: list[str]):
    try:
        work = prepare(argv)
        sys.stdout.flush()
        return work
    except BrokenPipeError:  # the reader of --help has seen enough; the interpreter must not flush again at exit
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return None
    except OSError as error:
        name = error.filename or "reading"
        raise ConfigError(f"{name}: {error.strerror or error}; choose a readable file or folder") from error


def field_types() -> dict[str, type]:
    """``section.field`` of every configuration field with its type, in order."""
    sections: tuple[Any, ...] = dataclasses.fields(RunConfig)
    return {
        f"{section.name}.{field.name}": type(field.default)
        for section in sections
        for field in dataclasses.fields(section.default)
    }


def parse(argv: Sequence[str], flags: Sequence[Flag], *, config: bool = False) -> Arguments:
    """Reads ``--name=value``, ``--name value`` and, with ``config``, ``--config.section.field`` in both forms.

    The last of two equal flags wins. ``--help`` anywhere makes every other argument void.

    Raises:
      ConfigError: an unknown flag, section or field (with the nearest one), a missing value or one of the wrong type.
    """
    if "--help" in argv or "-h" in argv:
        return Arguments({}, {}, help=True)
    switches = {flag.name for flag in flags if flag.type is bool}
    free = tuple(flag.name.removesuffix("*") for flag in flags if flag.name.endswith(".*"))
    kinds = {flag.name: flag.type for flag in flags}
    if config:
        kinds |= {f"config.{name}": kind for name, kind in field_types().items()}
    values, overrides = {}, {}
    rest = list(argv)
    while rest:
        argument = rest.pop(0)
        if not argument.startswith("--"):
            raise ConfigError(f"{_cut(argument)!r}: is not a flag; write --name=value, and see --help")
        name, equals, text = argument[2:].partition("=")
        if free and name.startswith(free) and not name.endswith((".", ".*")):
            values[name] = text
            continue
        if name not in kinds:
            raise ConfigError(_unknown(_cut(name), kinds))
        if not equals and name in switches:
            text = "true"
        elif not equals:
            if not rest or rest[0].startswith("--"):
                raise ConfigError(f"--{name}: needs a value, as in --{name}=VALUE")
            text = rest.pop(0)
        value = parse_value(f"--{name}", text, kinds[name])
        if name.startswith("config."):
            overrides[name.removeprefix("config.")] = value
        else:
            values[name] = value
    return Arguments(values, overrides)


def parse_value(flag: str, text: str, kind: Callable[[str], Any]):
    """``text`` as bool, int, finite float, `amount` or str; ConfigError names flag, text and what was expected."""
    try:
        value = _BOOLEANS[text.lower()] if kind is bool else kind(text)
    except (ValueError, KeyError):
        value = math.nan
    if isinstance(value, float) and not math.isfinite(value):
        raise ConfigError(f"{flag}={_cut(text)}: must be {_EXPECTED[kind]}")
    return value


def require(values: dict, name: str, example: str, why: str) -> str:
    """The value of a flag that cannot be left out."""
    if values.get(name) in (None, ""):
        raise ConfigError(f"--{name} is missing: {why}, as in --{name}={example}")
    return values[name]


def _cut(text: str) -> str:
    return text if len(text) <= 80 else text[:77] + "..."


def _unknown(name: str, known: Collection[str]) -> str:
    fields = [flag for flag in known if flag.startswith("config.")]
    sections = list(dict.fromkeys(field.split(".")[1] for field in fields))
    parts = name.split(".")
    if len(parts) > 1 and parts[0] == "config" and parts[1] in sections:
        if len(parts) == 2:
            example = next(field for field in fields if field.startswith(f"{name}."))
            return f"--{name} is a section, not a field; set one of its fields, as in --{example}=VALUE"
        what = "field"
        close = nearest(parts[2], [field.split(".")[2] for field in fields if field.startswith(f"config.{parts[1]}.")])
        same_leaf = [f"config.{parts[1]}.{one}" for one in close] or _of_leaf(parts[2], fields)
    else:
        in_config = len(parts) > 2 and parts[0] == "config" and fields
        what = f"section (the sections are {', '.join(sections)})" if in_config else "flag"
        same_leaf = _of_leaf(parts[-1], fields)
    suggestions = same_leaf or difflib.get_close_matches(name, known, n=1)
    hint = f"did you mean --{' or --'.join(suggestions)}?" if suggestions else "see --help, which lists them all"
    return f"--{name}: there is no such {what}; {hint}"


def _of_leaf(name: str, fields: list[str]) -> list[str]:
    return [field for field in fields if field.split(".")[2] == name]
