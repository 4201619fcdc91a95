"""What a network writes one token a forward: ``python -m launch.trajectories --checkpoint=DIR --output=DIR``.

Rows and the order in which their tokens were written, for training a joint layer (``train.objective=joint:3``) or the
network itself (``dparallel:32,2,0.5``, ``dmax:1,1,0``). Flags and files are checked here, before jax is imported;
launch/run_trajectories.py does the work.
"""

import dataclasses
import sys
from collections.abc import Callable
from pathlib import Path

from mdlm_jax.config import ConfigError
from mdlm_jax.data.trajectories import NEVER

from . import _cli, _distributed, _help
from ._prompts import Prompt, read_prompts
from .sample import find_checkpoint, parsed_mesh

MOST = NEVER - 1  # tokens of a row

FLAGS = (
    _cli.Flag("checkpoint", "DIR", "a run's workdir or one of its steps, or a Hugging Face directory. Required."),
    _cli.Flag("output", "DIR", "the folder for the rows; the same command again goes on in it. Required.",
              written=True),
    _cli.Flag("num", "N", "rows; 16384 unless given, or one a prompt", int),
    _cli.Flag("prompts", "FILE", "write behind these prompts, in turn: .txt, a line each, or .jsonl"),
    _cli.Flag("prompt_field", "NAME", "of a .jsonl file; prompt unless given"),
    _cli.Flag("length", "L", "tokens of a row, its prompt included; default: what the model was made for", int),
    _cli.Flag("block_length", "K", "write block after block; default: the network's blocks, or everything at once",
              int),
    _cli.Flag("temperature", "T", "of the draws; 1 unless given", float),
    _cli.Flag("top_p", "P", "draw from the likeliest tokens that hold this much probability; 1 unless given", float),
    _cli.Flag("suppress", "ID,...", "ids that are never written"),
    _cli.Flag("seed", "N", "of the draws; 0 unless given", int),
    _cli.Flag("batch_size", "N", "rows at a time; 256 unless given", int),
    _cli.Flag("mesh", "SPEC", "share weights and rows among the devices here, as in fsdp:-1; default: one device"),
    _cli.Flag("distributed", "HOW", "auto, or HOST:PORT,N,I as launch.local says it: write a part of the rows, one of "
              "several processes"),
)

_HELP = """\
Writes rows one token a forward, always at the mask of the least entropy, and keeps the order beside them: what a joint
layer learns to imitate (ADJUST, arXiv 2509.22738).

usage: {program} --checkpoint=DIR --output=DIR [--num=N] [--prompts=FILE] [--length=L] ...

{flags}

examples
  {program} --checkpoint=runs/hmm --output=trajectories/hmm --num=16384
  python -m launch.train --config=joint --config.train.init_from=runs/hmm \\
      --config.data.source=trajectories:trajectories/hmm --config.data.length=64 --workdir=runs/hmm_joint
"""


@dataclasses.dataclass(frozen=True)
class TrajectoryOptions:
    """A checked command line. ``folder``: a step's folder, or a Hugging Face directory; ``length`` 0: the model's."""

    folder: Path
    output: Path
    num: int
    prompts: tuple[Prompt, ...] | None
    length: int
    block_length: int | None
    temperature: float
    top_p: float
    suppress: tuple[int, ...]
    seed: int
    batch_size: int
    mesh: dict[str, int] | None
    distributed: str | None


def read_options(flags: dict) -> TrajectoryOptions:
    """ConfigError: no checkpoint there, numbers out of range, a file of prompts that cannot be read."""
    from mdlm_jax.models.hf import families
    from mdlm_jax.training import places

    text = _cli.require(flags, "checkpoint", "runs/first", "the network that writes")
    output = Path(_cli.require(flags, "output", "trajectories/first", "the folder for the rows")).expanduser()
    place = places.place(text)
    folder = place if not places.in_bucket(text) and families.is_hf(place) else find_checkpoint(text)
    prompts = None
    if "prompts" in flags:
        prompts = tuple(read_prompts(flags["prompts"], flags.get("prompt_field", "prompt")))
    elif "prompt_field" in flags:
        raise ConfigError(f"--prompt_field={flags['prompt_field']}: is of a file; give --prompts, or leave it out")
    num = flags.get("num", len(prompts) if prompts else 16384)
    if flags.get("length", 0) > MOST:
        raise ConfigError(f"--length={flags['length']}: must be at most {MOST}")
    least = {"num": 2, "batch_size": 1, "length": 2, "block_length": 1}
    for name, value in ({name: flags[name] for name in least if name in flags} | {"num": num}).items():
        if value < least[name]:
            raise ConfigError(f"--{name}={value}: must be at least {least[name]}")
    if flags.get("temperature", 1.0) == 0 and not prompts:
        raise ConfigError("--temperature=0: without prompts all rows would be one; give --prompts, or leave it out")
    suppress = flags.get("suppress", "")
    if not all(part.strip().isdigit() for part in suppress.split(",") if part):
        raise ConfigError(f"--suppress={suppress}: must be ids, as in 5,6")
    return TrajectoryOptions(
        folder, output, num, prompts, flags.get("length", 0), flags.get("block_length"), flags.get("temperature", 1.0),
        flags.get("top_p", 1.0), tuple(int(part) for part in suppress.split(",") if part), flags.get("seed", 0),
        flags.get("batch_size", 256), parsed_mesh(flags), _distributed.asked(flags, "write rows"),
    )


def _prepare(argv: list[str]) -> Callable[[], None] | None:
    arguments = _cli.parse(argv, FLAGS)
    if arguments.help:
        print(_HELP.format(program=_help.program("trajectories"), flags=_help.flag_lines(FLAGS)), end="")
        return None
    options = read_options(arguments.flags)

    def work() -> None:
        number, count = _distributed.place(options.distributed)
        from . import run_trajectories

        with _distributed.leaving_at_once():
            run_trajectories.main(options, number, count)
            _distributed.part()

    return work


def main(argv: list[str] | None = None) -> int:
    """The console script ``mdlm-trajectories``; returns the exit status."""
    return _cli.run(_prepare, argv)


if __name__ == "__main__":
    sys.exit(main())
