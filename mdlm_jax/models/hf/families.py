"""Which family a ``config.json`` is of, and which ``config.json`` says a network. The only list of families."""

import dataclasses
import json
from pathlib import Path
from typing import Any

from mdlm_jax.errors import ConfigError
from mdlm_jax.models.config import TransformerConfig
from mdlm_jax.models.hf import gpt2, llada, llada2, llada_moe, llama, mdlm, smdm
from mdlm_jax.models.hf.rules import Description, Family, differences

FAMILIES = {
    module.FAMILY.name: module.FAMILY for module in (llada, llama, llada_moe, llada2, gpt2, smdm, mdlm)
}


def describe(directory: Path | str) -> Description:
    """What the ``config.json`` of a directory says, with the ids of its ``generation_config.json`` where that has more.

    Raises:
      ConfigError: no such file, no known family, or a field that asks for what is not computed here.
    """
    path = Path(directory) / "config.json"
    description = read(read_json(path), path)
    generation = Path(directory) / "generation_config.json"
    if not generation.is_file():
        return description
    more = read_json(generation)
    found: dict[str, Any] = {}
    for name in ("mask", "bos", "eos", "pad"):
        value = more.get(f"{name}_token_id")
        value = value[0] if isinstance(value, list) and value else value
        if getattr(description, f"{name}_id") is None and isinstance(value, int):
            found[f"{name}_id"] = value
    return dataclasses.replace(description, **found)


def is_hf(directory: Path) -> bool:
    """Whether a directory is a Hugging Face checkpoint: its ``config.json`` names a model_type."""
    config = directory / "config.json"
    return config.is_file() and "model_type" in read_json(config)


def of_preset(config: TransformerConfig) -> Description:
    """The description of a published network whose files came without a ``config.json``, with its family's ids."""
    return read(write_fields(family_of(config, {})))


def read(raw: dict, path: Path | str = "config.json") -> Description:
    """What a ``config.json`` says; every ConfigError begins with its ``path``."""
    try:
        return identify(raw).read(raw)
    except ValueError as error:  # a ConfigError, or a value that the network refuses
        raise ConfigError(f"{path}: {str(error).removeprefix('config.json: ')}") from None


def identify(raw: dict) -> Family:
    """The family whose ``config.json`` this is."""
    for family in FAMILIES.values():
        if family.matches(raw):
            return family
    raise ConfigError(f"config.json: model_type={raw.get('model_type')!r} is of no family known here; they are "
                      f"{', '.join(FAMILIES)}")


def write_fields(description: Description) -> dict:
    """The ``config.json`` of a description, checked: reading it must give the same network.

    Raises:
      ConfigError: its family cannot say this network; the message names the fields.
    """
    differing = _lost(description)
    if differing:
        raise ConfigError(f"family {description.family}: cannot say this network; change what differs: "
                          f"{'; '.join(differing)}")
    return FAMILIES[description.family].write(description)


def family_of(config: TransformerConfig, ids: dict[str, Any]) -> Description:
    """The description of a network in the first family that can say it.

    Raises:
      ConfigError: none can; the message says what the nearest would lose.
    """
    descriptions = [Description(config, name, **ids) for name in FAMILIES]
    losses = [_lost(description) for description in descriptions]
    nearest = min(range(len(losses)), key=lambda i: len(losses[i]))
    if losses[nearest]:
        raise ConfigError("config: no family of Hugging Face checkpoints can say this network; change what differs in "
                          f"the nearest, {descriptions[nearest].family}, {'; '.join(losses[nearest])}")
    return descriptions[nearest]


def _lost(description: Description) -> list[str]:
    """What of a network its family's ``config.json`` does not say."""
    family = FAMILIES[description.family]
    if family.experts != (description.config.moe is not None):
        return ["it has experts and this network has none, or the other way round"] * 99  # farther than any other
    raw = family.write(description)
    try:
        return differences(architecture(read(raw).config), architecture(description.config))
    except ConfigError as error:
        return [str(error)]


def architecture(config: TransformerConfig) -> TransformerConfig:
    """The configuration without what a run chooses: dtype, remat, backend, dropout and loss coefficients."""
    plain = dataclasses.replace(config, dtype="float32", remat="none", backend="xla", dropout=0.0)
    if config.moe is None:
        return plain
    return dataclasses.replace(plain, moe=dataclasses.replace(config.moe, balance_loss=0.0, z_loss=0.0))


def read_json(path: Path) -> dict:
    """A JSON object from a file."""
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path}: cannot be read ({error}); copy or download it again") from None
    if not isinstance(raw, dict):
        raise ConfigError(f"{path}: must hold a JSON object")
    return raw
