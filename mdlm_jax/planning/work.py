"""What an objective sends through the network, by formula and free of jax: `training.objectives` without its code.

A test compares it with the FLOPs of every objective.
"""

import dataclasses
import math

from mdlm_jax.config import BATCH_AXES, OBJECTIVES, RunConfig, parse_spec


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


def work(config: RunConfig, sizes: dict[str, int]) -> Work:
    """The head of half the positions is known for uniform levels; for other laws all count, which is never too few."""
    train, rows, length = config.train, config.train.batch_size, config.data.length
    kind, numbers = parse_spec("train.objective", train.objective, OBJECTIVES)
    if kind == "nelbo" and config.process.masked_only:
        kind = "count"
    if kind == "autoregressive":
        return Work(1, (length + 1) // 2, rows * length)
    if kind == "any_order":
        return Work(2, (length + 1) // 2, rows * length)
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
