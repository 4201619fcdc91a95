"""Fewer steps, round after round: ``python -m launch.distil --config=sdtt --from=RUN --rounds=5 --workdir=DIR``.

Each round is a launch.train of its own in a folder of DIR, whose teacher is the network of the round before. Never
imports jax.
"""

import contextlib
import dataclasses
import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

from mdlm_jax.config import OBJECTIVES, ConfigError, RunConfig, parse_spec

from . import _cli, _configs, _help
from ._start import check_start
from ._supervisor import Job, supervise
from ._workdir import check_workdir, read_config

FLAGS = (
    _cli.Flag("config", "FILE", "a recipe whose train.objective is sdtt:STEPS or duo:STEPS: sdtt, sdtt:duo, or a file "
              "of your own. Required."),
    _cli.Flag("from", "DIR", "the first teacher: a run of ours, or a Hugging Face directory. Required."),
    _cli.Flag("rounds", "N", "how often the steps are halved. Required.", int),
    _cli.Flag("steps", "N", "of the first teacher; unless given, as in the recipe's train.objective", int),
    _cli.Flag("workdir", "DIR", "the folder of the rounds, DIR/round_1 and so on; the same command again goes on in "
              "it. Required, but for --dry_run."),
    _cli.Flag("dry_run", "", "check every round, list them and stop", bool),
)
_FOLLOWS = {"train.init_from": "--from and the round before", "train.objective": "--steps and the round"}

_HELP = """\
Distils a diffusion model into fewer and fewer steps (SDTT, arXiv 2410.21035; Duo's DCD, arXiv 2506.10892).

usage: {program} --config=FILE --from=DIR --rounds=N --workdir=DIR [--steps=N] [--dry_run]
       [--config.SECTION.FIELD=VALUE ...]

{flags}

Round r is `launch.train` with train.objective=sdtt:STEPS, STEPS half those of the round before, and the weights of that
round (averaged, where it kept an average) as start and as teacher; fields of the command line go to all rounds. A
command that was stopped or killed goes on where it was. At the end stands a table: the held-out bound of every round,
which usually rises, since a network of larger steps no longer says the marginals that the bound asks for.

examples
  {program} --config=sdtt --from=runs/hmm --steps=64 --rounds=5 --workdir=runs/hmm_few
  {program} --config=sdtt:duo --from=runs/uniform --steps=64 --rounds=5 --workdir=runs/uniform_few
  {program} --config=sdtt --from=runs/text --steps=1024 --rounds=7 --workdir=runs/text_few --dry_run \\
      --config.data.source=book.txt --config.data.tokenizer=runs/text/tokenizer.json --config.train.steps=10000

exit status: that of the round that did not end well; 0 done
"""


@dataclasses.dataclass(frozen=True)
class Round:
    """One run. ``flags``: of launch.train."""

    folder: Path
    config: RunConfig
    flags: tuple[str, ...]

    @property
    def summary(self) -> Path:
        """There once the round is done."""
        return self.folder / "summary.json"


@dataclasses.dataclass(frozen=True)
class Rounds:
    """A checked command line."""

    start: str
    rounds: tuple[Round, ...]
    dry_run: bool


def read(flags: dict, overrides: dict) -> Rounds:
    """Every round is made and checked.

    Raises:
      ConfigError: a flag that is missing, steps that cannot be halved so often, a recipe with no teacher, a round that
        cannot be.
    """
    recipe = _cli.require(flags, "config", "sdtt", "the recipe of the rounds")
    start = _cli.require(flags, "from", "runs/first", "the network to distil")
    number = int(_cli.require(flags, "rounds", "5", "how often the steps are halved"))
    dry_run, workdir = flags.get("dry_run", False), Path(flags.get("workdir", "")).expanduser()
    if not dry_run:
        _cli.require(flags, "workdir", "runs/few", "the folder of the rounds")
    for name, origin in _FOLLOWS.items():
        if name in overrides:
            raise ConfigError(f"--config.{name}={overrides[name]}: follows from {origin}; leave it out")
    with _blamed_on_from(start):
        kind, steps = _first(_configs.load(recipe, overrides | {"train.init_from": start}), recipe, flags.get("steps"))
    _check_halves(kind, steps, number)
    rounds: list[Round] = []
    given = tuple(f"--config.{name}={value}" for name, value in overrides.items())
    for index in range(number):
        objective = f"{kind}:{steps >> index}"
        with _blamed_on_from(start):
            config = _configs.load(recipe, overrides | {"train.init_from": start, "train.objective": objective})
            if not index:
                check_start(config)
        before = str(rounds[-1].folder) if rounds else start
        config = dataclasses.replace(config, train=dataclasses.replace(config.train, init_from=before))
        mine = (f"--config={recipe}", f"--config.train.init_from={before}", f"--config.train.objective={objective}")
        rounds.append(Round(workdir / f"round_{index + 1}", config, (*mine, *given)))
    return Rounds(start, tuple(rounds), dry_run)


@contextlib.contextmanager
def _blamed_on_from(start: str) -> Iterator[None]:
    """The field that the flag fills is named as the flag."""
    try:
        yield
    except ConfigError as error:
        said = str(error).replace(f"train.init_from={start!r}", f"--from={start}")
        raise ConfigError(said.replace("train.init_from", "--from")) from None


def _first(config: RunConfig, recipe: str, steps: int | None) -> tuple[str, int]:
    """The objective of the first round: its name and the teacher's steps."""
    kind, numbers = parse_spec("train.objective", config.train.objective, OBJECTIVES)
    if kind not in ("sdtt", "duo"):
        raise ConfigError(f"--config={recipe}: its train.objective={config.train.objective} has no rounds; choose a "
                          "recipe with sdtt:STEPS or duo:STEPS")
    return kind, int(numbers[0]) if steps is None else steps


def _check_halves(kind: str, steps: int, rounds: int) -> None:
    if rounds < 1:
        raise ConfigError(f"--rounds={rounds}: must be at least 1")
    times = rounds if kind == "sdtt" else rounds - 1
    if steps < 2 or steps % 2**times or steps >> rounds - 1 < 2:
        raise ConfigError(f"--rounds={rounds}: {steps} steps cannot be halved so often; give fewer rounds, or a "
                          f"multiple of {2**rounds} as --steps")


def run(asked: Rounds) -> int:
    """Trains what is not done, and prints the table. The status of the round that failed, or 0."""
    for number, one in enumerate(asked.rounds, 1):
        print(f"round {number}: train.objective={one.config.train.objective}, {one.config.train.steps:,} steps of "
              f"{one.config.train.batch_size} rows, from {one.config.train.init_from}", flush=True)
    if asked.dry_run:
        return 0
    for one in asked.rounds:
        check_workdir(str(one.folder), one.config)  # before any time is spent
        _check_done(one)
    for one in asked.rounds:
        if one.summary.exists():
            continue
        print(f"\n[{one.folder.name}] of {len(asked.rounds)}", flush=True)
        command = [sys.executable, "-m", f"{__package__}.train", f"--workdir={one.folder}", *one.flags]
        status = supervise(Job(command, 1, None, max_restarts=0, grace=60))
        if status:
            print(f"[{one.folder.name}] ended with status {status}; the same command goes on from there",
                  file=sys.stderr)
            return status
    print(table(asked), flush=True)
    return 0


def _check_done(one: Round) -> None:
    """ConfigError where a round that is done was shorter: those after it began with what it was."""
    if one.summary.exists():
        there, here = read_config(one.folder / "config.json").train.steps, one.config.train.steps
        if there != here:
            raise ConfigError(f"{one.folder}: was trained for train.steps={there}, not {here}, and the next round "
                              f"began from that; set --config.train.steps={there}, or choose another --workdir")


def table(asked: Rounds) -> str:
    """The held-out bound before and after each round that is done."""
    lines = ["", "| round | train.objective | held-out bound, nats a token | folder |", "|---|---|---|---|"]
    ends = [(0, "", Path(asked.start).expanduser()),
            *((n, one.config.train.objective, one.folder) for n, one in enumerate(asked.rounds, 1))]
    for number, objective, folder in ends:
        if (folder / "summary.json").exists():
            held_out = json.loads((folder / "summary.json").read_text(encoding="utf-8"))["held_out"]
            bound = f"{held_out['nats_per_token']:.4f} +- {held_out['nats_stderr']:.4f}"
        else:
            bound = "not measured"
        lines.append(f"| {number} | {objective} | {bound} | {folder} |")
    return "\n".join(lines)


def _prepare(argv: list[str]) -> Callable[[], int | None] | None:
    arguments = _cli.parse(argv, FLAGS, config=True)
    if arguments.help:
        print(_HELP.format(program=_help.program("distil"), flags=_help.flag_lines(FLAGS)), end="")
        return None
    asked = read(arguments.flags, arguments.overrides)
    return lambda: run(asked)


def main(argv: list[str] | None = None) -> int:
    """The console script ``mdlm-distil``; returns the exit status."""
    return _cli.run(_prepare, argv)


if __name__ == "__main__":
    sys.exit(main())
