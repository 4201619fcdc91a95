"""What an objective sends through the network, by formula and free of jax: `training.objectives` without its code.

A test compares it with the FLOPs of every objective.
"""

import dataclasses
import math

from mdlm_jax.config import BATCH_AXES, OBJECTIVES, ConfigError, RunConfig, parse_spec
from mdlm_jax.config.objectives import in_blocks
from mdlm_jax.config.train import beside, is_taught
from mdlm_jax.models import flops
from mdlm_jax.models.config import TransformerConfig

_TEACHERS = {  # runs without a gradient, and of heads, a step
    "sdtt": {"forwards": 2, "heads": 3},
    "duo": {"forwards": 1, "heads": 2},
    "di4c": {"forwards": 2, "heads": 4},
}


@dataclasses.dataclass(frozen=True)
class Work:
    """Of one step.

    Attributes:
      runs: positions that pass through the layers for each token of the batch: streams, masks and turns.
      seen: keys a query sees on average.
      head: positions that pass through the head.
    """

    runs: int
    seen: int
    head: int


def model_flops(config: RunConfig, network: TransformerConfig, sizes: dict[str, int],
                twin: TransformerConfig | None = None) -> int:
    """FLOPs of one step by formula, over all devices; of objectives that train a small network beside one too.

    ``twin``: the shape of the network of train.twin, of maria."""
    train, rows, length = config.train, config.train.batch_size, config.data.length
    kind, numbers = parse_spec("train.objective", train.objective, OBJECTIVES)
    if kind == "joint":
        return flops.joint_train_flops(network, rows, length, int(numbers[0]), train.on_policy > 0)
    if kind == "maria":
        assert twin is not None
        return flops.maria_train_flops(network, twin, rows, length, _head(config, sizes, 1))
    if kind == "codd":
        return flops.circuit_train_flops(network, rows, length, int(numbers[0]))
    if beside(kind):
        layers = int(numbers[0]) if kind == "planner" else 1
        return flops.quality_train_flops(network, rows, length, kind, layers)
    if is_taught(kind):
        copies = int(numbers[1]) if kind == "di4c" else 1
        return flops.taught_train_flops(network, rows, length, **_TEACHERS[kind], copies=copies)
    done = work(config, sizes)
    return flops.train_flops(network, rows * length * done.runs, done.seen, done.head)


def work(config: RunConfig, sizes: dict[str, int]) -> Work:
    """The head of half the positions is known for uniform levels; for other laws all count, which is never too few.

    Raises:
      ConfigError: the network stays, and something small beside it trains, or it has a teacher.
    """
    train, rows, length = config.train, config.train.batch_size, config.data.length
    kind, numbers = parse_spec("train.objective", train.objective, OBJECTIVES)
    if beside(kind):
        raise ConfigError(f"train.objective={train.objective}: memory and traffic are planned of networks that train, "
                          "and here the network stays; plan the run of train.init_from")
    if is_taught(kind):
        raise ConfigError(f"train.objective={train.objective}: memory and traffic are planned of one network, and here "
                          "a teacher stands beside it; plan the run of train.init_from, and add a forward network")
    if kind == "nelbo" and config.process.masked_only:
        kind = "count"
    if kind == "autoregressive":
        return Work(1, (length + 1) // 2, rows * length)
    if kind == "any_order":
        return Work(2, (length + 1) // 2, rows * length)
    if kind == "any_subset":
        return Work(2, flops.lattice_seen(length, *numbers), rows * length)
    if kind == "draft_edit":
        turns = int(numbers[2])
        return Work(turns, length, turns * rows * length)
    if kind == "levenshtein":
        turns, size = int(numbers[1]), config.model.block_length
        streams, seen = (1, length) if size == length else (2, (length + size) // 2)
        return Work(turns * streams, seen, turns * rows * length)
    if kind == "dparallel":
        block, beta, temperature = numbers
        whole = not train.half_head or sizes["context"] != 1
        head = 2 * rows * length if whole else rows * min(int(block), length)
        return Work(2, length, head * (2 if beta and temperature != 1.0 else 1))
    if kind not in ("count", "block", "dmax"):
        return Work(1, length, rows * length)
    twice, blocks = train.each_twice or kind == "dmax", 1
    if in_blocks(kind, config.model.attention):
        blocks = length // config.model.block_length
    seen = length if blocks == 1 else (length + config.model.block_length) // 2
    head = _head(config, sizes, blocks) + (rows * length if kind == "dmax" else 0)
    return Work((1 + twice) * (1 if blocks == 1 else 2), seen, head)


def _head(config: RunConfig, sizes: dict[str, int], blocks: int) -> int:
    train, rows, length = config.train, config.train.batch_size, config.data.length
    of_device = rows // train.microbatches // math.prod(sizes[axis] for axis in BATCH_AXES)
    antithetic = of_device % 2 == 0 and train.time_sampling in ("auto", "antithetic")
    if not train.half_head or sizes["context"] != 1 or not (antithetic or train.each_twice):
        return (1 + train.each_twice) * rows * length
    if train.each_twice:
        return rows * length
    return rows // 2 * (length + blocks) if train.level_law == "uniform" else rows * length
