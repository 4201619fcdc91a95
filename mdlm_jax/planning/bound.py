"""Seconds that each resource of a device is busy at its public peak, taken alone. Free of jax.

A step is no faster than the slowest of them; overlap, latency and efficiency are not modelled.
"""

from mdlm_jax.planning.chips import ALL, GPUS
from mdlm_jax.planning.topologies import Topology


def bound(topology: Topology, flops: float, model_flops: float, touched: float, interconnect: float,
          data_center: float) -> dict:
    """The ``bound`` of a plan.

    Args:
      flops: what a device computes in a step; model_flops: of the formula, for the share of the peak.
      touched: bytes of its memory that it must read or write.
      interconnect: seconds of traffic inside a slice (`speed`).
      data_center: bytes it sends to other slices.
    """
    chip = ALL[topology.generation]
    peak = chip.flops / chip.devices
    seconds = {"compute": flops / peak, "memory": touched / (chip.hbm_bandwidth / chip.devices),
               "interconnect": interconnect, "data_center": data_center / (chip.dcn / chip.devices)}
    slowest = max(seconds, key=lambda name: seconds[name])
    return {"seconds": seconds, "slowest": slowest, "step": seconds[slowest],
            "mfu": model_flops / peak / seconds[slowest]}


def speed(topology: Topology, group: int, inside: int = 1) -> float:
    """Bytes a second that a device of a ring of ``group`` devices sends, inside a slice.

    TPU: the axes of the torus that the group fills wholly, the last ones first. GPU: NVLink in a node; over nodes the
    network of all members that stand in one node, which send different parts, but no more than NVLink.

    Args:
      inside: neighbours in a node that belong to other groups, by mesh axes further in.
    """
    chip = ALL[topology.generation]
    if topology.generation not in GPUS:
        return chip.ring * _axes(topology, group)
    members = max(topology.shape[0] // inside, 1)
    return chip.ring if group <= members else min(chip.ring, members * chip.dcn)


def _axes(topology: Topology, group: int) -> int:
    """Axes of the torus that a group of so many devices fills wholly, the last ones first; one at least."""
    reach, axes = ALL[topology.generation].devices, 0
    for size in reversed(topology.shape):
        reach *= size
        axes += reach <= group and size > 1
    return max(axes, 1)
