"""A whole run: its sections, what they demand of each other, and how a ``ConfigDict`` becomes one."""

import dataclasses
import math

from mdlm_jax.config.choices import OBJECTIVES, parse_spec
from mdlm_jax.config.data import DataConfig
from mdlm_jax.config.evaluation import EvalConfig, SampleConfig
from mdlm_jax.config.log import LogConfig
from mdlm_jax.config.model import ModelConfig
from mdlm_jax.config.names import nearest
from mdlm_jax.config.objectives import check_objective
from mdlm_jax.config.process import ProcessConfig
from mdlm_jax.config.train import TrainConfig
from mdlm_jax.errors import ConfigError, require

REPORT_SECTIONS = ("eval", "sample", "log")  # they change what is reported, never the weights
HOW_FIELDS = ("train.mesh", "train.microbatches", "train.head_budget", "train.log_every", "train.checkpoint_every",
              "train.keep_checkpoints", "train.keep_every", "train.keep_best", "train.max_bad_steps", "model.remat",
              "model.backend")  # how a model is made, not which


@dataclasses.dataclass(frozen=True)
class RunConfig:
    """Everything that determines a run."""

    process: ProcessConfig = ProcessConfig()
    model: ModelConfig = ModelConfig()
    data: DataConfig = DataConfig()
    train: TrainConfig = TrainConfig()
    eval: EvalConfig = EvalConfig()
    sample: SampleConfig = SampleConfig()
    log: LogConfig = LogConfig()

    def __post_init__(self):
        require(self.sample.guidance == 0 or self.train.class_dropout > 0, "sample.guidance", self.sample.guidance,
                 "guides towards a prompt, which a run's own samples do not have, or towards a class, with "
                 "train.class_dropout; leave it to launch.sample")
        if self.train.keep_best:
            require(self.train.checkpoint_every % self.eval.every == 0, "train.keep_best", self.train.keep_best,
                     f"needs the bound at every checkpoint: eval.every={self.eval.every} must divide "
                     f"train.checkpoint_every={self.train.checkpoint_every}")
        objective, _ = parse_spec("train.objective", self.train.objective, OBJECTIVES)
        if objective in ("count", "genmd4"):
            noise = "family=gidd" if self.process.family == "gidd" else f"mixing={self.process.mixing}"
            require(self.process.masked_only, "train.objective", self.train.objective,
                     f"is defined for the masked process only, and process.{noise}; use continuous or discrete:T")
        if objective == "discrete":
            require(not self.process.schedule.startswith("geometric"), "process.schedule", self.process.schedule,
                     f"leaves noise at t=0, which train.objective={self.train.objective} cannot measure")
        if objective == "genmd4":
            require((self.process.schedule, self.process.eps) == (ProcessConfig.schedule, ProcessConfig.eps),
                     "process.schedule", self.process.schedule,
                     f"train.objective={self.train.objective} learns its schedule; leave process.schedule and eps out")
            require(not self.model.moe_balance_loss and not self.model.moe_z_loss, "train.objective",
                     self.train.objective, "does not train routers; leave model.moe_balance_loss and moe_z_loss out")
        if objective in ("discrete", "genmd4"):
            require(self.train.weighting == "elbo", "train.weighting", self.train.weighting,
                     f"train.objective={self.train.objective} has only its own weight; use elbo")
        if self.train.complementary:
            require(self.process.masked_only and objective in ("nelbo", "count"), "train.complementary", True,
                     "needs process.mixing=0 and train.objective=count")
            require(self.train.time_sampling in ("auto", "antithetic"), "train.complementary", True,
                     "needs train.time_sampling=antithetic")
        check_objective(self, objective)


def default_config():
    """A locked ``ConfigDict`` with every field of ``RunConfig`` at its default; config files start from it.

    Examples:
      >>> config = default_config()
      >>> config.train.steps = 500
      >>> freeze(config).train.steps
      500
    """
    from ml_collections import ConfigDict

    return ConfigDict(dataclasses.asdict(RunConfig())).lock()


def freeze(config) -> RunConfig:
    """The checked, frozen form of a ``ConfigDict`` or of a nested dict (as read back from ``config.json``).

    Raises:
      ConfigError: an unknown section or field, a value of the wrong type, or an impossible value.
    Examples:
      >>> freeze({"train": {"batch_size": 8}}).train.batch_size
      8
      >>> freeze({"train": {"batchsize": 8}})
      Traceback (most recent call last):
      mdlm_jax.errors.ConfigError: train.batchsize: there is no such field; did you mean train.batch_size?
    """
    raw = config.to_dict() if hasattr(config, "to_dict") else dict(config)
    for name, section in raw.items():
        require(isinstance(section, dict), name, section, "must be a section, that is a dict of fields")
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
    require(type(value) is kind, field, value, f"must be of type {kind.__name__}")
    if kind is float:
        require(math.isfinite(value), field, value, "must be finite")
    return value


def _reject_unknown(prefix: str, raw: dict, known) -> None:
    for key in raw:
        if key not in known:
            close = nearest(key, known)
            hint = (f"did you mean {' or '.join(prefix + one for one in close)}?" if close
                    else f"the fields are {', '.join(known)}")
            raise ConfigError(f"{prefix}{key}: there is no such field; {hint}")


def to_dict(config: RunConfig) -> dict:
    """The nested dict that ``freeze`` takes back; this is what ``config.json`` holds."""
    return dataclasses.asdict(config)
