"""TPU VMs by gcloud: one ssh to all workers of a slice at once; every worker finds its place by itself."""

import math

from mdlm_jax.config import ConfigError
from mdlm_jax.planning import slices as slice_names
from mdlm_jax.planning import topologies

from .. import _cli
from ._check import Place
from ._recipe import Action, at_least, check_command, check_folder, check_name, environment, shell_line

TOGETHER = True
FLAGS = (
    _cli.Flag("name", "NAME", "of the TPU VM, or of the queued resource with --create. Required."),
    _cli.Flag("zone", "ZONE", "as in us-east5-a. Required."),
    _cli.Flag("project", "ID", "of the cloud; gcloud's own unless given"),
    _cli.Flag("num_slices", "N", "slices, named NAME-0 to NAME-(N-1) where there are several; 1 unless given", int),
    _cli.Flag("folder", "DIR", "on the workers, where the command runs; mdlm_jax unless given"),
    _cli.Flag("env", "NAME=VALUE,...", "variables for the command"),
    _cli.Flag("create", "", "ask for the machines as a queued resource instead, and run nothing", bool),
    _cli.Flag("accelerator", "TYPE", "as the cloud calls a slice: v5p-512 (TensorCores, two a chip; v4 too), "
              "v5litepod-256, v6e-256 (chips). Required with --create; else the command's mesh is checked against it"),
    _cli.Flag("version", "RUNTIME", "of --create: the runtime, for v5p v2-alpha-tpuv5"),
    _cli.Flag("spot", "", "of --create: machines that may be taken away", bool),
)
_RUNTIMES = {"v4": "tpu-ubuntu2204-base", "v5e": "v2-alpha-tpuv5-lite", "v5p": "v2-alpha-tpuv5",
             "v6e": "v2-alpha-tpuv6e"}  # for jax, docs.cloud.google.com/tpu/docs/runtimes


def actions(flags: dict, command: list[str]) -> list[Action]:
    """One ssh a slice; with --create one request."""
    name = check_name("name", _cli.require(flags, "name", "llada", "which TPU VM"))
    zone = _cli.require(flags, "zone", "us-east5-a", "where it stands")
    slices = at_least(flags, "num_slices", 1)
    place = [f"--zone={zone}", *([f"--project={flags['project']}"] if "project" in flags else [])]
    if flags.get("create"):
        return [_create(flags, name, place, slices, command)]
    _topology(flags)
    for flag in ("version", "spot"):
        if flag in flags:
            raise ConfigError(f"--{flag}={flags[flag]}: of --create; add it, or leave it out")
    check_command(command)
    variables = environment(flags.get("env", ""))
    names = [name] if slices == 1 else [f"{name}-{number}" for number in range(slices)]
    line = shell_line([*command, "--distributed=auto"], variables, check_folder(flags.get("folder", "mdlm_jax")))
    return [Action(("gcloud", "compute", "tpus", "tpu-vm", "ssh", one, *place, "--worker=all", f"--command={line}"))
            for one in names]


def place(flags: dict) -> Place:
    """The hosts of the slices, four chips each, or one of eight."""
    topology = _topology(flags)
    if not topology:
        return Place(None, tpu=True)
    chips, flat = math.prod(topology.shape), len(topology.shape) == 2
    hosts = topology.slices * (1 if flat and chips <= 8 else -(-chips // 4))
    return Place(hosts, topology, tpu=True)


def _topology(flags: dict) -> topologies.Topology | None:
    """Of --accelerator."""
    given, count = flags.get("accelerator"), flags.get("num_slices", 1)
    if not given:
        return None
    if flags.get("create") and ":" not in given and not slice_names.known(given):
        return None  # a kind that is not planned for is for the cloud to know
    try:
        found = topologies.parse(given, count)
    except ConfigError as error:
        raise ConfigError(str(error).replace("--topology=", "--accelerator=")) from None
    if found.gpu:
        raise ConfigError(f"--accelerator={given}: this recipe is for TPUs; use slurm or ssh for GPUs")
    return found


def _create(flags: dict, name: str, place: list[str], slices: int, command: list[str]) -> Action:
    if command:
        raise ConfigError(f"-- {command[0]}: --create runs no command; leave out one of them")
    for flag in ("folder", "env"):
        if flag in flags:
            raise ConfigError(f"--{flag}={flags[flag]}: --create runs no command; leave it out")
    given = _cli.require(flags, "accelerator", "v5litepod-256", "which machines")
    topology = _topology(flags)
    accelerator = slice_names.cloud_name(topology.generation, topology.shape) if topology else given
    if not accelerator:
        raise ConfigError(f"--accelerator={given}: the cloud has no name for that shape; write one of its names, as in "
                          "v5p-512")
    usual = _RUNTIMES.get(topology.generation, "") if topology else ""
    version = _cli.require(flags, "version", usual or "RUNTIME", "the runtime of the machines")
    if usual and version in set(_RUNTIMES.values()) - {usual}:
        raise ConfigError(f"--version={version}: is the runtime of another generation than {accelerator}; give "
                          f"--version={usual}")
    nodes = [f"--node-id={name}"] if slices == 1 else [f"--node-count={slices}", f"--node-prefix={name}"]
    return Action(("gcloud", "compute", "tpus", "queued-resources", "create", name, *place,
                   f"--accelerator-type={accelerator}", f"--runtime-version={version}", *nodes,
                   *(["--spot"] if flags.get("spot") else [])))
