"""Draws how samples came to be: ``python -m launch.evolution --checkpoints=DIR,... --figure=FILE.png``.

Generated, edited and re-masked tokens in three colours, step by step. launch/run_evolution.py does the work.
"""

import dataclasses
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from mdlm_jax.config import ConfigError, RunConfig

from . import _cli, _help
from ._workdir import read_config
from .sample import find_checkpoint
from .tradeoff import folders

FLAGS = (
    _cli.Flag("checkpoints", "DIR,...", "workdirs of runs; patterns as in 'runs/xdlm/*' too. Required."),
    _cli.Flag("figure", "FILE.png", "the figure. Required."),
    _cli.Flag("steps", "N", "denoising steps; 32 unless given", int),
    _cli.Flag("samples", "N", "samples that are counted; the first is drawn; 64 unless given", int),
    _cli.Flag("seed", "N", "of the samples; 0 unless given", int),
)

_HELP = """\
Samples from several models by their reverse process, and draws what each step did: tokens generated (mask to token),
edited (token to token) and re-masked (token to mask), as shares over all samples and at every position of one.

usage: {program} --checkpoints=DIR,... --figure=FILE.png [--steps=N] [--samples=N] [--seed=N]

{flags}
"""


@dataclasses.dataclass(frozen=True)
class EvolutionOptions:
    """A checked command line; ``models``: title -> the step's folder and the run's configuration."""

    models: dict[str, tuple[Path, RunConfig]]
    figure: Path
    steps: int
    samples: int
    seed: int


def read_options(flags: dict) -> EvolutionOptions:
    """ConfigError: no runs there, numbers out of range, a figure that cannot be written, networks without a canvas."""
    models: dict[str, Any] = {}
    for text in folders(_cli.require(flags, "checkpoints", "'runs/xdlm/*'", "the trained models")):
        folder = find_checkpoint(text)
        config = read_config(folder / "config.json")
        if config.model.attention != "bidirectional":
            raise ConfigError(f"--checkpoints={text}: its network is {config.model.attention}, and what is drawn is a "
                              "canvas that is written all at once; leave it out")
        title = config.process.title
        same = sum(one == title or one.startswith(f"{title} (") for one in models)
        models[f"{title} ({same + 1})" if same else title] = folder, config
    figure = Path(_cli.require(flags, "figure", "evolution.png", "the picture")).expanduser()
    if figure.suffix != ".png" or not figure.parent.is_dir():
        raise ConfigError(f"--figure={figure}: must be a .png file in a folder that exists")
    numbers = {name: flags.get(name, usual) for name, usual in (("steps", 32), ("samples", 64), ("seed", 0))}
    for name, least in (("steps", 1), ("samples", 1), ("seed", 0)):
        if numbers[name] < least:
            raise ConfigError(f"--{name}={numbers[name]}: must be at least {least}")
    return EvolutionOptions(models, figure, **numbers)


def _prepare(argv: list[str]) -> Callable[[], None] | None:
    arguments = _cli.parse(argv, FLAGS)
    if arguments.help:
        print(_HELP.format(program=_help.program("evolution"), flags=_help.flag_lines(FLAGS)), end="")
        return None
    options = read_options(arguments.flags)
    return lambda: _draw(options)


def _draw(options: EvolutionOptions) -> None:
    from . import run_evolution

    run_evolution.main(options)


def main(argv: list[str] | None = None) -> int:
    """The console script ``mdlm-evolution``; returns the exit status."""
    return _cli.run(_prepare, argv)


if __name__ == "__main__":
    sys.exit(main())
