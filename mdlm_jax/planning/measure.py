"""A plan: a train or decoding step compiled for a topology, and what its text says it costs on one device."""

import re
import time
from collections.abc import Callable

import jax

from mdlm_jax.config import RunConfig
from mdlm_jax.models import api
from mdlm_jax.models import flops as formulas
from mdlm_jax.models.config import TransformerConfig
from mdlm_jax.planning import bound as bounds
from mdlm_jax.planning import collectives, decode, hlo, kernels, minimum, step, topologies
from mdlm_jax.planning.decoding import Decoding
from mdlm_jax.planning.topologies import Topology
from mdlm_jax.planning.work import work
from mdlm_jax.training.build import layout_notes

_OVERFLOW = re.compile(r"\(?([\d.]+)G\)? exceeds available HBM \(?([\d.]+)G\)?|"
                       r"[Uu]sed ([\d.]+)G of ([\d.]+)G hbm")


def plan(config: RunConfig, topology: Topology, sizes: dict[str, int]) -> dict:
    """Compiles the train step and measures it; a nested dict of plain numbers, all of one device and one step.

    Keys: step, topology, slices, devices, mesh, parameters, rows, length, remat, microbatches, backend, notes, fits;
    and where it fits seconds, memory, flops, traffic, largest, bound. Where it does not: needed, available (bytes).

    Raises:
      ConfigError: the configuration cannot be split as asked.
      jax.errors.JaxRuntimeError: the compiler fails for another reason than memory.
    """
    mesh = topologies.make_mesh(topology, sizes)
    objective, notes = step.objective_of(config, mesh)
    notes += layout_notes(objective.network, mesh)
    found = _heading("train", config, topology, sizes, objective.network)
    found |= {"rows": config.train.batch_size, "length": config.data.length, "remat": config.model.remat,
              "microbatches": config.train.microbatches, "notes": notes}
    compiled, outcome = _compile(lambda: step.lower(config, objective, mesh))
    found |= outcome
    if compiled is None:
        return found
    program = hlo.parse(compiled.as_text() or "")
    shapes = jax.tree.map(lambda leaf, layout: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=layout),
                          api.abstract(objective.network), api.shardings(objective.network, mesh))
    least = minimum.traffic(shapes, config.model.dtype, sizes, config.train.microbatches)
    done = work(config, sizes)
    tokens = config.train.batch_size * config.data.length * done.runs
    found["flops"] = _flops(objective.network, program, topology.devices, tokens, done.seen, 3,
                            objective.train_flops(config.train.batch_size, config.data.length),
                            config.train.microbatches)
    found |= _traffic(program, least, sizes, notes)
    return found | _bound(found, topology, 2)


def decoding_plan(config: RunConfig, topology: Topology, sizes: dict[str, int], decoding: Decoding) -> dict:
    """The same of one decoding step (`decode.step`); ``rows``, ``slots`` and ``window`` say what it works on."""
    mesh = topologies.make_mesh(topology, sizes)
    network, rows, window = step.network_of(config), decoding.rows, decoding.window
    found = _heading("decode", config, topology, sizes, network)
    found |= {"rows": rows, "slots": decoding.slots, "window": window, "notes": []}
    compiled, outcome = _compile(lambda: decode.lower(network, decoding, mesh))
    found |= outcome
    if compiled is None:
        return found
    program = hlo.parse(compiled.as_text() or "")
    whole: float = formulas.forward_flops(network, rows * window, window, rows * window)
    whole += formulas.attention_flops(network, rows * window, decoding.slots - window)
    found["flops"] = _flops(network, program, topology.devices, rows * window, decoding.slots, 1, whole)
    found |= _traffic(program, {}, sizes, [])
    return found | _bound(found, topology, 1)


def _heading(kind: str, config: RunConfig, topology: Topology, sizes: dict, network: TransformerConfig) -> dict:
    return {"step": kind, "topology": topology.name, "slices": topology.slices, "devices": topology.devices,
            "mesh": {axis: size for axis, size in sizes.items() if size > 1},
            "parameters": api.num_parameters(network), "backend": config.model.backend}


def _compile(lower: Callable[[], jax.stages.Lowered]) -> tuple[jax.stages.Compiled | None, dict]:
    begin = time.monotonic()
    try:
        compiled = lower().compile()
    except jax.errors.JaxRuntimeError as error:
        return None, _overflow(error)
    return compiled, {"fits": True, "seconds": time.monotonic() - begin, "memory": _memory(compiled)}


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


def _flops(network: TransformerConfig, program, devices: int, tokens: int, seen: int, passes: int, whole: float,
           microbatches: int = 1) -> dict:
    """compiled: matrix products outside kernels; kernels: theirs, by count of runs; formula: model FLOPs without, and
    with, what runs in kernels; ``tokens`` through the layers in a step, ``passes`` forward passes in the formula."""
    compiled, runs = sum(hlo.matmuls(program).values()), hlo.kernels(program)
    hidden = passes * kernels.in_formula(network, runs, tokens, seen) / devices
    formula = whole / devices - hidden
    computed = kernels.computed(network, runs, tokens // microbatches, seen)  # each run has one's tokens
    return {"compiled": compiled, "kernels": computed / devices,
            "formula": formula, "formula_with_kernels": whole / devices, "ratio": formula / compiled}


def _traffic(program, least: dict[str, float], sizes: dict[str, int], notes: list[str]) -> dict:
    found = collectives.find(program)
    totals = collectives.totals(found)
    travelled = sum(total["wire"] for kind, total in totals.items() if kind != "cross-slice")
    needed = sum(minimum.wire(kind, size, sizes) for kind, size in least.items())
    largest = [{"kind": c.kind, "bytes": c.bytes, "times": c.times, "group": c.group, "shape": c.shape.split("{")[0],
                "where": c.where} for c in found[:12]]
    by_group: dict[int, float] = {}
    for one in found:
        if one.kind != "cross-slice":
            by_group[one.group] = by_group.get(one.group, 0.0) + one.wire
    return {"notes": notes + collectives.notes(found),
            "traffic": {"totals": totals, "minimum": least, "wire": travelled, "minimum_wire": needed,
                        "wire_by_group": by_group}, "largest": largest}


def _bound(found: dict, topology: Topology, touched: int) -> dict:
    """`bound.bound` of what was compiled. Memory: arguments and outputs, ``touched`` times (a train step reads its
    state and writes it)."""
    memory, traffic, flops = found["memory"], found["traffic"], found["flops"]
    ici = sum(wire / bounds.speed(topology, group) for group, wire in traffic["wire_by_group"].items())
    across = traffic["totals"].get("cross-slice", {"bytes": 0.0})["bytes"]
    return {"bound": bounds.bound(topology, flops["compiled"] + flops["kernels"], flops["formula_with_kernels"],
                                  (memory["arguments"] + memory["outputs"]) * touched, ici, across)}
