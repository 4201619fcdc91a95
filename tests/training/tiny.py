"""A tiny network, process and batch, shared by the tests of objectives, steps and trainer."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax

from mdlm_jax.config import RunConfig
from mdlm_jax.core.process import Process
from mdlm_jax.core.schedules import Linear
from mdlm_jax.models.config import TransformerConfig
from mdlm_jax.training.state import TrainState, state_shardings

VOCAB, MASK, LENGTH = 13, 12, 8
NETWORK = TransformerConfig(VOCAB, VOCAB, layers=1, d_model=16, heads=2, kv_heads=2, d_ff=32)
TIMED = dataclasses.replace(NETWORK, conditioning="time")


def process(mixing=0.0, eps=1e-3):
    return Process(VOCAB, MASK, mixing, Linear(eps))


def run_config(**sections):
    """A `RunConfig` with fields changed: ``run_config(train={"microbatches": 2})``."""
    base = RunConfig()
    return RunConfig(**{n: dataclasses.replace(getattr(base, n), **fields) for n, fields in sections.items()})


def weights(objective, seed=0):
    """Random trainable parameters large enough for the loss to depend on the context."""
    rng = np.random.default_rng(seed)
    shapes = jax.eval_shape(objective.init, jax.random.key(0))
    return jax.tree.map(lambda leaf: jnp.asarray(0.4 * rng.standard_normal(leaf.shape, np.float32)), shapes)


def batch(rows, seed=0, prompts=True):
    """Rows with, if ``prompts``, a prompt that noise must not touch and padding at the end, of varying lengths."""
    rng = np.random.default_rng(seed)
    tokens = rng.integers(0, VOCAB - 1, (rows, LENGTH)).astype(np.int32)
    noise = np.ones((rows, LENGTH), bool)
    if prompts:
        places = np.arange(LENGTH)
        noise = (places >= rng.integers(0, 3, (rows, 1))) & (places < rng.integers(4, LENGTH + 1, (rows, 1)))
    attention = np.ones((rows, LENGTH), np.int32)
    positions = np.broadcast_to(np.arange(LENGTH, dtype=np.int32), tokens.shape).copy()
    return {"tokens": tokens, "attention_mask": attention, "positions": positions, "noise_mask": noise,
            "loss_mask": noise.copy()}


def state(objective, optimizer: optax.GradientTransformation, mesh, ema=False) -> TrainState:
    """A `TrainState` of `weights` on a mesh."""
    trainable = weights(objective)
    average = jax.tree.map(jnp.copy, trainable) if ema else None
    made = TrainState(jnp.zeros((), jnp.int32), trainable, optimizer.init(trainable), average)
    return jax.device_put(made, state_shardings(objective, optimizer, ema, mesh))
