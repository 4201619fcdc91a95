"""Joining the other processes of a job, before jax starts its devices. Imports jax only to join."""

import contextlib
import os
import sys
import traceback

from mdlm_jax.config import ConfigError
from mdlm_jax.errors import Preempted

from . import _cli

FLAG = _cli.Flag("distributed", "HOW", "auto: one of several processes, found out from the cluster (TPU pod slices, "
                 "SLURM, GKE); HOST:PORT,N,I: process I of N, with process 0 at HOST:PORT")
_FAMILY = "MDLM_JAX_PROCESS"  # HOST:PORT,N,I for the children of launch.local
_HINTS = {"TPU_WORKER_HOSTNAMES": ",", "SLURM_NTASKS": None, "MEGASCALE_NUM_SLICES": None}
_HEARTBEAT = 60  # seconds without a sign of life, after which a process counts as dead and the job ends


def environment(coordinator: str, processes: int, process: int) -> dict[str, str]:
    """What tells a child of launch.local its place."""
    return {_FAMILY: f"{coordinator},{processes},{process}"}


def asked(flags: dict, work: str) -> str | None:
    """The flag, or what launch.local says; None: a job of one process. ``work``: what it does, for the message.

    Raises:
      ConfigError: neither, though the cluster says that there are several.
    """
    how = flags.get("distributed") or os.environ.get(_FAMILY)
    if how is None and (hint := _several()):
        raise ConfigError(f"{hint}: this is one of several processes; add --distributed=auto on all of them, or "
                          f"unset it to {work} alone")
    if how not in (None, "auto"):
        parse(how)
    return how


def parse(how: str) -> tuple[str, int, int]:
    """(address of process 0, number of processes, number of this one) of ``HOST:PORT,N,I``."""
    address, *numbers = how.split(",")
    host, _, port = address.rpartition(":")
    if not host or not port.isdigit() or len(numbers) != 2 or not all(n.isdigit() for n in numbers):
        raise ConfigError(f"--distributed={how}: write auto or HOST:PORT,N,I, as in 10.0.0.1:8476,4,0")
    count, number = map(int, numbers)
    if not 0 <= number < count:
        raise ConfigError(f"--distributed={how}: process {number} of {count}; they are numbered from 0")
    return address, count, number


def join(how: str | None) -> None:
    """Joins the job. All but process 0 print nothing from here on but their errors."""
    if how is None:
        return
    import jax

    if how == "auto":
        _join_cluster()
    else:
        address, count, number = parse(how)
        jax.distributed.initialize(address, count, number, cluster_detection_method="deactivate",
                                   heartbeat_timeout_seconds=_HEARTBEAT)
    if jax.process_index():
        silence = os.open(os.devnull, os.O_WRONLY)
        sys.stdout.flush()
        os.dup2(silence, 1)  # what C++ prints too


def _join_cluster() -> None:
    import jax

    try:
        jax.distributed.initialize(heartbeat_timeout_seconds=_HEARTBEAT)
    except ValueError as error:  # something that the environment should have said
        raise ConfigError(f"--distributed=auto: no cluster is found here ({error}); leave it out to run alone, or say "
                          "HOST:PORT,N,I, as in 10.0.0.1:8476,4,0") from None


def place(how: str | None) -> tuple[int, int]:
    """Number of this process and how many there are, for work that they share without a word to each other.

    Only where the cluster alone knows it does this join the job.
    """
    if how is None:
        return 0, 1
    if how != "auto":
        _, count, number = parse(how)
        return number, count
    join(how)
    import jax

    return jax.process_index(), jax.process_count()


def part() -> None:
    """Waits for the other processes of a job that was joined; leaving earlier would end it for them."""
    from mdlm_jax.training import hosts

    hosts.barrier("part")


@contextlib.contextmanager
def leaving_at_once():
    """In a job of several processes an error ends this one on the spot: an orderly exit would wait for the others.

    They cannot go on without this process, and whoever started it starts all again, but for a ConfigError.
    """
    import jax

    try:
        yield
    except Preempted:  # every process meets it, and at the same place
        raise
    except BaseException as error:
        if jax.process_count() == 1:
            raise
        status = 1
        if isinstance(error, ConfigError):  # of a shard that only this process reads, say
            status = _cli.complain(error)
        else:
            traceback.print_exc()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def _several() -> str | None:
    for name, separator in _HINTS.items():
        value = os.environ.get(name, "")
        if separator and separator in value or not separator and value.isdigit() and int(value) > 1:
            return f"{name}={value}"
    return None
