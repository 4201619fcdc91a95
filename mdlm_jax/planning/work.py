"""What an objective sends through the network, by formula and free of jax: `training.objectives` without its code.

A test compares it with the FLOPs of every objective.
"""

import dataclasses
import math

from mdlm_jax.config import BATCH_AXES, OBJECTIVES, ConfigError, RunConfig, parse_spec
from mdlm_jax.config.train import beside, is_taught
from mdlm_jax.models import flops
from mdlm_jax.models.config import TransformerConfig

_TEACHERS = {"sdtt": {"forwards": 2, "heads": 3}}  # runs of a teacher and of its head a step


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


def model_flops(config: RunConfig, network: TransformerConfig, sizes: dict[str, int]) -> int:
    """FLOPs of one step by formula, over all devices; of objectives that train a small network beside one too."""
    train, rows, length = config.train, config.train.batch_size, config.data.length
    kind, numbers = parse_spec("train.objective", train.objective, OBJECTIVES)
    if kind == "joint":
        return flops.joint_train_flops(network, rows, length, int(numbers[0]), train.on_policy > 0)
    if beside(kind):
        layers = int(numbers[0]) if kind == "planner" else 1
        return flops.quality_train_flops(network, rows, length, kind, layers)
    if is_taught(kind):
        return flops.taught_train_flops(network, rows, length, **_TEACHERS[kind])
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
    if kind not in ("count", "block"):
        return Work(1, length, rows * length)
    twice, blocks = train.each_twice, 1
    if kind == "block":
        blocks = length // config.model.block_length
    seen = length if blocks == 1 else (length + config.model.block_length) // 2
    return Work((1 + twice) * (1 if blocks == 1 else 2), seen, _head(config, sizes, blocks))


def _head(config: RunConfig, sizes: dict[str, int], blocks: int) -> int:
    train, rows, length = config.train, config.train.batch_size, config.data.length
    of_device = rows // train.microbatches // math.prod(sizes[axis] for axis in BATCH_AXES)
    antithetic = of_device % 2 == 0 and train.time_sampling in ("auto", "antithetic")
    if not train.half_head or sizes["context"] != 1 or not (antithetic or train.each_twice):
        return (1 + train.each_twice) * rows * length
    if train.each_twice:
        return rows * length
    return rows // 2 * (length + blocks) if train.level_law == "uniform" else rows * length
