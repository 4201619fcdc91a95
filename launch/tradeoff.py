"""Draws several models against each other: ``python -m launch.tradeoff --checkpoints=DIR,DIR,... --figure=FILE.png``.

Each checkpoint is measured as by launch.evaluate, whose record in its workdir is continued; what is there with the same
settings is not made again.
"""

import glob
import sys
from collections.abc import Callable
from pathlib import Path

from mdlm_jax.config import ConfigError, RunConfig
from mdlm_jax.evaluation import tradeoff

from . import _cli, _help, evaluate

_OWN = (
    _cli.Flag("checkpoints", "DIR,...", "workdirs of runs; patterns as in 'runs/xdlm/*' too. Required."),
    _cli.Flag("figure", "FILE.png", "the figure: quality at few steps against the bound, one point a recipe, and "
              "quality and entropy against steps"),
    _cli.Flag("table", "FILE.md", "also write the table here"),
    _cli.Flag("by", "FIELD,...", "configuration fields that tell recipes apart; runs that agree in them are seeds of "
              "one, and must agree in the rest; default process.mixing (of GIDD process.p_uniform)"),
    _cli.Flag("few", "N", "step count of the figure's first panel; default: the smallest", int),
)
_PASSED_ON = tuple(flag for flag in evaluate.FLAGS if flag.name not in ("checkpoint", "output", "held_out"))
FLAGS = (*_OWN, *_PASSED_ON)

_HELP = """\
Measures several models as launch.evaluate does, and puts them side by side: a table with error bars over the runs of
each recipe, and a figure of understanding (the held-out bound) against few-step generation.

usage: {program} --checkpoints=DIR,... [--figure=FILE.png] [--table=FILE.md] [--by=FIELD,...] [flags of launch.evaluate]

{flags}
And the flags of launch.evaluate but --checkpoint, --output and --held_out.

example
  for m in 0 0.01 0.1 0.5 1; do
    python -m launch.train --config=xdlm_oracle --workdir=runs/xdlm/$m --config.process.mixing=$m
  done
  {program} --checkpoints='runs/xdlm/*' --figure=tradeoff.png
"""


def _prepare(argv: list[str]) -> Callable[[], None] | None:
    arguments = _cli.parse(argv, FLAGS)
    if arguments.help:
        print(_HELP.format(program=_help.program("tradeoff"), flags=_help.flag_lines(_OWN)), end="")
        return None
    flags = arguments.flags
    workdirs = folders(_cli.require(flags, "checkpoints", "'runs/xdlm/*'", "the trained models"))
    asked = flags.get("by", "")
    by = tuple(part.strip() for part in asked.split(",") if part.strip())
    known = _cli.field_types()
    for field in by:
        if field not in known:
            raise ConfigError(f"--by={field}: there is no such configuration field; give one as in process.mixing")
    for name, suffix in (("figure", ".png"), ("table", ".md")):
        if name in flags and (not flags[name].endswith(suffix) or not Path(flags[name]).expanduser().parent.is_dir()):
            raise ConfigError(f"--{name}={flags[name]}: must be a {suffix} file in a folder that exists")
    measured = {flag.name: flags[flag.name] for flag in _PASSED_ON if flag.name in flags}
    jobs = [evaluate.read_options(measured | {"checkpoint": folder}) for folder in workdirs]
    by = by or _usual([job.config for job in jobs])
    if "few" in flags and any(flags["few"] not in job.steps for job in jobs):
        raise ConfigError(f"--few={flags['few']}: is none of the step counts that are measured; choose one of "
                          f"{', '.join(map(str, jobs[0].steps))}")
    return lambda: _compare(jobs, by, flags)


def _usual(configs: list[RunConfig]) -> tuple[str, ...]:
    families = {config.process.family for config in configs}
    if families == {"stationary"}:
        return ("process.mixing",)
    return ("process.p_uniform",) if families == {"gidd"} else ("process.family", "process.mixing", "process.p_uniform")


def folders(text: str) -> list[str]:
    """Paths of a list with commas, each expanded where it is a pattern. ConfigError where one matches nothing."""
    found = []
    for part in filter(None, (part.strip() for part in text.split(","))):
        matches = sorted(glob.glob(str(Path(part).expanduser()))) if any(c in part for c in "*?[") else [part]
        found += [one for one in matches if one not in found]
        if not matches:
            raise ConfigError(f"--checkpoints={part}: nothing matches; name workdirs or a pattern of them")
    return found


def _compare(jobs: list[evaluate.EvaluateOptions], by: tuple[str, ...], flags: dict) -> None:
    from . import run_evaluate

    records = []
    for number, job in enumerate(jobs, 1):
        print(f"[{number} of {len(jobs)}] {job.output.parent}", flush=True)
        records.append(run_evaluate.main(job))
    groups, title = tradeoff.grouped(records, by), ", ".join(field.partition(".")[2] for field in by)
    text = tradeoff.table(groups, title)
    print(f"\n{text}")
    if "table" in flags:
        Path(flags["table"]).expanduser().write_text(text + "\n", encoding="utf-8")
    if "figure" in flags:
        few = str(flags["few"]) if "few" in flags else None
        tradeoff.draw(groups, title, Path(flags["figure"]).expanduser(), few)


def main(argv: list[str] | None = None) -> int:
    """The console script ``mdlm-tradeoff``; returns the exit status."""
    return _cli.run(_prepare, argv)


if __name__ == "__main__":
    sys.exit(main())
