"""The train step of a run, lowered for a mesh without weights, data or devices."""


import jax
import jax.numpy as jnp

from mdlm_jax.config import RunConfig
from mdlm_jax.errors import ConfigError
from mdlm_jax.models.config import TransformerConfig
from mdlm_jax.models.sharding import batch_sharding, data_shards
from mdlm_jax.planning import estimate
from mdlm_jax.training import adapters, optimizers
from mdlm_jax.training.build import build_network, build_objective, build_process
from mdlm_jax.training.objectives.base import Objective
from mdlm_jax.training.state import abstract_state
from mdlm_jax.training.step import make_train_step

BATCH = {"tokens": jnp.int32, "attention_mask": jnp.int32, "positions": jnp.int32, "noise_mask": bool,
         "loss_mask": bool}


def network_of(config: RunConfig) -> TransformerConfig:
    """The network with as many ids as the model has rows; the tokenizer is not read."""
    return build_network(config, estimate.network_of(config).vocab_size)


def objective_of(config: RunConfig, mesh) -> tuple[Objective, list[str]]:
    if config.train.twin:
        raise ConfigError(f"train.twin={config.train.twin!r}: its files are not read for a plan, and both networks "
                          "stay; plan the run of train.init_from")
    network = network_of(config)
    process = build_process(config, network.vocab_size, min(network.vocab_size, network.head_size) - 1)
    return build_objective(config, network, process, data_shards(mesh))


def lower(config: RunConfig, objective: Objective, mesh):
    """`jax.stages.Lowered` of one optimisation step."""
    optimizer = optimizers.optimizer(config.train)
    state = abstract_state(objective, optimizer, config.train.ema_decay > 0, mesh, adapters.of(config.train))
    shape, layout = (config.train.batch_size, config.data.length), batch_sharding(mesh)
    batch = {name: jax.ShapeDtypeStruct(shape, kind, sharding=layout) for name, kind in BATCH.items()}
    if objective.network.classes:
        batch["label"] = jax.ShapeDtypeStruct(shape[:1], jnp.int32, sharding=layout)
    return make_train_step(objective, optimizer, config.train, mesh).lower(state, batch)
