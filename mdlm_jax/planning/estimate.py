"""A train step by arithmetic: memory, least traffic and the bound of a mesh in less than a millisecond, no compiler.

State, batch and traffic of weights are exact (a test compares them with compiled steps). The rest of the memory is what
a step keeps by design: gradients, what each layer saves for the backward pass (`models.remat`), and the larger of the
head's and one layer's working set. docs/plans.md compares it with compiled peaks. Free of jax.
"""

import fnmatch
import math

from mdlm_jax.config import BATCH_AXES, MESH_AXES, RunConfig
from mdlm_jax.config.objectives import rows_per_device
from mdlm_jax.errors import ConfigError
from mdlm_jax.models import flops
from mdlm_jax.models.config import TransformerConfig
from mdlm_jax.models.shapes import parameter_count
from mdlm_jax.planning import layout, minimum
from mdlm_jax.planning.bound import bound, speed
from mdlm_jax.planning.chips import ALL, backend_there
from mdlm_jax.planning.topologies import Topology
from mdlm_jax.planning.work import work

USABLE = 0.96  # of the chip's memory; libtpu says 15.75 of 16 GiB on v5e, 30.75 of 32 on v4
_FLOAT = 4  # bytes of a weight, a moment, a gradient
_BATCH = 3 * 4 + 2  # bytes of a token: `step.BATCH`
_MUON = ("query", "key", "value", "out", "gate", "up", "down", "shared_gate", "shared_up", "shared_down")


def network_of(config: RunConfig) -> TransformerConfig:
    """The network with as many ids as the model has rows; the tokenizer is not read."""
    if not config.model.vocab_size:
        raise ConfigError("model.vocab_size=0: a plan reads no tokenizer; set model.vocab_size")
    return config.model.transformer(config.model.vocab_size)


def estimate(config: RunConfig, topology: Topology, sizes: dict[str, int],
             network: TransformerConfig | None = None) -> dict:
    """A nested dict of plain numbers, all of one device and one step, with the keys of `measure.plan` where they mean
    the same; ``arithmetic`` is True, ``fits`` compares ``memory.peak`` with ``available``, `USABLE` of the chip.

    Raises:
      ConfigError: the mesh cannot split the rows; no vocabulary.
    """
    network, train = network or network_of(config), config.train
    check_rows(config, sizes)
    memory = memory_of(config, network, sizes)
    available = USABLE * ALL[topology.generation].hbm / ALL[topology.generation].devices
    done = flops_of(config, network, sizes)
    least = minimum.of_leaves(layout.splits(network, sizes).values(), width_of(network), sizes, train.microbatches)
    wire, across = wire_of(config, network, sizes, least, topology.slices)
    interconnect = sum(size / speed(topology, sizes[axis], _inside(sizes, axis)) for axis, size in wire.items())
    return {
        "step": "train", "arithmetic": True, "topology": topology.name, "slices": topology.slices,
        "devices": topology.devices, "mesh": {axis: size for axis, size in sizes.items() if size > 1},
        "parameters": parameter_count(network), "backend": config.model.backend, "rows": train.batch_size,
        "length": config.data.length, "remat": config.model.remat, "microbatches": train.microbatches,
        "notes": _notes(config, topology),
        "memory": memory, "available": available, "fits": memory["peak"] <= available, "flops": done,
        "traffic": {"minimum": least, "wire_by_axis": wire, "cross_slice": across},
        "bound": bound(topology, done["computed"], done["formula_with_kernels"], 2 * memory["state"], interconnect,
                       across),
    }


def _notes(config: RunConfig, topology: Topology) -> list[str]:
    backend = config.model.backend
    right = backend_there(topology.name, backend)
    return [] if right == backend else [f"model.backend={backend} does not run on {topology.generation}; give the run "
                                        f"model.backend={right}"]


def check_rows(config: RunConfig, sizes: dict[str, int]) -> None:
    """ConfigError where the devices cannot share a microbatch evenly; an open axis (-1) may have any size."""
    rows_per_device(config.train, _shards({axis: max(size, 1) for axis, size in sizes.items()}))


def memory_of(config: RunConfig, network: TransformerConfig, sizes: dict[str, int]) -> dict[str, float]:
    """kind -> bytes on one device. ``state`` (weights, moments, average) and ``batch`` are arguments of the step."""
    train, held = config.train, layout.local(network, sizes)
    frozen = {path for path in held for pattern in train.freeze.split(",")
              if pattern.strip() and fnmatch.fnmatchcase(f"network/{path}", pattern.strip())}
    moving = {path: size for path, size in held.items() if path not in frozen}
    copies = sum(held.values()) * (2 if train.ema_decay else 1)
    moments = sum(size * _moments(train.optimizer, path) for path, size in moving.items())
    tokens, runs = _tokens(config, sizes), work(config, sizes).runs
    found = {
        "state": _FLOAT * (copies + moments),
        "batch": _BATCH * tokens // runs * train.microbatches,
        "gradients": _FLOAT * sum(moving.values()) * (2 if train.microbatches > 1 else 1),
        "saved": network.layers * tokens * saved_of_token(network, sizes["tensor"]),
        "working": max(_head(config, network, sizes), _layer(network, sizes, tokens)),
    }
    return found | {"peak": sum(found.values())}


def saved_of_token(network: TransformerConfig, tensor: int = 1) -> float:
    """Bytes that one layer keeps of one token for the backward pass, by `TransformerConfig.remat`.

    Without remat the compiler decides: the activations it is likely to keep, some in float32; rough.
    """
    c, width = network, width_of(network)
    kept: float = width * c.d_model
    if c.remat in ("full", "offload"):
        return kept if c.remat == "full" else 0.0
    heads, keys = c.heads * c.head_dim / tensor, c.kv_heads * c.head_dim / tensor
    kept += width * heads + _FLOAT * c.heads / tensor
    if c.remat == "context":
        return kept
    gated = 2 if c.activation == "swiglu" else 1
    hidden = _hidden(c) / tensor
    kept += width * (heads + 2 * keys + 2 * c.d_model + gated * hidden)
    if c.remat == "matmuls":
        return kept
    return kept + width * (hidden + heads + keys) + _FLOAT * (2 * c.d_model + gated * hidden)


def flops_of(config: RunConfig, network: TransformerConfig, sizes: dict[str, int]) -> dict[str, float]:
    """``formula_with_kernels``: model FLOPs of a device and step; ``computed``: with what is computed again."""
    done = work(config, sizes)
    tokens = config.train.batch_size * config.data.length * done.runs
    model = flops.train_flops(network, tokens, done.seen, done.head)
    again = 0.0
    if network.remat in ("full", "offload"):
        again = flops.forward_flops(network, tokens, done.seen, 0)
    if config.model.backend != "xla":  # fused attention makes its scores again: 7 products backward, not 4
        again += 1.5 * flops.attention_flops(network, tokens, done.seen)
    devices = math.prod(sizes.values())
    return {"formula_with_kernels": model / devices, "computed": (model + again) / devices}


def wire_of(config: RunConfig, network: TransformerConfig, sizes: dict[str, int], least: dict[str, float],
            slices: int = 1) -> tuple[dict[str, float], float]:
    """mesh axis -> bytes a device sends in rings inside its slice; and the bytes it sends to other slices.

    fsdp and replica: `minimum`, a sum over replicas first inside the slice, then each part of it between slices.
    tensor: two sums of activations a layer in each pass, and one for each table. expert: tokens gathered and results
    scattered in each pass, but for the results that remat would make again and nobody reads, and the gradients of what
    is not split over experts. Positions are taken to be whole (context 1).
    """
    again = network.remat in ("full", "offload")
    passes = 2 + again
    tokens = _tokens(config, sizes) * config.train.microbatches
    row = tokens * network.d_model * width_of(network)
    summed = least.get("all-reduce", 0.0)
    inner = sizes["replica"] // slices
    found = {
        "replica": 2 * _ring(inner) * summed,
        "fsdp": minimum.wire("all-gather", least.get("all-gather", 0.0), sizes)
        + minimum.wire("reduce-scatter", least.get("reduce-scatter", 0.0), sizes),
        "tensor": 2 * _ring(sizes["tensor"]) * row * (2 * passes * network.layers + 2),
    }
    if sizes["expert"] > 1:
        moved = (4 + again) * (network.layers - network.dense_layers) * sizes["expert"] * row
        shared = sum(size / math.prod(sizes[axis] for axis in used)
                     for size, used in layout.splits(network, sizes).values() if "expert" not in used)
        found["expert"] = _ring(sizes["expert"]) * (
            moved + 2 * config.train.microbatches * shared * width_of(network))
    across = 2 * _ring(slices) * summed / inner
    return {axis: size for axis, size in found.items() if size}, across


def width_of(network: TransformerConfig) -> int:
    """Bytes of a number of the compute dtype."""
    return 2 if network.dtype == "bfloat16" else 4


def _ring(group: int) -> float:
    return (group - 1) / group


def _shards(sizes: dict[str, int]) -> int:
    return math.prod(sizes[axis] for axis in BATCH_AXES)


def _tokens(config: RunConfig, sizes: dict[str, int]) -> int:
    """Positions that pass through the layers of one device for a microbatch."""
    rows = config.train.batch_size // config.train.microbatches // _shards(sizes)
    return rows * config.data.length // sizes["context"] * work(config, sizes).runs


def _inside(sizes: dict[str, int], axis: str) -> int:
    return math.prod(sizes[name] for name in MESH_AXES[MESH_AXES.index(axis) + 1:])


def _moments(optimizer: str, path: str) -> int:
    if optimizer == "lion":
        return 1
    matrix = optimizer == "muon" and path.rpartition("/")[2] in _MUON
    return 1 if matrix else 2


def _hidden(c: TransformerConfig) -> float:
    """Numbers of a token between up and down; of an expert layer those of all its visits."""
    return c.moe.per_token * c.moe.d_ff + c.moe.shared_d_ff if c.moe else c.d_ff


def _head(config: RunConfig, c: TransformerConfig, sizes: dict[str, int]) -> float:
    """The gathered table, its whole gradient in float32, and a chunk of logits with two of its size."""
    table = c.d_model * c.head_size / sizes["tensor"]
    return table * (width_of(c) + _FLOAT) + 3 * _FLOAT * config.train.head_budget


def _layer(c: TransformerConfig, sizes: dict[str, int], tokens: int) -> float:
    """One layer's backward pass: its gathered weights, the next one's and its gradient, and its activations."""
    whole = sum(size / math.prod(sizes[axis] for axis in used if axis != "fsdp")
                for path, (size, used) in layout.splits(c, sizes).items() if path.startswith("layers/"))
    stacked = c.layers - c.dense_layers if c.moe else c.layers
    weights = 3 * whole / stacked * width_of(c)
    activations = 4 * (c.heads + c.kv_heads) * c.head_dim / sizes["tensor"] + 4 * c.d_model
    if c.moe is None:
        return weights + tokens * width_of(c) * (activations + 4 * c.d_ff / sizes["tensor"])
    visit = c.moe.per_token * sizes["expert"] * (2 * c.d_model + 3 * c.moe.d_ff / sizes["tensor"])
    return weights + tokens * width_of(c) * (activations + visit)
