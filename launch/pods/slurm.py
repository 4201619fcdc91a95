"""SLURM: an sbatch script with one task a GPU (without GPUs: a node), started again when the nodes are taken back.

One task a GPU, since jax gives a process that it finds under SLURM a single GPU. A srun that gets SIGTERM kills its
step; so the script, which SLURM tells first, has scancel send the signal to the step's processes. srun does not take
the CPUs of a task over from sbatch (since SLURM 22.05), so the script hands them on.
"""

import re
import shlex

from mdlm_jax.config import ConfigError

from .. import _cli
from ._check import Place
from ._recipe import Action, at_least, check_command, check_name, environment

TOGETHER = False
_SBATCH = "sbatch."
FLAGS = (
    _cli.Flag("name", "NAME", "of the job. Required."),
    _cli.Flag("nodes", "N", "how many. Required.", int),
    _cli.Flag("gpus_per_node", "N", "GPUs of a node, one process each; unless given none, and one process a node", int),
    _cli.Flag("account", "NAME", "who pays; the cluster's default unless given"),
    _cli.Flag("partition", "NAME", "the cluster's default unless given"),
    _cli.Flag("qos", "NAME", "the cluster's default unless given"),
    _cli.Flag("time", "LIMIT", "as in 24:00:00 or 2-00:00:00; the cluster's default unless given"),
    _cli.Flag("cpus_per_task", "N", "CPUs of a process; unless given 8, without GPUs the node's", int),
    _cli.Flag("mem", "SIZE", "memory of a node, as in 480G; all that it has unless given"),
    _cli.Flag("grace", "SECONDS", "before the limit or a preemption, in which the run saves; 120 unless given", int),
    _cli.Flag("env", "NAME=VALUE,...", "variables for the command"),
    _cli.Flag(f"{_SBATCH}*", "VALUE", "any other of sbatch, in place of the script's own: --sbatch.constraint=h100, "
              "--sbatch.gres=gpu:8 (in place of --gpus-per-node), --sbatch.exclusive"),
)
_OURS = ("job-name", "ntasks-per-node", "ntasks", "signal", "requeue", "no-requeue", "open-mode", "array", "wrap")
_HAVE_A_FLAG = tuple(flag.name.replace("_", "-") for flag in FLAGS)

_SCRIPT = """\
#!/bin/bash
{directives}
set -u
trap 'scancel --signal=TERM "$SLURM_JOB_ID"' TERM  # to the processes of the step; srun itself would kill them
{variables}srun --kill-on-bad-exit=1 ${{SLURM_CPUS_PER_TASK:+--cpus-per-task=$SLURM_CPUS_PER_TASK}} {command} &
child=$!
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
    directives = _directives(flags, name)
    check_command(command)
    if command[0] in ("srun", "sbatch"):
        raise ConfigError(f"-- {command[0]}: the script calls srun itself; leave it out, and give flags of sbatch as "
                          "--sbatch.NAME=VALUE")
    variables = "".join(f"export {key}={shlex.quote(value)}\n"
                        for key, value in environment(flags.get("env", "")).items())
    lines = (f"#SBATCH --{key}={value}" if value else f"#SBATCH --{key}" for key, value in directives.items())
    script = _SCRIPT.format(directives="\n".join(lines), variables=variables,
                            command=shlex.join([*command, "--distributed=auto"]))
    return [Action(("sbatch",), script)]


def place(flags: dict) -> Place:
    """The nodes; they share the folder and the home of this machine, as on SLURM clusters they do."""
    return Place(flags["nodes"], gpus=flags.get("gpus_per_node") or None, shared=True)


def _directives(flags: dict, name: str) -> dict[str, str]:
    """Flag of sbatch -> value; "" for a switch."""
    if "nodes" not in flags:
        _cli.require(flags, "nodes", "16", "how many nodes")
    nodes, grace = at_least(flags, "nodes", 1), at_least(flags, "grace", 120)
    gpus, cpus = at_least(flags, "gpus_per_node", 0, 0), at_least(flags, "cpus_per_task", 8)
    if not re.fullmatch(r"(\d+-)?\d+(:\d\d){0,2}", flags.get("time", "1")):
        raise ConfigError(f"--time={flags['time']}: write minutes, HH:MM:SS or D-HH:MM:SS")
    if not re.fullmatch(r"\d+[KMGT]?", flags.get("mem", "0")):
        raise ConfigError(f"--mem={flags['mem']}: write megabytes, or a number with K, M, G or T, as in 480G")
    found = {"job-name": name, "nodes": nodes, "ntasks-per-node": gpus or 1}
    if gpus and f"{_SBATCH}gres" not in flags:
        found["gpus-per-node"] = gpus
    found |= {key: flags[key] for key in ("account", "partition", "qos", "time") if key in flags}
    if gpus or "cpus_per_task" in flags:
        found["cpus-per-task"] = cpus
    else:
        found["exclusive"] = ""
    found |= {"mem": flags.get("mem", "0"), "signal": f"B:TERM@{grace}", "requeue": "", "open-mode": "append",
              "output": f"{name}-%j.log"}
    others = _others(flags)
    if not gpus and any(key.startswith(("gres", "gpus")) for key in others):
        raise ConfigError("--gpus_per_node is missing: every GPU is a process; give it beside --sbatch.gres or "
                          "--sbatch.gpus, as in --gpus_per_node=8")
    for key, prefix in (("mem", "mem-per-"), ("cpus-per-task", "cpus-per-gpu")):
        if any(other.startswith(prefix) for other in others):
            found.pop(key, None)  # sbatch takes one of them
    found |= others
    for key, value in found.items():
        if re.search(r"[\s#]", str(value)):
            raise ConfigError(f"--{key}={value!r}: goes into a line #SBATCH; write it without spaces and #")
    return {key: str(value) for key, value in found.items()}


def _others(flags: dict) -> dict[str, str]:
    """What --sbatch.NAME=VALUE says."""
    found = {}
    for flag, value in flags.items():
        key = flag.removeprefix(_SBATCH)
        if key == flag:
            continue
        if key in _HAVE_A_FLAG:
            raise ConfigError(f"--{flag}={value}: write it as --{key.replace('-', '_')}, which is a flag of its own")
        if key in _OURS:
            raise ConfigError(f"--{flag}={value}: the script says this itself; leave it out")
        if not re.fullmatch(r"[a-z][a-z0-9-]*", key):
            raise ConfigError(f"--{flag}={value}: write a long name of sbatch, as in --sbatch.constraint=h100")
        found[key] = value
    return found
