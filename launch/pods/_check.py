"""Is COMMAND right? What can be told here is told before anything is printed or started. Never imports jax.

A command of ours is read by its own parser and its own checks of the configuration; what only the far machines can
tell (data, checkpoints, what stands in the workdir) is left to the job.
"""

import dataclasses
import importlib
import math
import pkgutil
import re
from collections.abc import Sequence
from pathlib import Path

from mdlm_jax.config import ConfigError, RunConfig, parse_mesh
from mdlm_jax.config.names import nearest
from mdlm_jax.config.objectives import check_training
from mdlm_jax.planning import estimate, topologies
from mdlm_jax.planning.topologies import Topology
from mdlm_jax.training import places

from .. import _cli, _configs
from .._workdir import check_address

_PACKAGE = __package__.rpartition(".")[0]
_PYTHON = re.compile(r"(.*/)?python[\d.]*")
_MODULE = re.compile(r"(?:mdlm_jax\.)?launch\.(\w+)")
_TAKE_A_WORD = ("-X", "-W")  # of Python's own flags
_LOCAL = ("/tmp", "/var/tmp", "/dev/shm", "/run")
_SHARED = "an absolute path that all machines see"


@dataclasses.dataclass(frozen=True)
class Place:
    """Where a command is to run, as far as the flags of its recipe say.

    Attributes:
      hosts: machines; None: maybe several.
      topology: of TPUs; None: not known, or no TPUs.
      gpus: of each machine; None: not known, or none.
      tpu: the recipe starts TPUs.
      shared: all machines see the folder in which launch.pods was called, and the same home.
      mounted: the machines may have folders in common.
    """

    hosts: int | None
    topology: Topology | None = None
    gpus: int | None = None
    tpu: bool = False
    shared: bool = False
    mounted: bool = True


def checked(command: Sequence[str], place: Place) -> list[str]:
    """What is to be said of a command that passes: what was not checked, and why.

    Raises:
      ConfigError: what the command itself would say, or a workdir or mesh that cannot be on these machines.
    """
    found = _own(command)
    if found is None:
        return [f"{command[0]}: the command is none of ours and was not checked"]
    name, arguments = found
    flags = getattr(_module(name), "FLAGS", ())
    if "distributed" not in {flag.name for flag in flags}:
        raise ConfigError(f"launch.{name}: runs on one machine alone, without --distributed; call it there by itself")
    said = _cli.parse(arguments, flags, config=any(flag.name == "config" for flag in flags))
    if said.help:
        return []
    if name == "train":
        return _training(said, place)
    return [note for flag in flags if flag.written and flag.name in said.flags
            for note in _written(flag.name, said.flags[flag.name], place)]


def _own(command: Sequence[str]) -> tuple[str, list[str]] | None:
    """(name, arguments) of a command of this library."""
    first, *rest = command
    if Path(first).name.startswith("mdlm-"):
        return Path(first).name.removeprefix("mdlm-"), rest
    if not _PYTHON.fullmatch(first):
        return None
    while rest and rest[0].startswith("-") and rest[0] != "-m":
        rest = rest[2 if rest[0] in _TAKE_A_WORD else 1:]
    module = _MODULE.fullmatch(rest[1]) if len(rest) > 1 and rest[0] == "-m" else None
    return (module[1], rest[2:]) if module else None


def _module(name: str):
    folder = importlib.import_module(_PACKAGE).__path__
    known = [one.name for one in pkgutil.iter_modules(folder) if not one.name.startswith(("_", "run_"))]
    if name not in known:
        close = nearest(name, known)
        hint = f"did you mean launch.{close[0]}?" if close else f"the commands are {', '.join(known)}"
        raise ConfigError(f"launch.{name}: there is no such command; {hint}")
    return importlib.import_module(f"{_PACKAGE}.{name}")


def _training(said: _cli.Arguments, place: Place) -> list[str]:
    recipe = _cli.require(said.flags, "config", "llada_8b", "the recipe to train")
    if place.hosts != 1:
        _check_own_disk("config", recipe, _LOCAL, "put it into the folder of the command, on all machines")
    notes = []
    if not said.flags.get("dry_run"):
        notes += _workdir(_cli.require(said.flags, "workdir", "gs://BUCKET/run", "the folder for the results"), place)
    if _elsewhere(recipe):
        return [*notes, f"--config={recipe}: is not on this machine, so the configuration was not checked"]
    begin = said.overrides.get("train.init_from", "")
    elsewhere = begin and (places.in_bucket(begin) or not Path(begin).expanduser().exists())  # with the network
    try:
        config = _configs.load(recipe, said.overrides, not elsewhere)
        check_training(config)
    except ConfigError as error:
        if not elsewhere:
            raise
        return [*notes, f"--config.train.init_from={begin}: is not read here, and without its network nothing is "
                        f"checked of the configuration ({error})"]
    _backend(config, place)
    return notes + _mesh(config, place)


def _elsewhere(recipe: str) -> bool:
    """Whether it is the path of a file that is not here. A name of a recipe must be one of the package."""
    path = Path(recipe.partition(":")[0]).expanduser()
    if path.suffix != ".py" or path.is_file():
        return False
    return path.stem not in _configs.shipped() or path.parent not in (Path("."), Path("configs"))


def _workdir(text: str, place: Place) -> list[str]:
    check_address(text)
    return [] if places.in_bucket(text) else _written("workdir", text, place, "gs://BUCKET/NAME, or ")


def _written(flag: str, text: str, place: Place, bucket: str = "") -> list[str]:
    """What is to be said of a path that all processes write to; ``bucket``: where it may be an address, how."""
    if place.hosts == 1 and place.mounted:
        return []
    if re.match(r"[A-Za-z][A-Za-z0-9+.-]*:/", text):
        raise ConfigError(f"--{flag}={text}: is written as a file, not to a bucket; give {_SHARED}")
    shared = _SHARED + (", or --accelerator=v5litepod-8 where all is one host" if place.tpu and not place.hosts else "")
    path = Path(text)
    if place.shared:
        path = path.expanduser().absolute()
    elif not path.is_absolute():
        raise ConfigError(f"--{flag}={text}: would be another place on every machine; give {bucket}{shared}")
    own = _LOCAL if place.shared or not place.tpu else (*_LOCAL, "/home", "/root")
    _check_own_disk(flag, text, own, f"give {bucket}{shared}", path)
    if not place.mounted:
        return [f"--{flag}={text}: the JobSet mounts nothing, so this would be inside every container and lost with "
                f"it; {'give gs://BUCKET/NAME, or ' if bucket else ''}add a volume to what is printed"]
    return []


def _check_own_disk(flag: str, text: str, own: tuple[str, ...], remedy: str, path: Path | None = None) -> None:
    """ConfigError for a path below one of these folders."""
    if local := next((folder for folder in own if (path or Path(text)).is_relative_to(folder)), None):
        raise ConfigError(f"--{flag}={text}: lies in {local}, a disk of each machine's own; {remedy}")


def _backend(config: RunConfig, place: Place) -> None:
    wrong, there, right = ("cudnn", "TPUs", "splash") if place.tpu else ("splash", "GPUs", "cudnn")
    if config.model.backend == wrong and (place.tpu or place.gpus):
        raise ConfigError(f"model.backend={wrong!r}: does not run on {there}; add --config.model.backend={right}")


def _mesh(config: RunConfig, place: Place) -> list[str]:
    mesh = config.train.mesh
    if place.topology:
        sizes = topologies.mesh_sizes(place.topology, mesh)
    elif place.gpus and place.hosts:
        own = {"replica": place.hosts, "fsdp": place.gpus}
        sizes = topologies.filled(mesh, place.hosts * place.gpus, f"{place.hosts} x {place.gpus} GPUs", own)
    elif place.hosts:
        sizes = parse_mesh(mesh)
        if -1 not in sizes.values() and (devices := math.prod(sizes.values())) % place.hosts:
            raise ConfigError(f"train.mesh={mesh!r}: makes {devices} devices, which {place.hosts} machines cannot "
                              "share evenly; change train.mesh")
        return []
    else:
        return [f"train.mesh={mesh!r}: was not checked, since nothing says how many devices there are; add "
                "--accelerator=TYPE, as in v5p-512"]
    estimate.check_rows(config, sizes)
    return []
