"""Small networks that train beside one that stays: what an objective's declares, and what a decoder takes of a run."""

import json
from pathlib import Path
from types import ModuleType
from typing import Any

from mdlm_jax.config import OBJECTIVES, parse_spec
from mdlm_jax.config.model import ModelConfig, from_transformer
from mdlm_jax.config.train import beside
from mdlm_jax.models import circuit, fused, joint, quality
from mdlm_jax.models.config import TransformerConfig
from mdlm_jax.models.twin import Twin

TWIN = "twin.json"  # beside config.json: the model section of the network of train.twin


def declares(objective: str, network: TransformerConfig,
             twin: TransformerConfig | None = None) -> tuple[ModuleType, Any]:
    """The module of `models` that declares the small network of ``objective``, and the configuration it takes."""
    name = beside(objective)
    if name == "fused":
        assert twin is not None
        return fused, fused.FusedConfig(network, twin)
    if name == "circuit":
        return circuit, circuit_config(objective, network)
    return (joint, network) if name == "joint" else (quality, quality_config(objective, network))


def taken(objective: str, network: TransformerConfig, weights: dict, twin: TransformerConfig | None = None,
          start_id: int | None = None) -> dict[str, Any]:
    """{field of a decoder: the small network of a run of ``objective``, with what it reads of ``weights``}.

    ``twin``: the shape of the network of that name among the weights; ``start_id``: what it was fed before a row."""
    name = beside(objective)
    if name not in weights:
        return {}
    if name == "fused":
        assert twin is not None and start_id is not None
        return {name: fused.FusedHead(weights[name], Twin(weights["twin"], twin, start_id),
                                      weights["network"].get("head_bias"))}
    if name == "circuit":
        return {name: circuit.Circuit(weights[name], circuit_config(objective, network))}
    table = weights["network"]["embedding"]
    if name == "quality":
        return {name: quality.QualityHead(weights[name], table, quality_config(objective, network))}
    scope = "block" if network.attention == "block_causal" else "row"
    return {name: joint.JointSampler(weights[name], table, network, number(objective) + 1, scope)}


def quality_config(objective: str, network: TransformerConfig) -> quality.QualityConfig:
    """Of planner:LAYERS and prism:REVEALED, whose head has one layer."""
    kind = objective.partition(":")[0]
    return quality.QualityConfig(network, kind, number(objective) if kind == "planner" else 1)


def circuit_config(objective: str, network: TransformerConfig) -> circuit.CircuitConfig:
    """Of codd:STATES."""
    return circuit.CircuitConfig(number(objective), network.head_size)


def number(objective: str) -> int:
    """The one number of such an objective."""
    return int(parse_spec("train.objective", objective, OBJECTIVES)[1][0])


def twin_file(twin: TransformerConfig) -> str:
    """What `TWIN` holds."""
    return json.dumps(from_transformer(twin), indent=2) + "\n"


def stored_twin(folder: Path) -> TransformerConfig | None:
    """The shape of the twin of a step's folder; None where its run had none."""
    if not (folder / TWIN).is_file():
        return None
    model = ModelConfig(**json.loads((folder / TWIN).read_text(encoding="utf-8")))
    return model.transformer(model.vocab_size)
