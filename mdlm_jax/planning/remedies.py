"""What would make a run fit where no mesh does: each change tried by arithmetic. Free of jax."""

import dataclasses
from collections.abc import Iterator

from mdlm_jax.config import RunConfig
from mdlm_jax.errors import ConfigError
from mdlm_jax.planning import slices
from mdlm_jax.planning.search import search
from mdlm_jax.planning.topologies import Topology

_DOUBLINGS = 10


def remedies(config: RunConfig, topology: Topology) -> list[tuple[str, dict]]:
    """(the change, in words; the best plan with it) of what fits: recomputing more, fewer rows, more devices.

    Devices and rows are doubled and halved until something fits; devices without more recomputing first.
    """
    full = _with(config, "model", remat="full")
    cheap = full if config.model.remat not in ("full", "offload") else None
    tried = [_first([("model.remat=full", full, topology)])] if cheap else []
    tried.append(_first(_fewer_rows(config, topology)))
    more = _first((f"{_name(larger)}", config, larger) for larger in _larger(topology))
    if more is None and cheap:
        more = _first((f"{_name(larger)} with model.remat=full", full, larger) for larger in _larger(topology))
    return [found for found in (*tried, more) if found]


def _first(changes) -> tuple[str, dict] | None:
    for words, config, topology in changes:
        try:
            best = search(config, topology)[0]
        except ConfigError:  # no mesh shares the rows
            continue
        if best["fits"]:
            return words, best
    return None


def _fewer_rows(config: RunConfig, topology: Topology) -> Iterator[tuple[str, RunConfig, Topology]]:
    rows = config.train.batch_size
    for _ in range(_DOUBLINGS):
        if rows % 2:
            return
        rows //= 2
        yield f"train.batch_size={rows}", _with(config, "train", batch_size=rows, microbatches=1), topology


def _larger(topology: Topology) -> Iterator[Topology]:
    """Twice as many devices, and so on: more nodes of GPUs, a larger slice of TPUs."""
    if topology.gpu:
        node, nodes = topology.shape
        for power in range(1, _DOUBLINGS):
            yield dataclasses.replace(topology, shape=(node, nodes << power))
        return
    known = [dataclasses.replace(topology, shape=shape) for _, shape in slices.sizes(topology.generation)]
    for one in known:
        times, rest = divmod(one.devices, topology.devices)
        if times > 1 and not rest and times & (times - 1) == 0:
            yield one


def _name(topology: Topology) -> str:
    count = f"{topology.slices} x " if topology.slices > 1 else ""
    cloud = slices.cloud_name(topology.generation, topology.shape) if not topology.gpu else None
    return f"{count}{topology.name}, {topology.devices} devices" + (f" ({cloud})" if cloud else "")


def _with(config: RunConfig, section: str, **fields) -> RunConfig:
    return dataclasses.replace(config, **{section: dataclasses.replace(getattr(config, section), **fields)})
