"""One command on all hosts of a job: ``python -m launch.pods tpu-vm|gke|slurm|ssh [flags] -- COMMAND``.

Prints what would run; ``--go`` runs it. Never imports jax.
"""

import difflib
import sys

from mdlm_jax.config import ConfigError

from .. import _cli, _help
from . import gke, slurm, ssh, tpu_vm
from ._check import checked
from ._recipe import go, show

RECIPES = {"tpu-vm": tpu_vm, "gke": gke, "slurm": slurm, "ssh": ssh}
_GO = _cli.Flag("go", "", "run it; without this flag it is only printed", bool)

_HELP = """\
Starts a command on all hosts of a job. Prints exactly what would run; --go runs it.

usage: {program} RECIPE [--go] [flags] -- COMMAND

{recipes}

The recipe adds --distributed to COMMAND, so that the processes find each other; COMMAND is launch.train, with a
--workdir that all hosts see. A command of ours is checked first: flags, fields, workdir, and train.mesh against the
devices. docs/pods.md says how to watch, debug and resume a job.

examples
  {program} tpu-vm --name=llada --zone=us-east5-a --accelerator=v5p-512 -- .venv/bin/python -m launch.train \\
      --config=llada_8b --workdir=gs://BUCKET/run
  {program} gke --name=llada --topology=v5litepod-256 --image=gcr.io/p/mdlm -- python -m launch.train \\
      --config=llada_8b --workdir=gs://BUCKET/run
  {program} slurm --name=llada --nodes=16 --gpus_per_node=8 -- python -m launch.train --config=llada_8b \\
      --workdir=/shared/run --config.train.mesh=replica:8,fsdp:16 --config.model.backend=cudnn
  {program} ssh --hosts=node0,node1 -- python -m launch.train --config=quickstart --workdir=/shared/run

exit status: 0 printed or done, 2 something in the command is wrong, else that of the first program that failed
"""


def _prepare(argv: list[str]) -> _cli.Work | None:
    own, command = (argv[: argv.index("--")], argv[argv.index("--") + 1 :]) if "--" in argv else (argv, [])
    if {"--help", "-h"}.intersection(own):
        print(_HELP.format(program=_help.program("pods"), recipes=_recipe_lines()), end="")
        return None
    recipe = _recipe(own[0] if own else "")
    flags = _cli.parse(own[1:], (_GO, *recipe.FLAGS)).flags
    found = recipe.actions(flags, command)
    for note in checked(command, recipe.place(flags)) if command else ():
        print(f"note: {note}", file=sys.stderr)
    if flags.get("go"):
        return lambda: go(found, recipe.TOGETHER)
    print(show(found, recipe.TOGETHER and len(found) > 1), end="")
    return None


def _recipe(name: str):
    if name in RECIPES:
        return RECIPES[name]
    close = difflib.get_close_matches(name, RECIPES, n=1)
    hint = f"did you mean {close[0]}?" if close else "see --help"
    raise ConfigError(f"recipe {name!r}: the first word is one of {', '.join(RECIPES)}; {hint}")


def _recipe_lines() -> str:
    parts = []
    for name, recipe in RECIPES.items():
        about = (recipe.__doc__ or "").partition("\n")[0]
        parts.append(f"{name}: {about}\n{_help.flag_lines((*recipe.FLAGS, _GO))}")
    return "\n\n".join(parts)


def main(argv: list[str] | None = None) -> int:
    """The console script ``mdlm-pods``; returns the exit status."""
    return _cli.run(_prepare, argv)


if __name__ == "__main__":
    sys.exit(main())
