"""The training state: one pytree, its layout on a mesh, its initial value."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from mdlm_jax.models.sharding import replicated
from mdlm_jax.training import adapters
from mdlm_jax.training.objectives.base import Objective


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TrainState:
    """Everything a step changes, and what it only reads.

    ``step``, the number of steps done, also says where the data and the noise are. ``frozen`` are the network's weights
    where something else trains (`adapters`), else None.
    """

    step: jax.Array
    trainable: dict
    optimizer: optax.OptState
    ema: dict | None
    frozen: dict | None = None


def init_state(
    objective: Objective, optimizer: optax.GradientTransformation, use_ema: bool, key: jax.Array,
    plan: adapters.Plan | None = None,
) -> TrainState:
    """Fresh parameters, zero moments, and the average equal to the parameters."""
    trainable, frozen = adapters.split(plan, objective.network, objective.init(key), key)
    ema = jax.tree.map(jnp.copy, trainable) if use_ema else None
    return TrainState(jnp.zeros((), jnp.int32), trainable, optimizer.init(trainable), ema, frozen)


def state_shardings(
    objective: Objective, optimizer: optax.GradientTransformation, use_ema: bool, mesh: Mesh,
    plan: adapters.Plan | None = None,
) -> TrainState:
    """A `NamedSharding` at each leaf: weights by their logical axes, moments and average like their weights."""
    return _layout(_shapes(objective, optimizer, use_ema, plan), objective, mesh, plan)


def _shapes(objective, optimizer: optax.GradientTransformation, use_ema: bool, plan) -> TrainState:
    return jax.eval_shape(lambda: init_state(objective, optimizer, use_ema, jax.random.key(0), plan))


def _layout(shapes: TrainState, objective: Objective, mesh: Mesh, plan: adapters.Plan | None) -> TrainState:
    whole: Any = replicated(mesh)  # shardings in the places of arrays
    network, frozen = adapters.shardings(plan, objective.network, mesh, objective.twin)
    weights = jax.tree.map(lambda _: whole, shapes.trainable) | network
    moments = _like_their_weights(shapes.optimizer, shapes.trainable, weights, whole)
    return TrainState(whole, weights, moments, None if shapes.ema is None else weights, frozen)


def _like_their_weights(moments, trainable: dict, weights: dict, whole):
    """The layout of each leaf of the optimiser's state: that of the weight whose path its own ends with.

    optax's own map over parameters cannot be used: it does not know rules that leave weights out by their names.
    """
    known = {}
    for (path, leaf), layout in zip(jax.tree.leaves_with_path(trainable), jax.tree.leaves(weights), strict=True):
        known[_keys(path)] = (leaf.shape, layout)

    def layout_of(path, leaf):
        keys = _keys(path)
        for start in range(len(keys)):
            shape, layout = known.get(keys[start:], (None, None))
            if shape == leaf.shape:
                return layout
        return whole

    return jax.tree.map_with_path(layout_of, moments)


def _keys(path) -> tuple[str, ...]:
    return tuple(jax.tree_util.keystr((key,), simple=True) for key in path)


def sharded_init(
    objective: Objective, optimizer: optax.GradientTransformation, use_ema: bool, mesh: Mesh, seed: int,
    plan: adapters.Plan | None = None,
) -> TrainState:
    """`init_state` compiled so that each device makes only its own part."""
    make = jax.jit(
        lambda: init_state(objective, optimizer, use_ema, jax.random.key(seed), plan),
        out_shardings=state_shardings(objective, optimizer, use_ema, mesh, plan),
    )
    return make()


def abstract_state(
    objective: Objective, optimizer: optax.GradientTransformation, use_ema: bool, mesh: Mesh,
    plan: adapters.Plan | None = None,
) -> TrainState:
    """``ShapeDtypeStruct``s with shardings: the target of a checkpoint restore."""
    shapes = _shapes(objective, optimizer, use_ema, plan)
    return jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), shapes,
                        _layout(shapes, objective, mesh, plan))
