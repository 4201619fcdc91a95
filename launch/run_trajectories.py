"""What launch.trajectories does: shard after shard, each written whole and made once."""

import dataclasses
import json
from typing import Any

import jax
import numpy as np

import mdlm_jax
from mdlm_jax.config import ConfigError
from mdlm_jax.data import trajectories
from mdlm_jax.models.sharding import make_mesh
from mdlm_jax.progress import Growing
from mdlm_jax.training.manifest import write_atomically

from ._start import weights_digest
from .trajectories import MOST, TrajectoryOptions

SHARD_ROWS = 1024
_FREE = ("output", "batch_size", "mesh", "distributed")  # that change no row


def main(options: TrajectoryOptions, number: int = 0, count: int = 1) -> None:
    """The part of process ``number`` of ``count``: every count-th shard.

    Raises ConfigError: trajectories of other settings are there, or what the model refuses.
    """
    mesh = None if options.mesh is None else make_mesh(options.mesh, jax.local_devices())
    model = mdlm_jax.load(options.folder, mesh=mesh)
    length = options.length or model.description.max_length
    if not length:
        raise ConfigError("--length is missing: the model does not say what it was made for; give it")
    if model.process is None or model.config.attention not in ("bidirectional", "block_causal"):
        raise ConfigError(f"--checkpoint={options.folder}: its network is {model.config.attention}; choose one that "
                          "fills in masks")
    if model.config.time_conditioning:
        raise ConfigError(f"--checkpoint={options.folder}: its network reads the time, which rows written one token a "
                          "forward do not have; choose one that does not")
    if length > MOST:
        raise ConfigError(f"--length={length}: must be at most {MOST}; give less")
    if model.tokenizer is None:
        raise ConfigError(f"--checkpoint={options.folder}: has no tokenizer.json; put it there")
    shards = -(-options.num // SHARD_ROWS)
    _settle(options, model, length, shards)
    with Growing("trajectories", "row") as shown:
        for shard in range(number, shards, count):
            path = options.output / trajectories.SHARD.format(shard)
            rows = range(shard * SHARD_ROWS, min((shard + 1) * SHARD_ROWS, options.num))
            if not path.exists():
                trajectories.write_shard(path, *_written(model, options, length, rows))
            shown(rows.stop, options.num)
    print(f"{options.num:,} rows of {length} tokens are in {options.output}")


def _settle(options: TrajectoryOptions, model, length: int, shards: int) -> None:
    """Writes the settings, or finds them as they are."""
    asked = {name: value for name, value in dataclasses.asdict(options).items() if name not in _FREE}
    asked |= {"folder": str(options.folder), "weights": weights_digest(str(options.folder)), "length": length,
              "shards": shards, "mask_id": model.process.mask_id,
              "prompts": None if options.prompts is None else [one.prompt for one in options.prompts]}
    asked = json.loads(json.dumps(asked))
    file = options.output / trajectories.META
    if file.exists():
        there = trajectories.read_meta(options.output)
        for name, value in asked.items():
            if there.get(name) != value:
                raise ConfigError(f"--output={options.output}: holds trajectories of other settings ({name}); choose "
                                  "another folder")
        return
    options.output.mkdir(parents=True, exist_ok=True)
    model.tokenizer.save(options.output / "tokenizer.json")
    write_atomically(file, json.dumps(asked, indent=1) + "\n")


def _written(model, options: TrajectoryOptions, length: int, rows: range) -> tuple[np.ndarray, np.ndarray]:
    """tokens and rank of a shard, [R, length] each."""
    prompts: list[Any] = [np.zeros(0, np.int32)] * len(rows)
    if options.prompts is not None:
        prompts = [options.prompts[i % len(options.prompts)].prompt for i in rows]
    found = model.generate(
        prompts, decoder="adjust", tokens=1, temperature=options.temperature, top_p=options.top_p,
        new_tokens=length if options.prompts is None else None, max_length=length, block_length=options.block_length,
        stop_id=None if options.prompts is None else "eos", suppress=options.suppress, seed=options.seed,
        row_ids=list(rows), batch_size=options.batch_size,
    )
    tokens = np.full((len(rows), length), model.process.mask_id, np.int32)
    rank = np.full((len(rows), length), trajectories.PADDING, np.int32)
    for i, one in enumerate(found):
        size = len(one.row)
        tokens[i, :size] = one.row
        order = np.where(one.given, -1, one.order)
        written = order >= 0
        rank[i, :size] = np.where(one.given, trajectories.GIVEN, trajectories.NEVER)
        rank[i, :size][written] = np.argsort(np.argsort(order[written], kind="stable"), kind="stable")
    return tokens, rank
