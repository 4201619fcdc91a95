"""The run configuration: typed, frozen, checked at construction, free of jax.

A config file (``configs/*.py``) returns an ``ml_collections.ConfigDict`` made by ``default_config``; the command line
edits it; ``freeze`` turns it into the dataclasses below, which every other module receives. Impossible values are
refused here, so a mistake costs milliseconds and never a compilation. Each error names the field, the value and the
remedy.
"""

from mdlm_jax.config.choices import (
    CHAT_TEMPLATES,
    DETOKENIZERS,
    DIVERGENCES,
    LEVEL_LAWS,
    LR_SCHEDULES,
    OBJECTIVES,
    OPTIMIZERS,
    SCHEDULES,
    TIME_SAMPLINGS,
    WEIGHTINGS,
    Choice,
    parse_spec,
)
from mdlm_jax.config.data import DataConfig
from mdlm_jax.config.evaluation import EvalConfig, SampleConfig
from mdlm_jax.config.log import LogConfig
from mdlm_jax.config.mesh import BATCH_AXES, MESH_AXES, parse_mesh
from mdlm_jax.config.model import ModelConfig
from mdlm_jax.config.process import ProcessConfig
from mdlm_jax.config.recipes import recipe
from mdlm_jax.config.run import RunConfig, default_config, freeze, to_dict
from mdlm_jax.config.train import TrainConfig, parse_block_schedule
from mdlm_jax.errors import ConfigError

__all__ = [
    "BATCH_AXES",
    "CHAT_TEMPLATES",
    "Choice",
    "ConfigError",
    "DETOKENIZERS",
    "DIVERGENCES",
    "DataConfig",
    "EvalConfig",
    "LEVEL_LAWS",
    "LR_SCHEDULES",
    "LogConfig",
    "MESH_AXES",
    "ModelConfig",
    "OBJECTIVES",
    "OPTIMIZERS",
    "ProcessConfig",
    "RunConfig",
    "SCHEDULES",
    "SampleConfig",
    "TIME_SAMPLINGS",
    "TrainConfig",
    "WEIGHTINGS",
    "default_config",
    "freeze",
    "parse_block_schedule",
    "parse_mesh",
    "parse_spec",
    "recipe",
    "to_dict",
]
