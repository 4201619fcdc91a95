"""From ``--config=FILE`` and overrides to a checked RunConfig. Never imports jax, and writes nothing."""

import ast
import difflib
import re
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from mdlm_jax.config import ConfigError, RunConfig, freeze
from mdlm_jax.config.names import nearest
from mdlm_jax.config.recipes import SHIPPED, names_of
from mdlm_jax.config.train import beside, is_taught

_NO_KEY = re.compile(r'Key "([^"]*)" does not exist')


def shipped() -> dict[str, str]:
    """The configs that come with the package, by bare name, each with the first line of its docstring."""
    paths = sorted(path for path in SHIPPED.glob("*.py") if not path.stem.startswith("_"))
    docs = {path.stem: ast.get_docstring(ast.parse(path.read_bytes())) or "" for path in paths}
    return {name: doc.partition("\n")[0] for name, doc in docs.items()}


def find(text: str) -> Path:
    """The file that ``--config=text`` means: a path, or the name of a config that comes with the package. What is
    behind a colon, as in ``smdm:170``, is for its ``get_config`` (`argument`).

    ``quickstart``, ``quickstart.py`` and ``configs/quickstart.py`` all find the one of the package, from any folder;
    a file of that path, where there is one, comes first.
    """
    whole, text = text, _parts(text)[0]
    given = Path(text).expanduser()
    if given.suffix == ".py" and given.is_file():
        return given
    name = given.name.removesuffix(".py")
    if given.parent in (Path("."), Path("configs")) and name in shipped():
        return SHIPPED / f"{name}.py"
    if given.is_file():
        raise ConfigError(f"--config={whole}: a config is a Python file; give one, whose name ends in .py")
    close = difflib.get_close_matches(name, shipped(), n=1)
    hint = f"did you mean {close[0]}?" if close else f"the package brings {', '.join(shipped())}"
    raise ConfigError(f"--config={whole}: there is no such file; {hint}")


def argument(text: str) -> str | None:
    """What ``--config=FILE:ARGUMENT`` gives to ``get_config``; None where there is no colon."""
    return _parts(text)[1]


def _parts(text: str) -> tuple[str, str | None]:
    name, colon, rest = text.partition(":")
    return (name, rest) if colon and not Path(text).expanduser().is_file() else (text, None)


def load(text: str, overrides: dict, start: bool = True) -> RunConfig:
    """The checked configuration of a config file, with ``{"section.field": value}`` put over it.

    Args:
      start: whether train.init_from is looked at, for its network.

    Raises:
      ConfigError: no such file, a file that raises or has no ``get_config``, an unknown field, an impossible value.
    """
    path = find(text)
    config = _run_file(path, argument(text))
    if type(config) is not ConfigDict:
        raise ConfigError(f"{path}: get_config() returned {type(config).__name__}; it must return the ConfigDict of "
                          "mdlm_jax.config.default_config(), with changes")
    for name, section in config.items():
        if not isinstance(section, ConfigDict):
            raise ConfigError(f"{path}: config.{name}={section!r} is not a section; fields stand in one, as in "
                              "config.train.steps")
    with config.unlocked(), config.ignore_type():
        if start:
            _take_network(config, overrides)
        for name, value in overrides.items():
            section, field = name.split(".")
            if section not in config:
                config[section] = ConfigDict()
            config[section][field] = value
    return freeze(config)


def study(text: str) -> dict:
    """What a recipe says of a study with it: its constant ``STUDY``, or nothing."""
    path = find(text)
    return dict(_from_file(path, lambda namespace: namespace.get("STUDY", {})))


def _take_network(config: ConfigDict, overrides: dict) -> None:
    """A run that starts from a checkpoint has its network, but for what the command line says of it."""
    start = overrides.get("train.init_from", config.get("train", {}).get("init_from", ""))
    if isinstance(start, str) and start and "model" in config:
        from ._start import network_fields

        objective = str(overrides.get("train.objective", config.get("train", {}).get("objective", "")))
        stays = bool(beside(objective)) or is_taught(objective)
        config.model.update(network_fields(start, config.model, stays))


def _run_file(path: Path, given: str | None):
    """Calls the file's ``get_config``."""
    def called(namespace: dict):
        if "get_config" in namespace:
            return namespace["get_config"](*([] if given is None else [given]))
        raise ConfigError(f"{path}: defines no get_config(); it must return mdlm_jax.config.default_config(), with "
                          "changes")

    return _from_file(path, called)


def _from_file(path: Path, read: Callable[[dict], Any]):
    """What is read of a file's names."""
    try:
        return read(names_of(path))
    except ConfigError:
        raise
    except Exception as error:  # a user's file may raise anything, and its line says more than our traceback
        raise ConfigError(f"{path}:{_line_of(error, path)}: {type(error).__name__}: {_gist(error)}") from error


def _line_of(error: Exception, path: Path) -> int:
    if isinstance(error, SyntaxError) and error.filename == str(path):
        return error.lineno or 1
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == str(path)]
    return lines[-1] or 1 if lines else 1


def _gist(error: Exception) -> str:
    """First and last line of a message, shortened, and what to do; for a field that does not exist our own words."""
    unknown = _NO_KEY.search(str(error))
    section = _section_of(error)
    if unknown and section is not None:
        close = nearest(unknown[1], section)
        hint = f"did you mean {' or '.join(map(_quoted, close))}?" if close else f"take one of {', '.join(section)}"
        return f'there is no field "{unknown[1]}"; {hint}'
    said = error.args[0] if isinstance(error, KeyError) and error.args else error
    lines = str(said).splitlines() or [""]
    ends = dict.fromkeys(line.strip() for line in (lines[0], lines[-1]))
    said = " ... ".join(line if len(line) <= 110 else line[:107] + "..." for line in ends)
    return f"{said}; mend that line, or what it was given"


def _section_of(error: Exception) -> list[str] | None:
    """The fields of the ConfigDict that raised it."""
    trace = error.__traceback__
    while trace and trace.tb_next:
        trace = trace.tb_next
    found = trace and trace.tb_frame.f_locals.get("self")
    return list(found) if isinstance(found, ConfigDict) else None


def _quoted(name: str) -> str:
    return f'"{name}"'
