"""A plan: the train step compiled for a topology, and what its text says it costs on one device."""

import math
import re
import time

import jax

from mdlm_jax.config import RunConfig
from mdlm_jax.models import api, flops
from mdlm_jax.planning import collectives, hlo, minimum, step, topologies
from mdlm_jax.planning.chips import CHIPS
from mdlm_jax.planning.topologies import Topology
from mdlm_jax.training.objectives import Objective

_OVERFLOW = re.compile(r"\(?([\d.]+)G\)? exceeds available HBM \(?([\d.]+)G\)?|"
                       r"[Uu]sed ([\d.]+)G of ([\d.]+)G hbm")
_PRODUCTS = {"fwd": 2, "dkv": 4, "dq": 3}  # matrix products of scores or with scores in each splash kernel


def plan(config: RunConfig, topology: Topology, sizes: dict[str, int]) -> dict:
    """Compiles the step and measures it; a nested dict of plain numbers, all of one device and one step.

    Keys: topology, devices, mesh, parameters, rows, notes, seconds, fits; and where it fits memory, flops, traffic,
    largest, bound. Where it does not: needed, available (bytes).

    Raises:
      ConfigError: the configuration cannot be split as asked.
      jax.errors.JaxRuntimeError: the compiler fails for another reason than memory.
    """
    mesh = topologies.make_mesh(topology, sizes)
    objective, notes = step.objective_of(config, mesh)
    found = {"topology": topology.name, "slices": topology.slices, "devices": topology.devices,
             "mesh": {axis: size for axis, size in sizes.items() if size > 1},
             "parameters": api.num_parameters(objective.network), "rows": config.train.batch_size,
             "length": config.data.length, "remat": config.model.remat, "backend": config.model.backend, "notes": notes}
    begin = time.monotonic()
    lowered = step.lower(config, objective, mesh)
    try:
        compiled = lowered.compile()
    except jax.errors.JaxRuntimeError as error:
        return found | _overflow(error)
    program = hlo.parse(compiled.as_text())
    found |= {"fits": True, "seconds": time.monotonic() - begin, "memory": _memory(compiled)}
    found["flops"] = _flops(config, objective, program, topology, sizes)
    found |= _traffic(config, objective, program, mesh, sizes)
    found["bound"] = _bound(found, topology)
    return found


def _overflow(error: Exception) -> dict:
    text = str(error)
    numbers = _OVERFLOW.search(text)
    if "RESOURCE_EXHAUSTED" not in text or not numbers:
        raise error
    needed, available = (float(n) * 2**30 for n in numbers.groups() if n)
    return {"fits": False, "needed": needed, "available": available}


def _memory(compiled) -> dict:
    stats = compiled.memory_analysis()
    return {
        "arguments": stats.argument_size_in_bytes,
        "outputs": stats.output_size_in_bytes - stats.alias_size_in_bytes,
        "temporaries": stats.temp_size_in_bytes,
        "program": stats.generated_code_size_in_bytes,
        "peak": stats.peak_memory_in_bytes,
        "host": stats.host_temp_size_in_bytes,
    }


def _flops(config: RunConfig, objective: Objective, program, topology: Topology, sizes: dict) -> dict:
    """compiled: matrix products outside kernels; kernels: theirs, by count of runs; formula: model FLOPs without, and
    with, what runs in kernels."""
    network, rows, length = objective.network, config.train.batch_size, config.data.length
    compiled = sum(hlo.matmuls(program).values())
    attention = flops.attention_flops(network, rows * length, length) / network.layers / 2  # one product, one layer
    runs = hlo.kernels(program)
    products = sum(count * next((n for key, n in _PRODUCTS.items() if f"_{key}_" in name), 0)
                   for name, count in runs.items() if "splash" in name)
    whole = objective.train_flops(rows, length) / topology.devices
    in_kernels = 3 * 2 * network.layers * attention / topology.devices if products else 0.0
    return {"compiled": compiled, "kernels": products * attention / topology.devices,
            "formula": whole - in_kernels, "formula_with_kernels": whole, "ratio": (whole - in_kernels) / compiled}


def _traffic(config: RunConfig, objective: Objective, program, mesh, sizes: dict) -> dict:
    found = collectives.find(program)
    shapes = jax.tree.map(lambda leaf, layout: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=layout),
                          api.abstract(objective.network), api.shardings(objective.network, mesh))
    least = minimum.traffic(shapes, config.model.dtype, sizes, config.train.microbatches)
    totals = collectives.totals(found)
    travelled = sum(total["wire"] for kind, total in totals.items() if kind != "cross-slice")
    needed = sum(minimum.wire(kind, size, sizes) for kind, size in least.items())
    largest = [{"kind": c.kind, "bytes": c.bytes, "times": c.times, "group": c.group, "shape": c.shape.split("{")[0],
                "where": c.where} for c in found[:12]]
    by_group: dict[int, float] = {}
    for one in found:
        if one.kind != "cross-slice":
            by_group[one.group] = by_group.get(one.group, 0.0) + one.wire
    return {"traffic": {"totals": totals, "minimum": least, "wire": travelled, "minimum_wire": needed,
                        "wire_by_group": by_group}, "largest": largest}


def _bound(found: dict, topology: Topology) -> dict:
    """Seconds each resource is busy at its public peak, taken alone; a step is no faster than the slowest of them."""
    chip = CHIPS[topology.generation]
    peak = chip.flops / chip.devices
    memory, traffic = found["memory"], found["traffic"]
    ici = sum(wire / (chip.ring * _axes(topology, group)) for group, wire in traffic["wire_by_group"].items())
    seconds = {
        "compute": (found["flops"]["compiled"] + found["flops"]["kernels"]) / peak,
        "memory": (memory["arguments"] + memory["outputs"]) * 2 / (chip.hbm_bandwidth / chip.devices),
        "interconnect": ici,
        "data_center": traffic["totals"].get("cross-slice", {"bytes": 0.0})["bytes"] / (chip.dcn / chip.devices),
    }
    slowest = max(seconds, key=seconds.get)
    return {"seconds": seconds, "slowest": slowest, "step": seconds[slowest],
            "mfu": found["flops"]["formula_with_kernels"] / peak / seconds[slowest]}


def _axes(topology: Topology, group: int) -> int:
    """Axes of the torus that a group of so many devices spans, the last ones first."""
    reach, axes = 1, 0
    for size in reversed(topology.shape):
        if reach >= group and axes:
            break
        reach, axes = reach * size, axes + 1
    return max(axes, 1) if math.prod(topology.shape) > 1 else 1
