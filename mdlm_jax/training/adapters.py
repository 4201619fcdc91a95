"""Runs in which the network's weights stay as they are: what trains in their place, and how the two make a model.

The weights stay in `TrainState.frozen`; moments and moving averages are of what trains alone. With ``train.lora_rank``
low-rank adapters (`models.lora`) train under the name ``adapters``, nested as the weights are; the average is taken of
A and of B, not of their product. With the objectives ``joint``, ``planner``, ``prism`` and ``codd`` something small
beside it does (`training.beside`), under the name ``joint``, ``quality`` or ``circuit``. Every function here takes None
for a plan, and then all trains.
"""

import dataclasses

import jax
from flax import traverse_util
from jax.sharding import Mesh

from mdlm_jax.config import ConfigError, TrainConfig
from mdlm_jax.config.train import beside
from mdlm_jax.models import api, lora
from mdlm_jax.models.config import TransformerConfig
from mdlm_jax.models.lora import Lora
from mdlm_jax.training.beside import declares

STREAM = 2  # of the run's seed, for fresh adapters


@dataclasses.dataclass(frozen=True)
class Beside:
    """The small network of ``objective`` trains, beside a network that stays."""

    objective: str


Plan = Lora | Beside


def of(train: TrainConfig) -> Plan | None:
    """What ``train.objective``, ``lora_rank``, ``lora_alpha`` and ``lora_targets`` say."""
    if beside(train.objective):
        return Beside(train.objective)
    if not train.lora_rank:
        return None
    return Lora(train.lora_rank, train.lora_alpha, tuple(map(str.strip, train.lora_targets.split(","))))


def split(plan: Plan | None, network: TransformerConfig, weights: dict, key: jax.Array) -> tuple[dict, dict | None]:
    """(what trains, what stays) of fresh ``weights``: what an `Objective` gave, its network among them.

    Raises:
      ConfigError: a pattern of ``train.lora_targets`` that no matrix of the network fits.
    """
    if plan is None:
        return weights, None
    others = {name: leaf for name, leaf in weights.items() if name != "network"}
    if isinstance(plan, Beside):
        return others, {"network": weights["network"]}
    try:
        fresh = lora.init(plan, network, jax.random.fold_in(key, STREAM))
    except ConfigError as error:
        raise ConfigError(str(error).replace("lora.", "train.lora_", 1)) from None
    return {"adapters": _nested(fresh)} | others, {"network": weights["network"]}


def join(plan: Plan | None, trainable: dict, frozen: dict | None) -> dict:
    """The weights as an `Objective` takes them, differentiable in ``trainable``."""
    return _joined(plan, trainable, frozen, lora.apply)


def merged(plan: Plan | None, trainable: dict, frozen: dict | None) -> dict:
    """The same once and for all, to measure, sample and export."""
    return _joined(plan, trainable, frozen, lora.merge)


def shardings(plan: Plan | None, network: TransformerConfig, mesh: Mesh) -> tuple[dict, dict | None]:
    """A ``NamedSharding`` at each leaf of what trains of the network, and of what stays."""
    whole = {"network": api.shardings(network, mesh)}
    if plan is None:
        return whole, None
    if isinstance(plan, Beside):
        module, config = declares(plan.objective, network)
        return {beside(plan.objective): module.shardings(config, mesh)}, whole
    return {"adapters": _nested(lora.shardings(plan, network, mesh))}, whole


def _joined(plan, trainable, frozen, add) -> dict:
    if plan is None:
        return trainable
    if isinstance(plan, Beside):
        return trainable | frozen
    others = {name: leaf for name, leaf in trainable.items() if name != "adapters"}
    pairs = traverse_util.flatten_dict(trainable["adapters"], is_leaf=lambda _, node: set(node) == {"a", "b"}, sep="/")
    return others | {"network": add(plan, frozen["network"], pairs)}


def _nested(adapters: dict) -> dict:
    return traverse_util.unflatten_dict(adapters, sep="/")
