"""From a `RunConfig` to process, network and objective."""

import dataclasses

from mdlm_jax.config import OBJECTIVES, ConfigError, RunConfig, TrainConfig, parse_mesh, parse_spec
from mdlm_jax.core import levels, schedules, weights
from mdlm_jax.core.process import Process
from mdlm_jax.models import api
from mdlm_jax.models.config import TransformerConfig
from mdlm_jax.models.sharding import whole_parameters
from mdlm_jax.training.objectives.base import Objective
from mdlm_jax.training.objectives.continuous import ContinuousObjective, DiscreteObjective
from mdlm_jax.training.objectives.count import CountObjective
from mdlm_jax.training.objectives.genmd4 import GenMD4Bound, GenMD4Objective


def build_process(config: RunConfig, vocab_size: int, mask_id: int) -> Process:
    """The noise of a run over a tokenizer's ids."""
    schedule = schedules.from_spec(config.process.schedule, config.process.eps)
    return Process(vocab_size, mask_id, config.process.mixing, schedule)


def build_network(config: RunConfig, vocab_size: int) -> TransformerConfig:
    """The network over a tokenizer's ids, of which the mask may have no column.

    Raises:
      ConfigError: a head without a column for some other id, or fewer learned positions than a row has.
    """
    network = config.model.transformer(vocab_size)
    if 0 < network.learned_positions < config.data.length:
        raise ConfigError(f"model.learned_positions={network.learned_positions}: must be at least "
                          f"data.length={config.data.length}")
    if network.head_size < vocab_size - 1:
        raise ConfigError(f"model.head_size={network.head_size}: the tokenizer has {vocab_size} ids, and all but the "
                          "mask need a column; raise it, or leave it out")
    return network


def build_objective(
    config: RunConfig, network: TransformerConfig, process: Process, data_shards: int
) -> tuple[Objective, list[str]]:
    """The objective, and a line for the user about each automatic choice that costs something.

    Args:
      data_shards: devices that share the rows of a batch.
    Raises:
      ConfigError: the batch cannot be split as asked.
    """
    train = config.train
    kind, numbers = parse_spec("train.objective", train.objective, OBJECTIVES)
    if kind == "nelbo":
        kind = "count" if process.masked_only else "continuous"
    rows = _rows_per_device(config, data_shards)
    coupling, notes = _coupling(train, rows)
    shared = {
        "network": network,
        "process": process,
        "law": levels.from_spec(train.level_law),
        "coupling": coupling,
        "weighting": weights.from_spec(train.weighting),
        "head_budget": train.head_budget,
        "data_shards": data_shards,
    }
    if kind == "count":
        whole = parse_mesh(train.mesh)["context"] == 1
        half_head = train.half_head and coupling == "antithetic" and whole
        if train.half_head and not whole:
            notes.append("full head: half-size heads gather along the length, which train.mesh splits over context")
        elif train.half_head and not half_head:
            notes.append(f"full head: half-size heads need antithetic pairs, and time sampling is {coupling}")
        return CountObjective(**shared, half_head=half_head, complementary=train.complementary), notes
    if train.half_head:
        notes.append(f"full head: the {kind} objective scores every position (half-size heads are for counts)")
    if kind == "continuous":
        return ContinuousObjective(**shared), notes
    if kind == "discrete":
        return DiscreteObjective(**shared, num_steps=int(numbers[0])), notes
    return GenMD4Objective(**shared, initial_power=numbers[0]), notes


def build_bound(
    config: RunConfig, network: TransformerConfig, process: Process, data_shards: int
) -> CountObjective | ContinuousObjective | GenMD4Bound:
    """The objective whose value, with its ``end_terms`` (None where there are none), is a true bound.

    Counts for the masked process, its own learned schedule for GenMD4, else continuous time. Dropout is off, and the
    levels are uniform, whatever the training used. ``eval.draws`` decides about half-size heads: an odd number of draws
    a row makes no pairs.
    """
    shared = {
        "network": dataclasses.replace(network, dropout=0.0),
        "process": process,
        "head_budget": config.train.head_budget,
        "data_shards": data_shards,
    }
    if parse_spec("train.objective", config.train.objective, OBJECTIVES)[0] == "genmd4":
        return GenMD4Bound(**shared)
    if process.masked_only:
        return CountObjective(**shared, half_head=config.eval.draws % 2 == 0)
    return ContinuousObjective(**shared)


def layout_notes(network: TransformerConfig, mesh) -> list[str]:
    """A line where weights lie whole on every device because the mesh does not divide them."""
    whole = whole_parameters(api.logical_axes(network), api.abstract(network), mesh)
    if not whole:
        return []
    return [f"{sum(whole.values()):,} of {api.num_parameters(network):,} parameters lie whole on every device: "
            f"fsdp={mesh.shape['fsdp']} does not divide model.d_model={network.d_model}; change train.mesh"]


def check_batch(config: RunConfig, data_shards: int) -> None:
    """Can ``data_shards`` devices share the batch as asked? Needs no data; raises what `build_objective` would."""
    _coupling(config.train, _rows_per_device(config, data_shards))


def _rows_per_device(config: RunConfig, data_shards: int) -> int:
    micro_rows = config.train.batch_size // config.train.microbatches
    if micro_rows % data_shards:
        raise ConfigError(
            f"train.batch_size={config.train.batch_size} in {config.train.microbatches} microbatch(es) is {micro_rows} "
            f"rows, which {data_shards} devices cannot share evenly; make it a multiple of {data_shards}"
        )
    return micro_rows // data_shards


def _coupling(train: TrainConfig, rows_per_device: int) -> tuple[str, list[str]]:
    """Antithetic pairs live on one device, so it must hold an even number of rows."""
    if train.time_sampling not in ("auto", "antithetic"):
        return train.time_sampling, []
    if rows_per_device % 2 == 0:
        return "antithetic", []
    if train.time_sampling == "antithetic" or train.complementary:
        asked = "train.complementary=True" if train.complementary else "train.time_sampling=antithetic"
        raise ConfigError(
            f"{asked} with {rows_per_device} row(s) a device and microbatch: pairs need an even number; change "
            "train.batch_size, or leave it out"
        )
    return "stratified", [f"stratified times: {rows_per_device} row(s) a device and microbatch do not make pairs"]
