"""Causal networks made diffusion ones here (`models.adapt`), in the files of their family.

Their model_type is that of the base with ``a2d-`` before it, so that no program takes them for causal ones; what
differs stands in the section ``mdlm_jax`` of their ``config.json``.
"""

from typing import Any

from mdlm_jax.errors import ConfigError
from mdlm_jax.models.config import TransformerConfig
from mdlm_jax.models.hf.fields import Fields

_PREFIX = "a2d-"


def base(raw: dict) -> str:
    """The model_type of the causal network."""
    return str(raw.get("model_type", "")).removeprefix(_PREFIX)


def is_causal(config: TransformerConfig) -> bool:
    """Whether the base itself can say the network: causal, rows shifted, a column for every row of the table."""
    return (config.attention, config.logit_shift, config.head_size) == ("causal", True, config.vocab_size)


def read(fields: Fields, raw: dict) -> dict[str, Any]:
    """What differs from the base: attention, block_length, logit_shift, head_size, where they are said."""
    changes = fields.ours(attention=str, block_length=int, logit_shift=bool, head_size=int)
    model_type = str(raw.get("model_type", ""))
    if model_type.startswith(_PREFIX) and not changes:
        raise ConfigError(f"config.json: model_type={model_type!r} without a section mdlm_jax, which says whether rows "
                          'are shifted; add "mdlm_jax": {"attention": "bidirectional", "logit_shift": false}')
    return changes


def fields(config: TransformerConfig, kind: str) -> dict[str, Any]:
    """The fields of a ``config.json`` that say an adapted network of base ``kind``."""
    section = {"attention": config.attention, "block_length": config.block_length, "logit_shift": config.logit_shift,
               "head_size": config.head_size}
    return {"architectures": ["DiffusionLanguageModel"], "model_type": _PREFIX + kind, "mdlm_jax": section}
