"""From a `RunConfig` to process, network and objective."""

import dataclasses
from typing import Any

from mdlm_jax.config import OBJECTIVES, ConfigError, RunConfig, TrainConfig, parse_mesh, parse_spec
from mdlm_jax.config.objectives import check_training, in_blocks, rows_per_device
from mdlm_jax.core import levels, schedules, weights
from mdlm_jax.core.gidd import GiddProcess
from mdlm_jax.core.process import Process
from mdlm_jax.models import api
from mdlm_jax.models.config import TransformerConfig
from mdlm_jax.models.sharding import whole_parameters
from mdlm_jax.training.objectives.base import Objective
from mdlm_jax.training.objectives.block import BlockObjective
from mdlm_jax.training.objectives.continuous import ContinuousObjective
from mdlm_jax.training.objectives.count import CountObjective
from mdlm_jax.training.objectives.genmd4 import GenMD4Bound
from mdlm_jax.training.objectives.gidd import GiddObjective
from mdlm_jax.training.objectives.make import HALVES, NOISELESS, STAYS, Asked, make

_WHOLE_HEADS = ("continuous", "discrete", "draft_edit", "levenshtein", "genmd4")  # where counts would need half


def build_process(config: RunConfig, vocab_size: int, mask_id: int) -> Process:
    """The noise of a run over a tokenizer's ids, the mask always one of them (also at mixing 1)."""
    if config.process.family == "gidd":
        return GiddProcess(vocab_size, mask_id, p_uniform=config.process.p_uniform, gamma=config.process.gamma)
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
    config: RunConfig, network: TransformerConfig, process: Process, data_shards: int,
    twin: TransformerConfig | None = None,
) -> tuple[Objective, list[str]]:
    """The objective, and a line for the user about each automatic choice that costs something.

    Args:
      data_shards: devices that share the rows of a batch.
      twin: the shape of the network of train.twin, where there is one.
    Raises:
      ConfigError: the batch cannot be split as asked.
    """
    check_training(config)
    train = config.train
    kind, numbers = parse_spec("train.objective", train.objective, OBJECTIVES)
    if kind == "nelbo":
        kind = "count" if process.masked_only else "continuous"
    rows = rows_per_device(train, data_shards)
    coupling, notes = ("iid", []) if kind in (*NOISELESS, "joint", "dparallel") else _coupling(train, rows)
    shared = {
        "network": _as_trained(network, kind),
        "process": process,
        "law": levels.from_spec(train.level_law),
        "coupling": coupling,
        "weighting": weights.from_spec(train.weighting),
        "head_budget": train.head_budget,
        "data_shards": data_shards,
        "class_dropout": train.class_dropout,
    }
    if kind in HALVES:
        half_head, more = _half_head(train, coupling, train.each_twice or kind == "dparallel")
        shared, notes = shared | {"half_head": half_head}, notes + more
    elif train.half_head and kind in _WHOLE_HEADS:
        notes.append(f"full head: the {kind} objective scores every position (half-size heads are for counts)")
    return make(Asked(kind, numbers, shared, train, config.data.source, twin)), notes


def _as_trained(network: TransformerConfig, kind: str) -> TransformerConfig:
    """Block-causal and permuted networks are trained with two streams, noisy and clean."""
    streams = kind in ("any_order", "any_subset") or in_blocks(kind, network.attention)
    return dataclasses.replace(network, attention="two_stream") if streams else network


def _half_head(train: TrainConfig, coupling: str, twice: bool) -> tuple[bool, list[str]]:
    """Whether the head runs on half the slots; a line for the user where it was asked for and cannot."""
    if not train.half_head:
        return False, []
    if parse_mesh(train.mesh)["context"] != 1:
        return False, ["full head: half-size heads gather along the length, which train.mesh splits over context"]
    if coupling != "antithetic" and not twice:
        return False, [f"full head: half-size heads need antithetic pairs, and time sampling is {coupling}"]
    return True, []


def build_bound(
    config: RunConfig, network: TransformerConfig, process: Process, data_shards: int,
    twin: TransformerConfig | None = None,
) -> Objective:
    """The objective whose value, with its ``end_terms`` (None where there are none), is a true bound.

    Counts for the masked process (of whole rows, or of blocks of model.block_length), the chain rule for an
    autoregressive model (and for MARIA, of what is masked, a mean over masks), random orders for one of any order, its
    own learned schedule for GenMD4, else continuous time; of any subset what random prompts leave, which is exact and
    no bound of the row. Given the class where the network has classes. Dropout is off, and the levels are uniform,
    whatever the training used. `bound_draws` decides about half-size heads: an odd number of draws a row makes no
    pairs.
    """
    kind, numbers = parse_spec("train.objective", config.train.objective, OBJECTIVES)
    shared: dict[str, Any] = {
        "network": dataclasses.replace(_as_trained(network, kind), dropout=0.0),
        "process": process,
        "head_budget": config.train.head_budget,
        "data_shards": data_shards,
    }
    paired = config.eval.draws % 2 == 0
    if kind == "genmd4":
        return GenMD4Bound(**shared)
    if kind in (*STAYS, *NOISELESS):
        shared |= {"half_head": paired} if kind in HALVES else {}
        train = dataclasses.replace(config.train, any_order=0.0, on_policy=0.0)  # measured on the rows as they are
        return make(Asked(kind, numbers, shared, train, config.data.source, twin))
    if in_blocks(kind, network.attention):
        paired = paired and network.block_length > 1
        return BlockObjective(**shared, coupling="antithetic" if paired else "stratified", half_head=paired)
    if process.masked_only:
        return CountObjective(**shared, half_head=paired)
    if isinstance(process, GiddProcess):
        return GiddObjective(**shared, time_max=1.0)
    return ContinuousObjective(**shared)


def bound_draws(config: RunConfig, bound: Objective) -> int:
    """Noise draws a row: ``eval.draws``, or one where every draw gives the same."""
    return 1 if bound.exact else config.eval.draws


def layout_notes(network: TransformerConfig, mesh) -> list[str]:
    """A line where weights lie whole on every device because the mesh does not divide them."""
    whole = whole_parameters(api.logical_axes(network), api.abstract(network), mesh)
    if not whole:
        return []
    return [f"{sum(whole.values()):,} of {api.num_parameters(network):,} parameters lie whole on every device: "
            f"fsdp={mesh.shape['fsdp']} does not divide model.d_model={network.d_model}; change train.mesh"]


def check_batch(config: RunConfig, data_shards: int) -> None:
    """Can ``data_shards`` devices share the batch as asked? Needs no data; raises what `build_objective` would."""
    _coupling(config.train, rows_per_device(config.train, data_shards))


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
