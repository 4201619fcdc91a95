"""What objectives demand of the other sections, and which fields they do not read."""

import dataclasses

from mdlm_jax.config.data import is_images
from mdlm_jax.config.train import is_taught, parse_block_schedule
from mdlm_jax.errors import ConfigError, require

_FILLS = {"joint": ("bidirectional", "block_causal"), "planner": ("bidirectional",), "prism": ("bidirectional",),
          "codd": ("bidirectional",), "maria": ("bidirectional",), "dparallel": ("bidirectional",),
          "dmax": ("bidirectional", "block_causal")}
_ATTENTION = {"autoregressive": "causal", "block": "block_causal", "any_order": "permutation",
              "any_subset": "permutation", "levenshtein": "block_causal"}
_NOISE = ("process.schedule", "process.eps")
_LEVELS = ("train.time_sampling", "train.level_law", "train.weighting", "train.half_head")
_UNREAD = {
    "autoregressive": (*_NOISE, *_LEVELS, "eval.draws", "sample.steps"),
    "any_order": (*_NOISE, *_LEVELS, "sample.steps"),
    "any_subset": (*_NOISE, *_LEVELS, "sample.steps"),
    "joint": (*_NOISE, *_LEVELS, "sample.steps"),
    "planner": ("train.half_head",),
    "prism": ("train.weighting", "train.half_head"),
    "maria": ("sample.steps",),
    "sdtt": ("train.level_law", "train.weighting", "train.half_head"),
    "duo": ("train.level_law", "train.weighting", "train.half_head"),
    "di4c": ("train.level_law", "train.weighting", "train.half_head"),
    "codd": ("train.half_head",),
    "dparallel": ("train.time_sampling", "train.level_law", "train.weighting"),
    "dmax": ("sample.steps",),
}
_SINGLE = ("autoregressive", "any_order", "any_subset")  # one token given others that are clean
_MASKED = (*_SINGLE, "block", "levenshtein", "draft_edit", "dparallel", "dmax", "sdtt", "di4c", "joint", "planner",
           "prism", "codd", "maria")
_TRAJECTORIES = ("joint", "dparallel", "dmax")  # that can learn from what a network wrote


def in_blocks(objective: str, attention: str) -> bool:
    """Whether the network is trained in blocks, with two streams."""
    return objective in ("block", "levenshtein") or objective == "dmax" and attention == "block_causal"


_LATENT = ("train.objective=di4c teaches a network to read a latent, and no other does: set both train.objective="
           "di4c:1024,16,0.1,1 and model.latent=32, or neither")


def check_training(run) -> None:
    """Raises ConfigError where a model that can be used cannot be trained so: ``run`` is more than what a checkpoint
    says of its network."""
    require(not run.model.latent or run.train.objective.startswith("di4c:"), "model.latent", run.model.latent, _LATENT)


def rows_per_device(train, shards: int) -> int:
    """Rows of a microbatch that each of ``shards`` devices has; ConfigError where it is no whole number."""
    rows = train.batch_size // train.microbatches
    if rows % shards:
        raise ConfigError(f"train.batch_size={train.batch_size} in {train.microbatches} microbatch(es) is {rows} rows, "
                          f"which {shards} devices cannot share evenly; make it a multiple of {shards}")
    return rows // shards


def check_objective(run, objective: str) -> None:
    """Raises ConfigError for what ``objective``, the name without its numbers, cannot work with or would ignore.

    ``run``: a `RunConfig`, its sections checked each by itself.
    """
    _check_attention(run, objective)
    blocks = in_blocks(objective, run.model.attention)
    if objective in _FILLS:
        require(run.model.attention in _FILLS[objective], "model.attention", run.model.attention,
                 f"train.objective={objective} is for networks that fill in masks: {' or '.join(_FILLS[objective])}")
    if objective == "joint":
        require(run.model.conditioning != "time", "model.conditioning", "time",
                 "trajectories have no noise levels to tell the network; ADJUST is for networks that do not read the "
                 "time")
    if is_taught(objective):
        require(run.model.attention == "bidirectional", "model.attention", run.model.attention,
                 f"train.objective={run.train.objective} is for networks that see whole rows, bidirectional")
    require(bool(run.model.latent) or objective != "di4c", "model.latent", run.model.latent, _LATENT)
    if objective == "duo":
        require(run.process.family == "stationary" and run.process.mixing == 1.0, *_noise(run.process),
                 f"train.objective={run.train.objective} is for networks of uniform noise; set process.mixing=1")
    if objective == "maria":
        require(not run.model.classes, "model.classes", run.model.classes,
                "train.objective=maria fuses networks that read text alone; take one without classes")
    trajectories = run.data.source.startswith("trajectories:")
    require(trajectories or objective != "joint", "data.source", run.data.source,
             "train.objective=joint learns from what the network itself wrote; set data.source=trajectories:DIR")
    require(not trajectories or objective in _TRAJECTORIES, "data.source", run.data.source,
             "trajectories, what the network itself wrote, are for train.objective=joint:3, dparallel:32,2,0.5 and "
             "dmax:1,1,0; take one of them, or another source")
    if objective in _MASKED:
        require(run.process.masked_only, *_noise(run.process),
                 f"train.objective={run.train.objective} knows no noise but the mask; leave it out")
    _refuse_unread(run, objective, _UNREAD.get(objective, ()))
    if blocks:
        _check_blocks(run, objective)
    else:
        require(not run.train.block_schedule, "train.block_schedule", run.train.block_schedule,
                 "is read by train.objective=block and levenshtein only, and by dmax with blocks; leave it out")
    if objective == "autoregressive":
        require(run.model.logit_shift, "model.logit_shift", False,
                 "a causal network's row i must score token i+1; set model.logit_shift=true")
    if objective in _SINGLE:
        require(not run.model.moe_block, "model.moe_block", run.model.moe_block,
                 f"lets later tokens choose the experts of earlier ones, and train.objective={objective} must not")
    if objective in (*_SINGLE, "dparallel") or blocks:
        require(run.model.conditioning != "time", "model.conditioning", "time",
                 f"a row has one noise level with it, and none with train.objective={objective}; choose none")
    _check_weighting(run, objective)
    _check_options(run, objective)


def check_columns(objective: str, ids: int, columns: int) -> None:
    """ConfigError where a head of so many ``columns`` cannot say what is neither of a tokenizer's ``ids``: edits."""
    if objective.partition(":")[0] == "levenshtein" and columns < ids + 2:
        raise ConfigError(f"model.head_size={columns}: train.objective={objective} says delete and insert "
                          f"with two columns beyond the tokenizer's {ids} ids; set it to {ids + 2}")


def _check_weighting(run, objective: str) -> None:
    """Raises ConfigError where ``train.weighting`` and ``process.family`` do not go together."""
    weighting, gidd = run.train.weighting, run.process.family == "gidd"
    if weighting == "dynamic":
        require(gidd, "train.weighting", weighting, "is of GIDD's noise; set process.family=gidd, or choose another")
    if gidd and objective in ("nelbo", "continuous"):
        require(weighting in ("elbo", "dynamic") or weighting.startswith("clipped:"), "train.weighting", weighting,
                 "process.family=gidd has elbo, clipped:MAX and dynamic; choose one of them")


def _noise(process) -> tuple[str, object]:
    """The field, with its value, that makes noise other than the mask."""
    return ("process.mixing", process.mixing) if process.family == "stationary" else ("process.family", process.family)


def _check_attention(run, objective: str) -> None:
    attention, wanted = run.model.attention, _ATTENTION.get(objective)
    if wanted:
        require(attention == wanted, "model.attention", attention,
                 f"train.objective={objective} trains a {wanted} network; set model.attention={wanted}")
    else:
        require(attention not in ("two_stream", "permutation"), "model.attention", attention,
                 "needs inputs that this objective does not make; choose bidirectional, causal or block_causal, or "
                 "train.objective=block with block_causal, any_order or any_subset with permutation")


def _check_blocks(run, objective: str) -> None:
    stages = parse_block_schedule(run.train.block_schedule)
    sizes = dict.fromkeys([*(size for size, _ in stages), run.model.block_length])
    if stages:
        require(stages[-1][0] == run.model.block_length, "train.block_schedule", run.train.block_schedule,
                 f"must end with model.block_length={run.model.block_length}, at which the model is measured and used")
        listed = sum(steps for _, steps in stages)
        require(listed < run.train.steps, "train.block_schedule", run.train.block_schedule,
                 f"takes {listed} steps before its last size, and train.steps={run.train.steps}")
    for size in sizes:
        field, value = ("train.block_schedule", run.train.block_schedule) if stages else ("model.block_length", size)
        require(run.data.length % size == 0, field, value, f"{size} must divide data.length={run.data.length}")
        require(not run.model.moe_block or size % run.model.moe_block == 0, "model.moe_block", run.model.moe_block,
                 f"must divide the block length {size}, or later blocks choose the experts of earlier ones")
    if objective == "levenshtein":
        require(1 not in sizes, "model.block_length", run.model.block_length,
                 f"train.objective={run.train.objective} moves tokens within a block, and one of a token has no room")
    if sizes.keys() == {1}:
        _refuse_unread(run, f"{objective} with blocks of one token", (*_LEVELS, "eval.draws"))


def _check_options(run, objective: str) -> None:
    """Classes, masks in twos, CAP, answers weighed alike, and the routers' bias."""
    if run.model.classes:
        require(is_images(run.data.source), "model.classes", run.model.classes,
                 f"needs rows with classes, and data.source={run.data.source!r} has none; use digits or codes:PATH")
    else:
        require(not run.train.class_dropout, "train.class_dropout", run.train.class_dropout,
                 "has no meaning without model.classes; leave it out")
    if run.train.per_answer:
        require(run.data.answers, "train.per_answer", True,
                 "is about rows of prompts and answers; set data.prompt_field, or leave it out")
        require(objective != "genmd4", "train.per_answer", True,
                 f"the gradient of train.objective={run.train.objective} is that of whole rows; leave it out")
    counts = run.process.masked_only and objective in ("nelbo", "count", "block")
    for name, off in (("each_twice", False), ("confidence", 0.0)):
        value = getattr(run.train, name)
        require(value == off or counts, f"train.{name}", value,
                 "needs process.mixing=0 and train.objective=count or block")
    require(not (run.train.each_twice and run.train.complementary), "train.each_twice", True,
             "already pairs each mask with its complement; leave train.complementary out")
    if run.train.router_bias_rate:
        rate, model = run.train.router_bias_rate, run.model
        require(model.moe_selection_bias and not model.moe_bias_in_weight, "train.router_bias_rate", rate,
                 "moves a bias that enters the choice of experts alone; set model.moe_selection_bias=true, and leave "
                 "moe_bias_in_weight out")
        require(objective != "genmd4", "train.router_bias_rate", rate, "genmd4 does not train routers; leave it out")


def _refuse_unread(run, objective: str, names: tuple[str, ...]) -> None:
    """All of ``names`` that are set, in one message."""
    found = []
    for name in names:
        section, field = name.split(".")
        values = getattr(run, section)
        default = next(f.default for f in dataclasses.fields(values) if f.name == field)
        if getattr(values, field) != default:
            found.append(f"{name}={getattr(values, field)!r}")
    if found:
        them = "it" if len(found) == 1 else "them"
        raise ConfigError(f"{', '.join(found)}: train.objective={objective} does not read {them}; leave {them} out")
