"""One optimisation step, compiled for a mesh."""

import dataclasses

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from mdlm_jax.config import TrainConfig
from mdlm_jax.core.loss_parts import LossTotals
from mdlm_jax.models.moe.routing import RouterStats
from mdlm_jax.models.sharding import batch_sharding, replicated
from mdlm_jax.training import adapters, experts
from mdlm_jax.training.objectives.base import Objective
from mdlm_jax.training.optimizers import stop_frozen
from mdlm_jax.training.state import TrainState, state_shardings

NOISE_STREAM = 1  # the run's seed gives weights (stream 0) and noise (stream 1)


def make_train_step(
    objective: Objective, optimizer: optax.GradientTransformation, train: TrainConfig, mesh: Mesh
) -> jax.stages.Wrapped:
    """``step(state, batch) -> (state, metrics)``; the state is donated.

    The gradient is that of (sum of per-token losses) / (number of tokens) over the whole batch, whatever the number of
    microbatches; with ``train.per_answer`` that of the mean over rows of each row's mean. One term is not such a sum:
    experts' balance losses are products of means, and those of each microbatch are weighed by its tokens. Experts'
    selection biases then take a step of ``train.router_bias_rate`` against the load of the whole batch. A step whose
    loss or gradient is not finite changes nothing but the step's number: the optimiser's own count stays. metrics:
    ``totals`` (`LossTotals`), ``grad_norm``, ``update_norm``, ``finite``, and where rows have one noise level
    ``by_level`` (`Objective.by_level`).
    """
    layout = state_shardings(objective, optimizer, train.ema_decay > 0, mesh, adapters.of(train))
    rows = batch_sharding(mesh)

    def step(state: TrainState, batch: dict) -> tuple[TrainState, dict]:
        key = jax.random.fold_in(jax.random.fold_in(jax.random.key(train.seed), NOISE_STREAM), state.step)
        with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
            grads, totals, router, by_level = _accumulate(objective, state, batch, key, train)
        grads = jax.tree.map(lambda g: g / totals.count, grads)
        updates, optimizer_state = optimizer.update(grads, state.optimizer, state.trainable)
        trainable = optax.apply_updates(state.trainable, updates)
        if train.router_bias_rate:
            trainable = experts.balance(trainable, router, train.router_bias_rate)
        ema = None if state.ema is None else _average(state.ema, trainable, state.step, train.ema_decay)
        metrics = {"totals": totals, "grad_norm": optax.tree.norm(grads), "update_norm": optax.tree.norm(updates)}
        metrics["finite"] = jnp.isfinite(totals.mean()) & jnp.isfinite(metrics["grad_norm"])
        if by_level is not None:
            metrics["by_level"] = by_level
        before = dataclasses.replace(state, step=state.step + 1)
        after = dataclasses.replace(before, trainable=trainable, optimizer=optimizer_state, ema=ema)
        return jax.tree.map(lambda new, old: jnp.where(metrics["finite"], new, old), after, before), metrics

    return jax.jit(step, in_shardings=(layout, rows), out_shardings=(layout, replicated(mesh)), donate_argnums=(0,))


def _accumulate(objective: Objective, state: TrainState, batch: dict, key: jax.Array, train: TrainConfig):
    """Summed gradients, totals, routers' sums and sums by noise level over the microbatches, one after the other."""
    microbatches, plan = train.microbatches, adapters.of(train)
    total_rows = batch["tokens"].shape[0]

    def one(piece, rows) -> tuple[dict, LossTotals, RouterStats | None, jax.Array | None]:
        def summed(trainable):
            weights = adapters.join(plan, stop_frozen(train, trainable), state.frozen)
            parts = objective.loss(weights, piece, key, rows, total_rows)
            parts = parts.per_answer() if train.per_answer else parts
            return parts.objective(), (parts.totals(), parts.router, objective.by_level(parts, key, rows, total_rows))

        grads, sums = jax.grad(summed, has_aux=True)(state.trainable)
        return grads, *sums

    rows = jnp.arange(total_rows, dtype=jnp.int32)
    if microbatches == 1:
        return one(batch, rows)
    group = 2 if objective.coupling == "antithetic" else 1
    pieces = jax.tree.map(lambda x: _interleaved(x, microbatches, group), (batch, rows))
    first = jax.tree.map(lambda x: x[0], pieces)
    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), jax.eval_shape(one, *first))
    return jax.lax.scan(lambda sums, piece: (jax.tree.map(jnp.add, sums, one(*piece)), None), zeros, pieces)[0]


def _interleaved(x: jax.Array, microbatches: int, group: int) -> jax.Array:
    """[B, ...] -> [microbatches, B / microbatches, ...], strided: no row leaves its device, no ``group`` is split."""
    strided = x.reshape(x.shape[0] // (group * microbatches), microbatches, group, *x.shape[1:])
    return jnp.moveaxis(strided, 1, 0).reshape(microbatches, x.shape[0] // microbatches, *x.shape[1:])


def _average(ema: dict, trainable: dict, step: jax.Array, decay: float) -> dict:
    """Exponential moving average with the usual warm-up, decay = min(d, (1 + n) / (10 + n))."""
    n = step.astype(jnp.float32)
    now = jnp.minimum(decay, (1.0 + n) / (10.0 + n))
    return jax.tree.map(lambda old, new: now * old + (1.0 - now) * new, ema, trainable)
