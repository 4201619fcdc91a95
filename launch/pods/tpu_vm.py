"""TPU VMs by gcloud: one ssh to all workers of a slice at once; every worker finds its place by itself."""

from mdlm_jax.config import ConfigError

from .. import _cli
from ._recipe import Action, at_least, check_command, check_name, environment, shell_line

TOGETHER = True
FLAGS = (
    _cli.Flag("name", "NAME", "of the TPU VM, or of the queued resource with --create. Required."),
    _cli.Flag("zone", "ZONE", "as in us-east5-a. Required."),
    _cli.Flag("project", "ID", "of the cloud; gcloud's own unless given"),
    _cli.Flag("num_slices", "N", "slices, named NAME-0 to NAME-(N-1) where there are several; 1 unless given", int),
    _cli.Flag("folder", "DIR", "on the workers, where the command runs; mdlm_jax unless given"),
    _cli.Flag("env", "NAME=VALUE,...", "variables for the command"),
    _cli.Flag("create", "", "ask for the machines as a queued resource instead, and run nothing", bool),
    _cli.Flag("accelerator", "TYPE", "of --create, as in v5litepod-256"),
    _cli.Flag("version", "RUNTIME", "of --create: the runtime, as in v2-alpha-tpuv5-lite"),
    _cli.Flag("spot", "", "of --create: machines that may be taken away", bool),
)


def actions(flags: dict, command: list[str]) -> list[Action]:
    """One ssh a slice; with --create one request."""
    name = check_name("name", _cli.require(flags, "name", "llada", "which TPU VM"))
    zone = _cli.require(flags, "zone", "us-east5-a", "where it stands")
    slices = at_least(flags, "num_slices", 1)
    place = [f"--zone={zone}", *([f"--project={flags['project']}"] if "project" in flags else [])]
    if flags.get("create"):
        return [_create(flags, name, place, slices, command)]
    for flag in ("accelerator", "version", "spot"):
        if flag in flags:
            raise ConfigError(f"--{flag}={flags[flag]}: of --create; add it, or leave it out")
    check_command(command)
    variables = environment(flags.get("env", ""))
    names = [name] if slices == 1 else [f"{name}-{number}" for number in range(slices)]
    line = shell_line([*command, "--distributed=auto"], variables, flags.get("folder", "mdlm_jax"))
    return [Action(("gcloud", "compute", "tpus", "tpu-vm", "ssh", one, *place, "--worker=all", f"--command={line}"))
            for one in names]


def _create(flags: dict, name: str, place: list[str], slices: int, command: list[str]) -> Action:
    if command:
        raise ConfigError(f"-- {command[0]}: --create runs no command; leave out one of them")
    for flag in ("folder", "env"):
        if flag in flags:
            raise ConfigError(f"--{flag}={flags[flag]}: --create runs no command; leave it out")
    accelerator = _cli.require(flags, "accelerator", "v5litepod-256", "which machines")
    version = _cli.require(flags, "version", "v2-alpha-tpuv5-lite", "the runtime of the machines")
    nodes = [f"--node-id={name}"] if slices == 1 else [f"--node-count={slices}", f"--node-prefix={name}"]
    return Action(("gcloud", "compute", "tpus", "queued-resources", "create", name, *place,
                   f"--accelerator-type={accelerator}", f"--runtime-version={version}", *nodes,
                   *(["--spot"] if flags.get("spot") else [])))
