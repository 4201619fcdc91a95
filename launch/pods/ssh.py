"""A list of machines by ssh: process I of N on the I-th, meeting at the first."""

from mdlm_jax.config import ConfigError

from .. import _cli
from ._check import Place
from ._recipe import Action, at_least, check_command, check_folder, environment, shell_line

TOGETHER = True
FLAGS = (
    _cli.Flag("hosts", "A,B,...", "as ssh takes them, user@host or a name of its config; the first is process 0. "
              "Required."),
    _cli.Flag("address", "HOST", "of the first as the others reach it; its name without user unless given"),
    _cli.Flag("port", "PORT", "where the processes meet; 8476 unless given", int),
    _cli.Flag("folder", "DIR", "on the machines, where the command runs; mdlm_jax unless given"),
    _cli.Flag("env", "NAME=VALUE,...", "variables for the command"),
)


def actions(flags: dict, command: list[str]) -> list[Action]:
    """One ssh a machine. ``-tt`` gives each a terminal, so that stopping ssh hangs up on the command too."""
    hosts = _cli.require(flags, "hosts", "node0,node1", "which machines").split(",")
    for host in hosts:
        if not host or host.startswith("-") or any(c.isspace() for c in host):
            raise ConfigError(f"--hosts={flags['hosts']}: {host!r} is no machine; write names between commas")
    if len(set(hosts)) != len(hosts):
        raise ConfigError(f"--hosts={flags['hosts']}: a machine stands there twice; name each once")
    port = at_least(flags, "port", 8476)
    if port > 65535:
        raise ConfigError(f"--port={port}: must be at most 65535")
    check_command(command)
    address = flags.get("address", hosts[0].rpartition("@")[2])
    variables, folder = environment(flags.get("env", "")), check_folder(flags.get("folder", "mdlm_jax"))
    return [_one(host, command, f"{address}:{port},{len(hosts)},{number}", variables, folder)
            for number, host in enumerate(hosts)]


def place(flags: dict) -> Place:
    """The machines; what devices they have is not said."""
    return Place(len(flags["hosts"].split(",")))


def _one(host: str, command: list[str], place: str, variables: dict[str, str], folder: str) -> Action:
    line = shell_line([*command, f"--distributed={place}"], variables, folder)
    return Action(("ssh", "-tt", "-o", "BatchMode=yes", "-o", "ServerAliveInterval=30", host, line))
