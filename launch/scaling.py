"""An IsoFLOP study: ``python -m launch.scaling --config=scaling --workdir=DIR``. Never imports jax.

Budgets x sizes x families make a grid of training runs, each a launch.train of its own in a folder of the study; the
held-out losses of those that are done are fitted and drawn. launch/_scaling.py does the work.
"""

import dataclasses
import math
import sys
from collections.abc import Callable
from pathlib import Path

from mdlm_jax.config import ConfigError, RunConfig
from mdlm_jax.models.shapes import layer_parameter_count
from mdlm_jax.planning import topologies
from mdlm_jax.planning.topologies import Topology

from . import _cli, _configs, _help

FLAGS = (
    _cli.Flag("config", "FILE", "a recipe whose get_config takes 'SIZE,FAMILY,FLOPS': scaling, smdm, or a file of your "
              "own. Required."),
    _cli.Flag("workdir", "DIR", "the folder of the study; the same command again goes on in it. Required, but for "
              "--dry_run."),
    _cli.Flag("budgets", "C,...", "training FLOPs, 6 N D; default: the recipe's STUDY"),
    _cli.Flag("sizes", "SIZE,...", "as the recipe names them; at least three for a parabola; default: its STUDY, which "
              "may have others for every budget"),
    _cli.Flag("families", "NAME,...", "as the recipe names them; default: its STUDY, or masked,autoregressive"),
    _cli.Flag("dry_run", "", "check every run, print the grid and stop", bool),
    _cli.Flag("report", "", "train nothing more: fit and draw what is done", bool),
    _cli.Flag("topology", "NAME", "with --dry_run: days and chip-hours of every run on that slice, as launch.plan has "
              "it by arithmetic"),
    _cli.Flag("efficiency", "SHARE", "with --topology: share of the bound's speed; 0.5 unless given", float),
)

_MASKED = ("eval.draws", "sample.steps")  # fields that autoregressive runs do not read

_HELP = """\
Trains networks of several sizes at several budgets of compute, as masked models and as autoregressive twins, and finds
how the best loss and the best size move with compute: parabolas in log N, power laws in C, 95 % intervals, the compute
gap between the families, and a figure.

usage: {program} --config=FILE --workdir=DIR [--budgets=C,...] [--sizes=SIZE,...] [--families=NAME,...] [--dry_run]
       [--report] [--topology=NAME] [--config.SECTION.FIELD=VALUE ...]

{flags}

Every run is `launch.train --config=FILE:SIZE,FAMILY,FLOPS` (of scaling LAYERSxWIDTH, as in 2x32) in
DIR/FAMILY_SIZE_FLOPS; fields of the command line go to all of them (eval.draws and sample.steps not to autoregressive
ones, which do not read them), and runs of one study are measured alike. --dry_run does not look at the data. A study
that was stopped or killed goes on where it was. N counts no embedding and no head.

examples
  {program} --config=scaling --workdir=runs/scaling
  {program} --config=scaling --workdir=runs/mine --budgets=1e12,1e13 --config.data.source=book.txt
  {program} --config=smdm --sizes=19,48,85,170,302 --budgets=6e18,1e19,3e19 --workdir=runs/smdm --dry_run \\
      --topology=v5p:4x4x4 --config.data.source=prepared:rows

exit status: that of the run that did not end well; 0 done
"""


@dataclasses.dataclass(frozen=True)
class Cell:
    """One run of the grid. ``recipe``: what --config is for launch.train; ``config``: the same, checked; ``flags``: of
    launch.train, beside it."""

    family: str
    size: str
    flops: float
    recipe: str
    config: RunConfig
    flags: tuple[str, ...]

    @property
    def name(self) -> str:
        return f"{self.family}_{self.size}_{self.flops:g}"

    @property
    def parameters(self) -> int:
        return layer_parameter_count(self.config.model.transformer(max(self.config.model.vocab_size, 2)))

    @property
    def tokens(self) -> int:
        return self.config.train.steps * self.config.train.batch_size * self.config.data.length

    @property
    def spent(self) -> float:
        """6 N D, which a whole number of steps rounds."""
        return 6.0 * self.parameters * self.tokens


@dataclasses.dataclass(frozen=True)
class Study:
    """A checked command line.

    Attributes:
      cells: the grid, the smallest budget first.
      topology: to plan for, or None.
    """

    workdir: Path
    cells: tuple[Cell, ...]
    dry_run: bool
    report: bool
    topology: Topology | None
    efficiency: float


def read_study(flags: dict, overrides: dict) -> Study:
    """Every run is made and checked.

    Raises:
      ConfigError: of a recipe that takes no such argument, a budget that is no number, a run that cannot be.
    """
    recipe = _cli.require(flags, "config", "scaling", "the recipe of the runs")
    if ":" in recipe and not Path(recipe).is_file():
        raise ConfigError(f"--config={recipe}: what is behind the colon is made here, from --sizes, --families and "
                          "--budgets; leave it out")
    for name in ("train.steps", "model.layers", "model.d_model"):
        if name in overrides:
            raise ConfigError(f"--config.{name}={overrides[name]}: follows from size and budget; leave it out")
    told = _configs.study(recipe)
    families = _listed(flags, "families", {"families": ("masked", "autoregressive")} | told)
    budgets = sorted(_flops(text) for text in _listed(flags, "budgets", told))
    sizes = {flops: _sizes(flags, told, flops) for flops in budgets}
    cells = []
    grid = [(flops, family, size) for flops in budgets for family in families for size in sizes[flops]]
    for flops, family, size in grid:
        name = f"{recipe}:{size},{family},{flops:g}"
        own = {key: value for key, value in overrides.items() if family != "autoregressive" or key not in _MASKED}
        given = tuple(f"--config.{key}={value}" for key, value in own.items())
        try:
            cells.append(Cell(family, size, flops, name, _configs.load(name, own), given))
        except ConfigError as error:
            raise ConfigError(f"--sizes={size} --families={family} --budgets={flops:g}: {error}") from None
        _check(cells[-1])
    dry_run, workdir = flags.get("dry_run", False), flags.get("workdir", "")
    if not dry_run:
        _cli.require(flags, "workdir", "runs/scaling", "the folder of the study")
    for name in ("topology", "efficiency"):
        if name in flags and not dry_run:
            raise ConfigError(f"--{name}={flags[name]}: is of a plan; add --dry_run, or leave it out")
    topology = topologies.parse(flags["topology"], 1) if "topology" in flags else None
    efficiency = flags.get("efficiency", 0.5)
    if not 0 < efficiency <= 1:
        raise ConfigError(f"--efficiency={efficiency:g}: must lie in (0, 1]")
    return Study(Path(workdir).expanduser(), tuple(cells), dry_run, flags.get("report", False), topology, efficiency)


def _check(cell: Cell) -> None:
    """A budget that its steps do not spend, or whose schedule has no room, says nothing at that budget."""
    if abs(cell.spent / cell.flops - 1) > 0.05:
        raise ConfigError(f"--config={cell.recipe}: its {cell.config.train.steps:,} steps spend {cell.spent:.3g} FLOPs "
                          f"(6 N D), not {cell.flops:g}; choose a budget that is a larger multiple of a step, or a "
                          "recipe whose steps follow from it")


def _listed(flags: dict, name: str, told: dict) -> list[str]:
    found = [part.strip() for part in flags.get(name, "").split(",") if part.strip()]
    found = found or [f"{value:g}" if isinstance(value, float) else str(value) for value in told.get(name, ())]
    if not found:
        raise ConfigError(f"--{name} is missing: the recipe has no STUDY that names them; give some, or a recipe made "
                          "for studies: scaling, or smdm with --sizes=19,48,85 --budgets=6e18,1e19")
    if len(set(found)) < len(found):
        raise ConfigError(f"--{name}={flags.get(name)}: names one twice; name each once")
    return found


def _sizes(flags: dict, told: dict, flops: float) -> list[str]:
    """--sizes is for all budgets; a STUDY may have others for each: optima move, and a parabola wants them amid."""
    by_budget = told.get("sizes", ())
    if not isinstance(by_budget, dict):
        return _listed(flags, "sizes", told)
    if "sizes" not in flags and flops not in by_budget:
        known = ", ".join(f"{budget:g}" for budget in by_budget)
        raise ConfigError(f"--budgets={flops:g}: the recipe's STUDY has sizes for {known}; say with --sizes which are "
                          "to be trained")
    return _listed(flags, "sizes", {"sizes": by_budget.get(flops, ())})


def _flops(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not (math.isfinite(value) and value > 0):
        raise ConfigError(f"--budgets={text}: must be positive numbers of FLOPs, as in 1e12,3e12")
    return value


def _prepare(argv: list[str]) -> Callable[[], int | None] | None:
    arguments = _cli.parse(argv, FLAGS, config=True)
    if arguments.help:
        print(_HELP.format(program=_help.program("scaling"), flags=_help.flag_lines(FLAGS)), end="")
        return None
    study = read_study(arguments.flags, arguments.overrides)
    from . import _scaling

    return lambda: _scaling.run(study)


def main(argv: list[str] | None = None) -> int:
    """The console script ``mdlm-scaling``; returns the exit status."""
    return _cli.run(_prepare, argv)


if __name__ == "__main__":
    sys.exit(main())
