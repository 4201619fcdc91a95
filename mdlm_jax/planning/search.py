"""The meshes that make sense for a topology, ranked by arithmetic. Free of jax."""

import dataclasses
from collections.abc import Iterator

from mdlm_jax.config import BATCH_AXES, MESH_AXES, RunConfig
from mdlm_jax.errors import ConfigError
from mdlm_jax.models.config import TransformerConfig
from mdlm_jax.planning.chips import ALL
from mdlm_jax.planning.estimate import estimate, network_of
from mdlm_jax.planning.topologies import Topology, mesh_text

_LARGEST_TENSOR = 16
_SUBLANES = 8  # rows of a TPU's tile


def search(config: RunConfig, topology: Topology) -> list[dict]:
    """`estimate.estimate` of every candidate, the best first: what fits, by its bound, then by the sum of seconds over
    the resources, then by memory; then what does not fit, by memory.

    Raises:
      ConfigError: no mesh can share the rows.
    """
    network = network_of(config)
    found = [estimate(one, topology, sizes, network) for one, sizes in candidates(config, topology)]
    if not found:
        raise ConfigError(f"train.batch_size={config.train.batch_size}: no mesh of {topology.devices} devices can "
                          f"share so many rows; make it a multiple of {topology.devices}")
    return sorted(found, key=_rank)


def candidates(config: RunConfig, topology: Topology) -> Iterator[tuple[RunConfig, dict[str, int]]]:
    """Every (config with mesh and microbatches, sizes of the axes) worth an estimate.

    replica takes what is left and spans the slices. fsdp divides d_model; tensor, at most 16 and inside a node of GPUs,
    divides the key/value heads and d_ff; expert divides the experts. Of TPUs the three together are a part of one axis
    of the torus or fill whole ones, so that they run over rings; fsdp is no whole slice of several axes, and leaves
    each device a multiple of 8 of d_model: libtpu sums unsharded gradients else (README). Microbatches are powers of
    two that divide the rows.
    """
    network, inner = network_of(config), topology.devices_per_slice
    rings = _divisors(inner, inner) if topology.gpu else _rings(topology)
    for tensor in _tensors(network, topology):
        for expert in _divisors(inner // tensor, network.moe.experts if network.moe else 1):
            for fsdp in _divisors(inner // tensor // expert, network.d_model):
                if _summed_whole(network, topology, fsdp) or tensor * expert * fsdp not in rings:
                    continue
                replica = topology.devices // (tensor * expert * fsdp)
                sizes = dict.fromkeys(MESH_AXES, 1) | {"replica": replica, "fsdp": fsdp, "expert": expert,
                                                       "tensor": tensor}
                yield from _accumulated(config, sizes)


def _summed_whole(network: TransformerConfig, topology: Topology, fsdp: int) -> bool:
    """Whether libtpu makes all-reduces of scattered gradients; found by compiling."""
    if topology.gpu or fsdp == 1:
        return False
    flat = fsdp == topology.devices_per_slice and sum(n > 1 for n in topology.shape) > 1
    return flat or network.d_model // fsdp % _SUBLANES > 0


def best(compiled: list[dict]) -> dict:
    """Of plans as `measure.plan` finds them, the one in the order of `search`; what does not fit by what it needs."""
    return min(compiled, key=lambda plan: _rank(plan) if plan["fits"] else (1, plan["needed"]))


def changed(config: RunConfig, found: dict) -> tuple[RunConfig, dict[str, int]]:
    """The run of an estimate, to be compiled."""
    sizes = dict.fromkeys(MESH_AXES, 1) | found["mesh"]
    return _with(config, sizes, found["microbatches"]), sizes


def _with(config: RunConfig, sizes: dict[str, int], microbatches: int) -> RunConfig:
    train = dataclasses.replace(config.train, mesh=mesh_text(sizes), microbatches=microbatches)
    return dataclasses.replace(config, train=train)


def _accumulated(config: RunConfig, sizes: dict[str, int]) -> Iterator[tuple[RunConfig, dict[str, int]]]:
    shards, microbatches = 1, 1
    for axis in BATCH_AXES:
        shards *= sizes[axis]
    while shards * microbatches <= config.train.batch_size:
        if config.train.batch_size % (shards * microbatches) == 0:
            yield _with(config, sizes, microbatches), sizes
        microbatches *= 2


def _tensors(network: TransformerConfig, topology: Topology) -> list[int]:
    width = network.d_ff if network.moe is None else network.moe.d_ff
    found = _divisors(topology.devices_per_slice, network.kv_heads)
    room = min(_LARGEST_TENSOR, topology.shape[0]) if topology.gpu else _LARGEST_TENSOR
    return [n for n in found if n <= room and width % n == 0]


def _rings(topology: Topology) -> list[int]:
    """Devices of a part of the last axis of the torus, of that axis, of the last two, ..."""
    reach = ALL[topology.generation].devices
    axes = [size for size in reversed(topology.shape) if size > 1] or [1]
    found = _divisors(reach * axes[0], reach * axes[0])
    for size in axes[1:]:
        found.append(found[-1] * size)
    return found


def _divisors(a: int, b: int) -> list[int]:
    """Common divisors."""
    return [n for n in range(1, min(a, b) + 1) if a % n == 0 and b % n == 0]


def _rank(found: dict) -> tuple:
    peak, bound = found["memory"]["peak"], found["bound"]
    if not found["fits"]:
        return (1, peak)
    return (0, bound["step"], sum(bound["seconds"].values()), peak)
