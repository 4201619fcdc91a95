"""SLURM: an sbatch script with one task a GPU (without GPUs: a node), started again when the nodes are taken back.

One task a GPU, since jax gives a process that it finds under SLURM a single GPU. A srun that gets SIGTERM kills its
step; so the script, which SLURM tells first, has scancel send the signal to the step's processes.
"""

import re
import shlex

from mdlm_jax.config import ConfigError

from .. import _cli
from ._recipe import Action, at_least, check_command, check_name, environment

TOGETHER = False
FLAGS = (
    _cli.Flag("name", "NAME", "of the job. Required."),
    _cli.Flag("nodes", "N", "how many. Required.", int),
    _cli.Flag("gpus_per_node", "N", "GPUs of a node, one process each; unless given none, and one process a node", int),
    _cli.Flag("partition", "NAME", "the cluster's default unless given"),
    _cli.Flag("time", "LIMIT", "as in 24:00:00 or 2-00:00:00; the cluster's default unless given"),
    _cli.Flag("grace", "SECONDS", "before the limit or a preemption, in which the run saves; 120 unless given", int),
    _cli.Flag("env", "NAME=VALUE,...", "variables for the command"),
)

_SCRIPT = """\
#!/bin/bash
{directives}
set -u
{variables}srun --kill-on-bad-exit=1 {command} &
child=$!
trap 'scancel --signal=TERM "$SLURM_JOB_ID"' TERM  # to the processes of the step; srun itself would kill them
while :; do
  wait "$child"; status=$?
  kill -0 "$child" 2>/dev/null || break
done
if [ "$status" -eq 143 ]; then scontrol requeue "$SLURM_JOB_ID"; fi
exit "$status"
"""


def actions(flags: dict, command: list[str]) -> list[Action]:
    """sbatch, which reads the script from its standard input."""
    name = check_name("name", _cli.require(flags, "name", "llada", "the name of the job"))
    if "nodes" not in flags:
        _cli.require(flags, "nodes", "16", "how many nodes")
    nodes, grace = at_least(flags, "nodes", 1), at_least(flags, "grace", 120)
    gpus = at_least(flags, "gpus_per_node", 0, 0)
    if not re.fullmatch(r"(\d+-)?\d+(:\d\d){0,2}", flags.get("time", "1")):
        raise ConfigError(f"--time={flags['time']}: write minutes, HH:MM:SS or D-HH:MM:SS")
    check_command(command)
    directives = [f"--job-name={name}", f"--nodes={nodes}", f"--ntasks-per-node={gpus or 1}"]
    directives += [f"--gpus-per-node={gpus}"] if gpus else []
    directives += [f"--{flag}={flags[flag]}" for flag in ("partition", "time") if flag in flags]
    directives += [f"--signal=B:TERM@{grace}", "--requeue", "--open-mode=append", f"--output={name}-%j.log"]
    variables = "".join(f"export {key}={shlex.quote(value)}\n"
                        for key, value in environment(flags.get("env", "")).items())
    script = _SCRIPT.format(directives="\n".join(f"#SBATCH {line}" for line in directives), variables=variables,
                            command=shlex.join([*command, "--distributed=auto"]))
    return [Action(("sbatch",), script)]
