"""What differs between the processes of a job: who speaks, and which rows each one feeds.

jax runs one program on all processes. Batches are functions of the step, so each process makes the rows that its own
devices hold; nothing is sent between hosts, and `agree` is what notices hosts that read different files.
"""

import hashlib
from collections.abc import Mapping

import jax
import numpy as np
from jax.sharding import NamedSharding

from mdlm_jax.config import ConfigError
from mdlm_jax.models.sharding import place_rows


def speaks() -> bool:
    """One process prints, writes the metrics and names the files."""
    return jax.process_index() == 0


def local_rows(sharding: NamedSharding, batch_size: int) -> slice:
    """The rows of a global batch that the devices of this process hold, and those between them.

    Devices of one process need not be neighbours in the mesh: what lies between is made and not used.
    """
    indices = sharding.addressable_devices_indices_map((batch_size,)).values()
    held = [index[0].indices(batch_size) for index in indices if index]
    return slice(min(start for start, _, _ in held), max(stop for _, stop, _ in held))


def place(rows: Mapping[str, np.ndarray], sharding: NamedSharding, batch_size: int) -> dict[str, jax.Array]:
    """The global batch [batch_size, ...] from this process's `local_rows`."""
    return place_rows(rows, sharding, batch_size, local_rows(sharding, batch_size).start)


def barrier(name: str) -> None:
    """Waits for the other processes; on the main thread only, since it runs on the devices."""
    if jax.process_count() > 1:
        from jax.experimental import multihost_utils

        multihost_utils.sync_global_devices(name)


def agree(texts: Mapping[str, str]) -> None:
    """Every process calls this with the same names, before it trains.

    Raises:
      ConfigError: in every process, naming the first text that is not the same in all of them, and who differs.
    """
    if jax.process_count() == 1:
        return
    from jax.experimental import multihost_utils

    mine = [np.frombuffer(hashlib.sha256(text.encode()).digest(), np.uint8) for text in texts.values()]
    everyone = multihost_utils.process_allgather(np.stack(mine))  # [processes, texts, 32]
    for name, digests in zip(texts, np.swapaxes(everyone, 0, 1), strict=True):
        different = np.flatnonzero((digests != digests[0]).any(-1))
        if len(different):
            raise ConfigError(f"{name}: not the same in all processes: {', '.join(map(str, different))} of "
                              f"{len(digests)} differ from process 0; give every host the same files and the same "
                              "command")
