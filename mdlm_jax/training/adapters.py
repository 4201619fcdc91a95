"""Runs in which the network's weights stay as they are: what trains in their place, and how the two make a model.

The weights stay in `TrainState.frozen`; moments and moving averages are of what trains alone. With ``train.lora_rank``
low-rank adapters (`models.lora`) train under the name ``adapters``, nested as the weights are; the average is taken of
A and of B, not of their product. With the objectives ``joint``, ``planner``, ``prism`` and ``codd`` something small
beside it does (`training.beside`), under the name ``joint``, ``quality`` or ``circuit``; with ``maria`` a head on it
and its ``twin``, under the name ``fused``. With those that have a teacher (`sdtt`, `duo`, `di4c`) the weights of the
start stay as ``teacher`` beside the network, or beside its adapters. Every function here takes None for a plan, and
then all trains.
"""

import dataclasses

import jax
import jax.numpy as jnp
from flax import traverse_util
from jax.sharding import Mesh

from mdlm_jax.config import ConfigError, TrainConfig
from mdlm_jax.config.train import beside, is_taught
from mdlm_jax.models import api, lora
from mdlm_jax.models.config import TransformerConfig
from mdlm_jax.models.lora import Lora
from mdlm_jax.training.beside import declares

STREAM = 2  # of the run's seed, for fresh adapters
_STAYS = ("network", "twin")  # where something beside them trains


@dataclasses.dataclass(frozen=True)
class Beside:
    """The small network of ``objective`` trains, beside a network that stays."""

    objective: str


@dataclasses.dataclass(frozen=True)
class Taught:
    """The network trains, or its adapters do, and what it was at the start teaches it."""

    adapters: Lora | None = None


Plan = Lora | Beside | Taught


def of(train: TrainConfig) -> Plan | None:
    """What ``train.objective``, ``lora_rank``, ``lora_alpha`` and ``lora_targets`` say."""
    if beside(train.objective):
        return Beside(train.objective)
    found = None
    if train.lora_rank:
        found = Lora(train.lora_rank, train.lora_alpha, tuple(map(str.strip, train.lora_targets.split(","))))
    return Taught(found) if is_taught(train.objective) else found


def split(plan: Plan | None, network: TransformerConfig, weights: dict, key: jax.Array) -> tuple[dict, dict | None]:
    """(what trains, what stays) of fresh ``weights``: what an `Objective` gave, its network among them.

    Raises:
      ConfigError: a pattern of ``train.lora_targets`` that no matrix of the network fits.
    """
    if plan is None:
        return weights, None
    if isinstance(plan, Taught):
        trains, stays = split(plan.adapters, network, weights, key)
        return trains, {"teacher": weights["network"]} if stays is None else stays
    if isinstance(plan, Beside):
        stays = {name: leaf for name, leaf in weights.items() if name in _STAYS}
        return {name: leaf for name, leaf in weights.items() if name not in stays}, stays
    others = {name: leaf for name, leaf in weights.items() if name != "network"}
    try:
        fresh = lora.init(plan, network, jax.random.fold_in(key, STREAM))
    except ConfigError as error:
        raise ConfigError(str(error).replace("lora.", "train.lora_", 1)) from None
    return {"adapters": _nested(fresh)} | others, {"network": weights["network"]}


def started(plan: Plan | None, trainable: dict, frozen: dict | None, given: dict) -> tuple[dict, dict | None]:
    """What trains and what stays, with the weights ``given`` by name in place of fresh ones; those of a latent, which a
    given network may lack, stay fresh where it does, and are zero in a teacher."""
    begins = {name: trainable[name] | jax.tree.map(_placed_as, leaves, {key: trainable[name][key] for key in leaves})
              for name, leaves in given.items() if name in trainable}
    if isinstance(plan, Taught) and plan.adapters is None:
        network = begins["network"]
        teacher = {name: jax.tree.map(jnp.copy if name in given["network"] else jnp.zeros_like, leaf)
                   for name, leaf in network.items()}
        return trainable | begins, {"teacher": teacher}
    return trainable | begins, None if frozen is None else {name: given[name] for name in frozen}


def _placed_as(leaf: jax.Array, other: jax.Array) -> jax.Array:
    return jax.device_put(leaf, other.sharding)


def join(plan: Plan | None, trainable: dict, frozen: dict | None) -> dict:
    """The weights as an `Objective` takes them, differentiable in ``trainable``."""
    if not isinstance(plan, Taught):
        return _joined(plan, trainable, frozen, lora.apply)
    assert frozen is not None  # the teacher is among what stays
    teacher = frozen["teacher" if plan.adapters is None else "network"]
    return _joined(plan.adapters, trainable, frozen, lora.apply) | {"teacher": teacher}


def merged(plan: Plan | None, trainable: dict, frozen: dict | None) -> dict:
    """The same once and for all, to measure, sample and export; a teacher has done its work."""
    return _joined(plan.adapters if isinstance(plan, Taught) else plan, trainable, frozen, lora.merge)


def shardings(plan: Plan | None, network: TransformerConfig, mesh: Mesh,
              twin: TransformerConfig | None = None) -> tuple[dict, dict | None]:
    """A ``NamedSharding`` at each leaf of what trains of the network, and of what stays, a ``twin`` among it."""
    whole = {"network": api.shardings(network, mesh)}
    if plan is None:
        return whole, None
    if isinstance(plan, Taught):
        trains, stays = shardings(plan.adapters, network, mesh)
        return trains, {"teacher": whole["network"]} if stays is None else stays
    if isinstance(plan, Beside):
        module, config = declares(plan.objective, network, twin)
        stays = whole if twin is None else whole | {"twin": api.shardings(twin, mesh)}
        return {beside(plan.objective): module.shardings(config, mesh)}, stays
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
