"""A recipe that changes another: the config files that come with the package, to start from."""

from pathlib import Path
from typing import Any

from mdlm_jax.errors import require

_PACKAGE = Path(__file__).resolve().parents[1]
SHIPPED = (_PACKAGE if (_PACKAGE / "configs").is_dir() else _PACKAGE.parent) / "configs"  # in a wheel, in a checkout


def recipe(name: str, *argument: str):
    """What ``get_config`` of a shipped recipe returns, such as ``recipe("quickstart")``; a recipe of your own may
    change it as it may `default_config`.

    Args:
      argument: for recipes that take one, such as ``recipe("smdm", "170")``.
    Raises:
      ConfigError: there is no such recipe; TypeError: it takes another number of arguments.
    Examples:
      >>> config = recipe("quickstart")
      >>> config.data.source = "book.txt"
      >>> config.train.steps
      2000
    """
    path = SHIPPED / f"{name}.py"
    known = sorted(one.stem for one in SHIPPED.glob("[!_]*.py"))
    require(path.is_file() and name.isidentifier(), "recipe", name,
            f"there is no such recipe; choose one of {', '.join(known)}")
    return names_of(path)["get_config"](*argument)


def names_of(path: Path) -> dict[str, Any]:
    """What a config file defines. It is compiled here, not imported: no bytecode is left beside it."""
    namespace: dict[str, Any] = {"__name__": f"config_{path.stem}", "__file__": str(path)}
    exec(compile(path.read_bytes(), str(path), "exec"), namespace)
    return namespace
