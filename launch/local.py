"""Several processes of one job on this machine, supervised: ``python -m launch.local --processes=2 -- COMMAND``.

When one process dies the others cannot go on, so all are stopped and started again; the command finds its newest
checkpoint by itself. Never imports jax.
"""

import sys

from mdlm_jax.config import ConfigError

from . import _cli, _help
from ._supervisor import Job, supervise

FLAGS = (
    _cli.Flag("processes", "N", "how many processes. Required.", int),
    _cli.Flag("devices_per_process", "M", "virtual CPU devices of each; what jax finds unless given", int),
    _cli.Flag("max_restarts", "K", "how often the job may be started again after a failure; 10 unless given", int),
    _cli.Flag("grace", "SECONDS", "how long processes that are asked to stop may take to save; 60 unless given", int),
)

_HELP = """\
Starts a command as one job of several jax processes on this machine, watches it, and starts it again when it dies.

usage: {program} --processes=N [--devices_per_process=M] [--max_restarts=K] [--grace=SECONDS] -- COMMAND

{flags}

Every process gets the same command; process 0 speaks, and what the others say on standard error is marked. A process
that ends with status 2 (a mistake in the command) or 130 ends the job. After starts that fail within 20 s the next one
waits: 1 s, 2 s, ... 60 s. SIGTERM and Ctrl-C are passed on as SIGTERM, so that a training run saves before it leaves.

examples
  {program} --processes=2 --devices_per_process=4 -- python -m launch.train --config=quickstart --workdir=runs/two
  {program} --processes=1 -- python -m launch.train --config=quickstart --workdir=runs/watched

exit status: that of the command; 1 where it failed too often, 143 or 130 where it was stopped
"""


def _prepare(argv: list[str]) -> _cli.Work | None:
    own, command = (argv[: argv.index("--")], argv[argv.index("--") + 1 :]) if "--" in argv else (argv, [])
    arguments = _cli.parse(own, FLAGS)
    if arguments.help:
        print(_HELP.format(program=_help.program("local"), flags=_help.flag_lines(FLAGS)), end="")
        return None
    flags = arguments.flags
    if "processes" not in flags:
        _cli.require(flags, "processes", "2", "how many processes to start")
    job = Job(
        command, flags["processes"],
        flags.get("devices_per_process"), flags.get("max_restarts", 10), flags.get("grace", 60),
    )
    if not command:
        raise ConfigError("-- COMMAND is missing; write the command after two dashes, as in -- python -m launch.train "
                          "--config=quickstart --workdir=runs/two")
    for name, least in (("processes", 1), ("devices_per_process", 1), ("max_restarts", 0), ("grace", 0)):
        value = getattr(job, name)
        if value is not None and value < least:
            raise ConfigError(f"--{name}={value}: must be at least {least}")
    return lambda: supervise(job)


def main(argv: list[str] | None = None) -> int:
    """The console script ``mdlm-local``; returns the exit status."""
    return _cli.run(_prepare, argv)


if __name__ == "__main__":
    sys.exit(main())
