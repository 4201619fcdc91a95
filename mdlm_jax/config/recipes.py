"""A recipe that changes another: the config files that come with the package, to start from."""

from pathlib import Path
from typing import Any

from mdlm_jax.errors import require

_PACKAGE = Path(__file__).resolve().parents[1]
SHIPPED = next(folder for folder in (_PACKAGE / "configs", _PACKAGE.parent / "configs") if folder.is_dir())


def recipe(name: str, *argument: str):
    """What ``get_config`` of a shipped recipe returns, such as ``recipe("quickstart")``; a recipe of your own may
    change it as it may `default_config`.

    Args:
      argument: for recipes that take one, such as ``recipe("smdm", "170")``.
    Raises:
      ConfigError: there is no such recipe.
    Examples:
      >>> config = recipe("quickstart")
      >>> config.data.source = "book.txt"
      >>> config.train.steps
      2000
    """
    path = SHIPPED / f"{name}.py"
    known = sorted(one.stem for one in SHIPPED.glob("[!_]*.py"))
    require(path.is_file(), "recipe", name, f"there is no such recipe; choose one of {', '.join(known)}")
    namespace: dict[str, Any] = {"__name__": f"config_{name}", "__file__": str(path)}
    exec(compile(path.read_bytes(), str(path), "exec"), namespace)
    return namespace["get_config"](*argument)
