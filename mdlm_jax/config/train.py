"""The ``train`` section of a run."""

import dataclasses
import fnmatch

from mdlm_jax.config.choices import (
    DIVERGENCES,
    LEVEL_LAWS,
    LR_SCHEDULES,
    OBJECTIVES,
    OPTIMIZERS,
    TIME_SAMPLINGS,
    WEIGHTINGS,
    parse_spec,
    require_seed,
)
from mdlm_jax.config.mesh import parse_mesh
from mdlm_jax.config.objective_numbers import check_numbers
from mdlm_jax.errors import require

_ROUTER_BIAS = "network/layers/moe/router_bias"


_BESIDE = {"joint": "joint", "planner": "quality", "prism": "quality", "codd": "circuit", "maria": "fused"}
_TAUGHT = ("sdtt", "duo", "di4c")


def beside(objective: str) -> str:
    """Under which name it trains a small network beside one that stays; "" where the network itself trains."""
    return _BESIDE.get(objective.partition(":")[0], "")


def is_taught(objective: str) -> bool:
    """Whether the network learns from a teacher, the weights of train.init_from as they were."""
    return objective.partition(":")[0] in _TAUGHT


def is_joint(objective: str) -> bool:
    """Whether it trains a joint layer, beside a network that stays."""
    return beside(objective) == "joint"


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """The optimisation. Losses are in nats per token."""

    steps: int = 1000  # optimiser steps; may be raised on an existing run
    batch_size: int = 32  # rows a step, over all devices
    microbatches: int = 1  # gradient accumulation: batch_size must be a multiple
    objective: str = "nelbo"  # what is minimised; one of OBJECTIVES
    time_sampling: str = "auto"  # how the noise levels of a batch hang together; one of TIME_SAMPLINGS
    level_law: str = "uniform"  # law of the noise level; one of LEVEL_LAWS
    weighting: str = "elbo"  # how much a corrupted token counts, by the noise level; one of WEIGHTINGS
    complementary: bool = False  # antithetic pairs also share the positions: one masks what the other shows
    each_twice: bool = False  # each row under a mask and under its complement (LLaDA2's fine-tuning), count and block
    per_answer: bool = False  # rows weigh alike, however long their answers (LLaDA's fine-tuning); data.prompt_field
    class_dropout: float = 0.0  # share of rows whose class is hidden, which guidance needs; with model.classes
    confidence: float = 0.0  # weight of the entropy where a masked token is already guessed right (CAP); no bound
    any_order: float = 0.0  # share of the trajectories that the joint layer is shown in a random order; joint only
    on_policy: float = 0.0  # share of windows whose tokens the joint layer draws, not the trajectory; joint only
    divergence: str = "reverse_kl"  # from the network to its teacher; one of DIVERGENCES; sdtt and duo only
    block_schedule: str = ""  # block lengths by step, SIZE:STEPS,...,SIZE, the last model.block_length; block only
    half_head: bool = True  # run the head on half the slots where antithetic counts allow it
    init_from: str = ""  # a Hugging Face directory or a run of ours: weights, network and tokenizer of a fresh run
    twin: str = ""  # a run of train.objective=autoregressive: the network beside that of init_from; maria only
    optimizer: str = "adamw"  # one of OPTIMIZERS
    lora_rank: int = 0  # rank of adapters (LoRA) on the weights of init_from; only they train; 0: none
    lora_alpha: float = 32.0  # adapters count lora_alpha / lora_rank times
    lora_targets: str = "*/attention/*,*/mlp/*,*/moe/shared_*"  # patterns of the weights that get adapters
    freeze: str = ""  # patterns of weights that do not train, as in network/embedding,network/layers/mlp/*
    learning_rate: float = 3e-4  # peak, after the warm-up
    warmup_steps: int = 100  # linear rise to the learning rate
    lr_schedule: str = "cosine"  # after the warm-up; one of LR_SCHEDULES
    b1: float = 0.9  # decay of Adam's mean of the gradient
    b2: float = 0.999  # decay of Adam's mean of its square
    adam_eps: float = 1e-8  # added to the root of that mean; adamw only
    router_bias_rate: float = 0.0  # step of the experts' selection bias against the load (DeepSeek-V3: 1e-3); 0: fixed
    weight_decay: float = 0.0  # decoupled, on matrices only
    clip_norm: float = 1.0  # largest global norm of the gradient
    max_bad_steps: int = 10  # so many losses or gradients in a row (or half of all) that are not finite end the run
    ema_decay: float = 0.999  # of the average, at most (1 + n) / (10 + n) after n steps; 0: no moving average
    checkpoint_every: int = 500  # steps; the last step is always kept
    keep_checkpoints: int = 2  # the newest so many
    keep_every: int = 0  # also each step that is a multiple of it, for ever; 0: none
    keep_best: int = 0  # also so many of those with the least held-out bound (eval.every); 0: none
    log_every: int = 10  # steps between records in metrics.jsonl
    mesh: str = "fsdp:-1"  # axis:size,... over replica, fsdp, expert, context, tensor; one may be -1
    head_budget: int = 1 << 22  # logits alive at once per device in the loss; fewer cost time, not exactness
    seed: int = 0  # weights and noise

    def __post_init__(self):
        for name in ("steps", "batch_size", "microbatches", "log_every", "checkpoint_every", "keep_checkpoints",
                     "head_budget", "max_bad_steps"):
            require(getattr(self, name) > 0, f"train.{name}", getattr(self, name), "must be positive")
        for name in ("keep_every", "keep_best"):
            require(getattr(self, name) >= 0, f"train.{name}", getattr(self, name), "must not be negative; 0 is none")
        require(self.keep_every % self.checkpoint_every == 0, "train.keep_every", self.keep_every,
                 f"must be a multiple of train.checkpoint_every={self.checkpoint_every}")
        require(self.batch_size % self.microbatches == 0, "train.microbatches", self.microbatches,
                 f"must divide train.batch_size={self.batch_size}")
        require_seed("train.seed", self.seed)
        _check_objective(self)
        require(0.0 <= self.class_dropout < 1.0, "train.class_dropout", self.class_dropout, "must lie in [0, 1)")
        require(self.confidence >= 0, "train.confidence", self.confidence, "must not be negative; 0 is none")
        require(0 <= self.router_bias_rate < 1, "train.router_bias_rate", self.router_bias_rate, "must lie in [0, 1)")
        parse_block_schedule(self.block_schedule)
        parse_spec("train.time_sampling", self.time_sampling, TIME_SAMPLINGS)
        _check_levels(self)
        require(self.learning_rate > 0, "train.learning_rate", self.learning_rate, "must be positive")
        require(0 <= self.warmup_steps <= self.steps, "train.warmup_steps", self.warmup_steps,
                 f"must lie in [0, train.steps={self.steps}]; of a shorter run set both")
        schedule, numbers = parse_spec("train.lr_schedule", self.lr_schedule, LR_SCHEDULES)
        if schedule == "wsd":
            require(0 < numbers[0] <= 1, "train.lr_schedule", self.lr_schedule, "the share must lie in (0, 1]")
        parse_spec("train.optimizer", self.optimizer, OPTIMIZERS)
        for name in ("b1", "b2", "ema_decay"):
            require(0.0 <= getattr(self, name) < 1.0, f"train.{name}", getattr(self, name), "must lie in [0, 1)")
        require(self.adam_eps > 0, "train.adam_eps", self.adam_eps, "must be positive")
        require(self.optimizer == "adamw" or self.adam_eps == TrainConfig.adam_eps, "train.adam_eps", self.adam_eps,
                 f"is not read by train.optimizer={self.optimizer}; leave it out")
        require(self.weight_decay >= 0, "train.weight_decay", self.weight_decay, "must not be negative")
        require(self.clip_norm > 0, "train.clip_norm", self.clip_norm, "must be positive")
        parse_mesh(self.mesh)
        _check_adapters(self)
        if self.router_bias_rate:
            require(not any(fnmatch.fnmatchcase(_ROUTER_BIAS, part.strip()) for part in self.freeze.split(",")),
                     "train.router_bias_rate", self.router_bias_rate,
                     f"moves {_ROUTER_BIAS}, which train.freeze={self.freeze!r} keeps; leave one of them out")


def _check_objective(train: TrainConfig) -> None:
    """The objective, and the fields that it alone reads."""
    name, numbers = parse_spec("train.objective", train.objective, OBJECTIVES)
    check_numbers(name, numbers, train.objective)
    if beside(train.objective):
        require(bool(train.init_from), "train.objective", train.objective,
                 "trains something small beside a network that stays as it is; give that with train.init_from")
        require(not train.lora_rank, "train.lora_rank", train.lora_rank,
                 f"adapts the network, which stays with train.objective={train.objective}; leave it out")
    if is_taught(train.objective):
        require(bool(train.init_from), "train.objective", train.objective,
                 "learns from a network that is there; give it with train.init_from")
    require(name != "di4c" or not train.lora_rank, "train.lora_rank", train.lora_rank,
             f"adapts weights that are there, and train.objective={train.objective} adds those of a latent; leave it "
             "out")
    parse_spec("train.divergence", train.divergence, DIVERGENCES)
    require(name in ("sdtt", "duo") or train.divergence == TrainConfig.divergence, "train.divergence",
             train.divergence, "is read by train.objective=sdtt:STEPS and duo:STEPS only; leave it out")
    require(bool(train.twin) == (name == "maria"), "train.twin", train.twin,
             "is read by train.objective=maria, which needs it, the run of an autoregressive network; set both, or "
             "neither")
    for field in ("any_order", "on_policy"):
        value = getattr(train, field)
        require(0.0 <= value <= 1.0, f"train.{field}", value, "must lie in [0, 1]")
        require(not value or is_joint(train.objective), f"train.{field}", value,
                 "is read by train.objective=joint:PASSES only; leave it out")


def _check_levels(train: TrainConfig) -> None:
    """The law of the noise level, and the weights that go with it."""
    law, levels = parse_spec("train.level_law", train.level_law, LEVEL_LAWS)
    require(all(0 <= level <= 1 for level in levels), "train.level_law", train.level_law, "levels lie in [0, 1]")
    if law == "band":
        require(levels[0] < levels[1], "train.level_law", train.level_law, "needs LOW < HIGH")
    if law == "fixed":
        require(0 < levels[0] < 1, "train.level_law", train.level_law, "the ratio must lie in (0, 1)")
    weighting, numbers = parse_spec("train.weighting", train.weighting, WEIGHTINGS)
    if weighting == "power":
        require(abs(numbers[0]) <= 5, "train.weighting", train.weighting, "the power must lie in [-5, 5]")
    if weighting == "clipped":
        require(numbers[0] > 0, "train.weighting", train.weighting, "the largest weight must be positive")
    if law == "fixed" or (law == "band" and levels != (0.0, 1.0)):
        require(weighting != "elbo", "train.weighting", train.weighting,
                 f"train.level_law={train.level_law!r} leaves out noise levels, so no weight makes it a bound; "
                 "set train.weighting to constant, power:P or clipped:MAX")


def _check_adapters(train: TrainConfig) -> None:
    require(train.lora_rank >= 0, "train.lora_rank", train.lora_rank, "must not be negative; 0 is none")
    if not train.lora_rank:
        for name in ("lora_alpha", "lora_targets"):
            require(getattr(train, name) == getattr(TrainConfig, name), f"train.{name}", getattr(train, name),
                     "has no meaning without train.lora_rank; leave it out")
        return
    require(train.lora_alpha > 0, "train.lora_alpha", train.lora_alpha, "must be positive")
    require(all(part.strip() for part in train.lora_targets.split(",")), "train.lora_targets", train.lora_targets,
             "write patterns of weights, as in '*/attention/*,*/mlp/up'")
    require(bool(train.init_from), "train.lora_rank", train.lora_rank,
             "trains adapters of given weights, and without train.init_from these are random; set it")
    require(train.optimizer != "muon", "train.optimizer", train.optimizer,
             "orthogonalises whole matrices, and train.lora_rank trains their factors; choose adamw or lion")
    require(not train.router_bias_rate, "train.router_bias_rate", train.router_bias_rate,
             "moves a weight of the network, and with train.lora_rank only adapters train; leave it out")


def parse_block_schedule(spec: str) -> tuple[tuple[int, int], ...]:
    """``"1:1000,4:500,32"`` -> ((1, 1000), (4, 500), (32, 0)); the last lasts to the end. Empty: ().

    Raises:
      ConfigError: it is not of that form.
    """
    stages = [stage.partition(":")[::2] for stage in spec.split(",")] if spec else []
    for number, (size, steps) in enumerate(stages, start=1):
        last = number == len(stages)
        fine = size.isdecimal() and int(size) > 0 and (not steps if last else steps.isdecimal() and int(steps) > 0)
        require(fine, "train.block_schedule", spec, "write SIZE:STEPS,...,SIZE, the last without, as in 1:500,4:500,32")
    return tuple((int(size), int(steps or 0)) for size, steps in stages)
