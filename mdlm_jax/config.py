"""The run configuration: typed, frozen, checked at construction, free of jax.

A config file (``configs/*.py``) returns an ``ml_collections.ConfigDict`` made by ``default_config``; the command line
edits it; ``freeze`` turns it into the dataclasses below, which every other module receives. Impossible values are
refused here, so a mistake costs milliseconds and never a compilation. Each error names the field, the value and the
remedy.
"""

import dataclasses
import math
from collections.abc import Mapping
from typing import NamedTuple

from mdlm_jax.errors import ConfigError
from mdlm_jax.errors import require as _require
from mdlm_jax.model_config import ModelConfig


class Choice(NamedTuple):
    """One name that a field takes, with its numbers; `--help` prints form and meaning, errors the example."""

    form: str
    example: str
    meaning: str


def _choices(*rows: tuple[str, str, str]) -> dict[str, Choice]:
    return {form.partition(":")[0]: Choice(form, example, meaning) for form, example, meaning in rows}


SCHEDULES = _choices(
    ("linear", "linear", "a = 1 - t; MDLM calls it log-linear"),
    ("cosine", "cosine", "a = cos(pi t / 2)"),
    ("cosine_mask", "cosine_mask", "a = 1 - sin(pi t / 2), the cosine of MaskGIT and MD4"),
    ("polynomial:POWER", "polynomial:2", "a = 1 - t^POWER"),
    ("geometric:SIGMA_MIN,SIGMA_MAX", "geometric:1e-3,20", "-log alpha = SIGMA_MIN^(1-t) SIGMA_MAX^t (SEDD), no eps"),
)
OBJECTIVES = _choices(
    ("nelbo", "nelbo", "the bound: count if process.mixing=0, else continuous"),
    ("count", "count", "the masked bound by the number of masks, exact at both ends"),
    ("continuous", "continuous", "the continuous-time bound, for any mixing"),
    ("discrete:T", "discrete:100", "the bound of a process of T steps, for any mixing"),
    ("genmd4:W", "genmd4:1", "the masked bound with a learned schedule a token, alpha = 1 - t^w with w = W at first"),
)
TIME_SAMPLINGS = _choices(
    ("auto", "auto", "antithetic where the rows of a device make pairs, else stratified"),
    ("iid", "iid", "independent levels"),
    ("stratified", "stratified", "one level in each of batch_size equal parts"),
    ("antithetic", "antithetic", "stratified pairs of u and 1 - u"),
)
LEVEL_LAWS = _choices(
    ("uniform", "uniform", "every noise level alike"),
    ("cosine", "cosine", "heavy noise more often, as MaskGIT"),
    ("band:LOW,HIGH", "band:0.3,0.8", "levels between the two only; no bound"),
    ("fixed:RATIO", "fixed:0.15", "one level, as BERT; no bound"),
)
WEIGHTINGS = _choices(
    ("elbo", "elbo", "the bound's own weight"),
    ("constant", "constant", "every corrupted token counts alike; no bound"),
    ("power:P", "power:0.5", "level^-P; no bound"),
    ("clipped:MAX", "clipped:10", "1 / level, but at most MAX; no bound"),
)
MESH_AXES = ("replica", "fsdp", "expert", "context", "tensor")
BATCH_AXES = ("replica", "fsdp", "expert")  # those that split the rows of a batch


def _require_seed(field: str, seed: int) -> None:
    _require(0 <= seed < 2**32, field, seed, "must lie in [0, 2^32)")


def parse_spec(field: str, spec: str, choices: Mapping[str, Choice]) -> tuple[str, tuple[float, ...]]:
    """Splits ``"name"`` or ``"name:1.5,2"`` into its name and its numbers, as many as the name's example has."""
    name, colon, tail = spec.partition(":")
    _require(name in choices, field, spec, f"choose one of {', '.join(choices)}")
    try:
        numbers = tuple(float(part) for part in tail.split(",")) if colon else ()
    except ValueError:
        raise ConfigError(f"{field}={spec!r}: what follows the colon must be numbers, as in '{name}:0.5'") from None
    _require(all(math.isfinite(n) for n in numbers), field, spec, "its numbers must be finite")
    example = choices[name].example
    count = len(example.split(",")) if ":" in example else 0
    _require(len(numbers) == count, field, spec, f"takes {count or 'no'} number(s), as in '{example}'")
    return name, numbers


def parse_mesh(spec: str) -> dict[str, int]:
    """``"fsdp:-1,tensor:2"`` as a size for each of `MESH_AXES`; one -1 takes the devices left over."""
    sizes = dict.fromkeys(MESH_AXES, 1)
    for part in spec.split(","):
        axis, _, size = part.partition(":")
        _require(axis in MESH_AXES, "train.mesh", spec, f"axes are {', '.join(MESH_AXES)}, as in 'fsdp:-1,tensor:2'")
        _require(size.lstrip("-").isdigit() and (int(size) > 0 or int(size) == -1), "train.mesh", spec,
                 "sizes are positive integers, or -1 for the devices left over")
        sizes[axis] = int(size)
    _require(list(sizes.values()).count(-1) <= 1, "train.mesh", spec, "at most one axis may be -1")
    return sizes


@dataclasses.dataclass(frozen=True)
class ProcessConfig:
    """The noise: how a clean token becomes mask or a random token."""

    mixing: float = 0.0  # share of uniform noise: 0 masked (MDLM), 1 uniform (UDLM), between them XDLM
    schedule: str = "linear"  # how alpha(t) = (1 - eps) a(t) + eps, the chance of being kept, falls; one of SCHEDULES
    eps: float = 1e-3  # alpha(1), the chance that a token survives to t=1; may be 0 (not used by geometric)

    def __post_init__(self):
        _require(0.0 <= self.mixing <= 1.0, "process.mixing", self.mixing, "must lie in [0, 1]")
        _require(0.0 <= self.eps < 0.5, "process.eps", self.eps, "must lie in [0, 0.5); 1e-3 is usual")
        name, numbers = parse_spec("process.schedule", self.schedule, SCHEDULES)
        if name == "polynomial":
            _require(numbers[0] > 0, "process.schedule", self.schedule, "the power must be positive")
        if name == "geometric":
            _require(0 < numbers[0] < numbers[1] <= 80, "process.schedule", self.schedule,
                     "needs 0 < sigma_min < sigma_max <= 80, beyond which float32 knows no exp(-sigma)")
            _require(self.eps == ProcessConfig.eps, "process.eps", self.eps,
                     "has no meaning with the geometric schedule, whose ends are its two sigmas; leave it out")


@dataclasses.dataclass(frozen=True)
class DataConfig:
    """Where the tokens come from. The same fields, the same tokens: batch(step) is a pure function of them."""

    source: str = "stdlib"  # stdlib | a file, folder or .jsonl path | tfds:NAME[/CONFIG] | language:NAME
    data_dir: str = ""  # tfds only: the prepared data_dir
    text_field: str = "text"  # jsonl and tfds only: which field holds the text
    tokenizer: str = "byte"  # byte | bpe:VOCAB_SIZE (at most; trained on the training split) | path of a tokenizer.json
    length: int = 256  # tokens a row
    packing: str = "concat"  # concat: rows cross document ends | documents: attention stops at them
    valid_fraction: float = 0.05  # share of the documents held out, by a hash of their names (tfds: its own split)
    seed: int = 0  # order of the rows

    def __post_init__(self):
        _require(bool(self.source), "data.source", self.source, "must be stdlib, a path, tfds:NAME or language:NAME")
        _require(self.length >= 2, "data.length", self.length, "must be at least 2")
        _require_seed("data.seed", self.seed)
        _require(0.0 < self.valid_fraction < 1.0, "data.valid_fraction", self.valid_fraction, "must lie in (0, 1)")
        _require(self.packing in ("concat", "documents"), "data.packing", self.packing, "choose concat or documents")
        if self.tokenizer == "bpe" or self.tokenizer.startswith("bpe:"):
            size = self.tokenizer.partition(":")[2]
            _require(size.isdigit() and 260 <= int(size) <= 1_000_000, "data.tokenizer", self.tokenizer,
                     "write bpe:VOCAB_SIZE with a size from 260 to 1000000, as in bpe:4096")
        if self.text_field != DataConfig.text_field:
            _require(self.source.startswith("tfds:") or self.source.endswith((".jsonl", ".jsonl.gz")),
                     "data.text_field", self.text_field,
                     f"is read only from .jsonl files and tfds, not from {self.source!r}; leave it out")
        if self.data_dir:
            _require(self.source.startswith("tfds:"), "data.data_dir", self.data_dir,
                     f"is read only with data.source=tfds:NAME, not with {self.source!r}; leave it out")


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """The optimisation, by AdamW. Losses are in nats per token."""

    steps: int = 1000  # optimiser steps; may be raised on an existing run
    batch_size: int = 32  # rows a step, over all devices
    microbatches: int = 1  # gradient accumulation: batch_size must be a multiple
    objective: str = "nelbo"  # what is minimised; one of OBJECTIVES
    time_sampling: str = "auto"  # how the noise levels of a batch hang together; one of TIME_SAMPLINGS
    level_law: str = "uniform"  # law of the noise level; one of LEVEL_LAWS
    weighting: str = "elbo"  # how much a corrupted token counts, by the noise level; one of WEIGHTINGS
    complementary: bool = False  # antithetic pairs also share the positions: one masks what the other shows
    half_head: bool = True  # run the head on half the slots where antithetic counts allow it
    learning_rate: float = 3e-4  # peak, after the warm-up
    warmup_steps: int = 100  # linear rise to the learning rate
    lr_schedule: str = "cosine"  # after warm-up: cosine (to a tenth) | constant | linear (to zero)
    b1: float = 0.9  # decay of Adam's mean of the gradient
    b2: float = 0.999  # decay of Adam's mean of its square
    weight_decay: float = 0.0  # decoupled, on matrices only
    clip_norm: float = 1.0  # largest global norm of the gradient
    ema_decay: float = 0.999  # 0: no moving average
    checkpoint_every: int = 500  # steps; the last step is always kept
    keep_checkpoints: int = 2  # the newest so many
    log_every: int = 10  # steps between records in metrics.jsonl
    mesh: str = "fsdp:-1"  # axis:size,... over replica, fsdp, expert, context, tensor; one may be -1
    head_budget: int = 1 << 22  # logits alive at once per device in the loss; fewer cost time, not exactness
    seed: int = 0  # weights and noise

    def __post_init__(self):
        for name in ("steps", "batch_size", "microbatches", "log_every", "checkpoint_every", "keep_checkpoints",
                     "head_budget"):
            _require(getattr(self, name) > 0, f"train.{name}", getattr(self, name), "must be positive")
        _require(self.batch_size % self.microbatches == 0, "train.microbatches", self.microbatches,
                 f"must divide train.batch_size={self.batch_size}")
        _require_seed("train.seed", self.seed)
        name, numbers = parse_spec("train.objective", self.objective, OBJECTIVES)
        if name == "discrete":
            _require(numbers[0] >= 1 and numbers[0] == int(numbers[0]), "train.objective", self.objective,
                     "the number of steps must be a positive integer")
        if name == "genmd4":
            _require(numbers[0] > 0, "train.objective", self.objective, "the initial power must be positive")
        parse_spec("train.time_sampling", self.time_sampling, TIME_SAMPLINGS)
        law, levels = parse_spec("train.level_law", self.level_law, LEVEL_LAWS)
        _require(all(0 <= level <= 1 for level in levels), "train.level_law", self.level_law, "levels lie in [0, 1]")
        if law == "band":
            _require(levels[0] < levels[1], "train.level_law", self.level_law, "needs LOW < HIGH")
        if law == "fixed":
            _require(0 < levels[0] < 1, "train.level_law", self.level_law, "the ratio must lie in (0, 1)")
        weighting, numbers = parse_spec("train.weighting", self.weighting, WEIGHTINGS)
        if weighting == "power":
            _require(abs(numbers[0]) <= 5, "train.weighting", self.weighting, "the power must lie in [-5, 5]")
        if weighting == "clipped":
            _require(numbers[0] > 0, "train.weighting", self.weighting, "the largest weight must be positive")
        if law == "fixed" or (law == "band" and levels != (0.0, 1.0)):
            _require(weighting != "elbo", "train.weighting", self.weighting,
                     f"train.level_law={self.level_law!r} leaves out noise levels, so no weight makes it a bound; "
                     "set train.weighting to constant, power:P or clipped:MAX")
        _require(self.learning_rate > 0, "train.learning_rate", self.learning_rate, "must be positive")
        _require(0 <= self.warmup_steps <= self.steps, "train.warmup_steps", self.warmup_steps,
                 f"must lie in [0, train.steps={self.steps}]")
        _require(self.lr_schedule in ("cosine", "constant", "linear"), "train.lr_schedule", self.lr_schedule,
                 "choose cosine, constant or linear")
        for name in ("b1", "b2", "ema_decay"):
            _require(0.0 <= getattr(self, name) < 1.0, f"train.{name}", getattr(self, name), "must lie in [0, 1)")
        _require(self.weight_decay >= 0, "train.weight_decay", self.weight_decay, "must not be negative")
        _require(self.clip_norm > 0, "train.clip_norm", self.clip_norm, "must be positive")
        parse_mesh(self.mesh)


@dataclasses.dataclass(frozen=True)
class EvalConfig:
    """The held-out bound, with the averaged weights."""

    every: int = 500  # steps between held-out evaluations during training
    rows: int = 64  # held-out rows in each of them
    final_rows: int = 512  # held-out rows after the last step (fewer if there are fewer)
    draws: int = 4  # noise draws a row

    def __post_init__(self):
        for field in dataclasses.fields(self):
            _require(getattr(self, field.name) > 0, f"eval.{field.name}", getattr(self, field.name), "must be positive")


@dataclasses.dataclass(frozen=True)
class SampleConfig:
    """What is drawn after the last step, and by launch.sample unless it is told otherwise."""

    num: int = 4  # how many samples
    steps: int = 64  # denoising steps, one network call each
    temperature: float = 1.0  # below 1 sharper, 0 greedy
    top_p: float = 1.0  # draw from the likeliest tokens that hold this much probability
    top_k: int = 0  # draw from the so many likeliest tokens; 0: from all
    guidance: float = 0.0  # launch.sample only: strength w of unsupervised guidance towards the prompt; 0: none
    seed: int = 0  # the same seed gives the same samples

    def __post_init__(self):
        _require_seed("sample.seed", self.seed)
        _require(self.num > 0, "sample.num", self.num, "must be positive")
        _require(self.steps > 0, "sample.steps", self.steps, "must be positive")
        _require(self.temperature >= 0, "sample.temperature", self.temperature, "must not be negative; 0 is greedy")
        _require(0.0 < self.top_p <= 1.0, "sample.top_p", self.top_p, "must lie in (0, 1]")
        _require(self.top_k >= 0, "sample.top_k", self.top_k, "must not be negative; 0 draws from all tokens")
        _require(self.guidance >= 0, "sample.guidance", self.guidance, "must not be negative; 0 is none")


@dataclasses.dataclass(frozen=True)
class RunConfig:
    """Everything that determines a run."""

    process: ProcessConfig = ProcessConfig()
    model: ModelConfig = ModelConfig()
    data: DataConfig = DataConfig()
    train: TrainConfig = TrainConfig()
    eval: EvalConfig = EvalConfig()
    sample: SampleConfig = SampleConfig()

    def __post_init__(self):
        _require(self.sample.guidance == 0, "sample.guidance", self.sample.guidance,
                 "guides towards a prompt, which a run's own samples do not have; leave it to launch.sample")
        objective, _ = parse_spec("train.objective", self.train.objective, OBJECTIVES)
        if objective in ("count", "genmd4"):
            _require(self.process.mixing == 0.0, "train.objective", self.train.objective,
                     f"is defined for the masked process only, and process.mixing={self.process.mixing}; "
                     "use continuous or discrete:T")
        if objective == "discrete":
            _require(not self.process.schedule.startswith("geometric"), "process.schedule", self.process.schedule,
                     f"leaves noise at t=0, which train.objective={self.train.objective} cannot measure")
        if objective == "genmd4":
            _require((self.process.schedule, self.process.eps) == (ProcessConfig.schedule, ProcessConfig.eps),
                     "process.schedule", self.process.schedule,
                     f"train.objective={self.train.objective} learns its schedule; leave process.schedule and eps out")
            _require(not self.model.moe_balance_loss and not self.model.moe_z_loss, "train.objective",
                     self.train.objective, "does not train routers; leave model.moe_balance_loss and moe_z_loss out")
        _require(self.model.attention not in ("two_stream", "permutation"), "model.attention", self.model.attention,
                 "needs inputs that no training objective makes yet; choose bidirectional, causal or block_causal")
        if objective in ("discrete", "genmd4"):
            _require(self.train.weighting == "elbo", "train.weighting", self.train.weighting,
                     f"train.objective={self.train.objective} has only its own weight; use elbo")
        if self.train.complementary:
            _require(self.process.mixing == 0.0 and objective in ("nelbo", "count"), "train.complementary", True,
                     "needs process.mixing=0 and train.objective=count")
            _require(self.train.time_sampling in ("auto", "antithetic"), "train.complementary", True,
                     "needs train.time_sampling=antithetic")


def default_config():
    """A locked ``ConfigDict`` with every field of ``RunConfig`` at its default; config files start from it."""
    from ml_collections import ConfigDict

    return ConfigDict(dataclasses.asdict(RunConfig())).lock()


def freeze(config) -> RunConfig:
    """The checked, frozen form of a ``ConfigDict`` or of a nested dict (as read back from ``config.json``).

    Raises:
      ConfigError: an unknown section or field, a value of the wrong type, or an impossible value.
    """
    raw = config.to_dict() if hasattr(config, "to_dict") else dict(config)
    for name, section in raw.items():
        _require(isinstance(section, dict), name, section, "must be a section, that is a dict of fields")
    sections = {field.name: field.default.__class__ for field in dataclasses.fields(RunConfig)}
    _reject_unknown("", raw, sections)
    return RunConfig(**{name: _freeze_section(name, cls, raw.get(name, {})) for name, cls in sections.items()})


def _freeze_section(name: str, cls, raw: dict):
    types = {field.name: type(field.default) for field in dataclasses.fields(cls)}
    _reject_unknown(f"{name}.", raw, types)
    return cls(**{key: _coerce(f"{name}.{key}", value, types[key]) for key, value in raw.items()})


def _coerce(field: str, value, kind: type):
    if kind is float and type(value) is int:
        value = float(value)
    _require(type(value) is kind, field, value, f"must be of type {kind.__name__}")
    if kind is float:
        _require(math.isfinite(value), field, value, "must be finite")
    return value


def _reject_unknown(prefix: str, raw: dict, known) -> None:
    import difflib

    for key in raw:
        if key not in known:
            close = difflib.get_close_matches(key, known, n=1)
            hint = f"did you mean {prefix}{close[0]}?" if close else f"the fields are {', '.join(known)}"
            raise ConfigError(f"{prefix}{key}: there is no such field; {hint}")


def to_dict(config: RunConfig) -> dict:
    """The nested dict that ``freeze`` takes back; this is what ``config.json`` holds."""
    return dataclasses.asdict(config)
