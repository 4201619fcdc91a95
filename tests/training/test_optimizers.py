"""Every optimiser on a mesh: what trains, what does not, and a state saved in the background while the run goes on."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mdlm_jax.config import ConfigError, TrainConfig
from mdlm_jax.core.process import Process
from mdlm_jax.models.config import TransformerConfig
from mdlm_jax.models.sharding import make_mesh
from mdlm_jax.training import optimizers
from mdlm_jax.training.checkpoints import Checkpoints
from mdlm_jax.training.objectives.count import CountObjective
from mdlm_jax.training.state import abstract_state, sharded_init
from mdlm_jax.training.step import make_train_step
from tests.marks import slow_unless

NETWORK = TransformerConfig(259, 259, layers=2, d_model=32, heads=4, kv_heads=4, d_ff=64)
KINDS = {"tokens": np.int32, "attention_mask": np.int32, "positions": np.int32, "noise_mask": bool, "loss_mask": bool}


def paths(tree) -> dict:
    return {jax.tree_util.keystr(path, simple=True, separator="/"): np.asarray(leaf)
            for path, leaf in jax.tree.leaves_with_path(jax.device_get(tree))}


@pytest.mark.parametrize("eps", [1e-8, 1e-4])
def test_adam_eps_is_what_small_gradients_meet(eps):
    """One step of Adam on a gradient g: g / (|g| + eps) times the rate, whatever the moments' decays."""
    train = TrainConfig(steps=2, warmup_steps=0, lr_schedule="constant", learning_rate=0.5, adam_eps=eps)
    rule, grads = optimizers.optimizer(train), {"w": jnp.asarray([1e-6, -1e-8, 3e-4])}
    weights = jax.tree.map(jnp.zeros_like, grads)
    updates, _ = rule.update(grads, rule.init(weights), weights)
    g = np.asarray(grads["w"])
    np.testing.assert_allclose(updates["w"], -0.5 * g / (np.abs(g) + eps), rtol=1e-4)


def test_adam_eps_is_refused_where_nothing_reads_it():
    with pytest.raises(ConfigError, match="train.adam_eps=1e-09: is not read by train.optimizer=lion"):
        TrainConfig(optimizer="lion", adam_eps=1e-9)
    with pytest.raises(ConfigError, match="train.adam_eps=0.0: must be positive"):
        TrainConfig(adam_eps=0.0)


@pytest.mark.parametrize("settings", slow_unless([
    {"optimizer": "muon"}, {"optimizer": "lion"}, {"freeze": "network/embedding,network/layers/mlp/*"},
    {"optimizer": "muon", "freeze": "network/layers/attention/*"},
], "both", ids=["muon", "lion", "frozen", "both"]))
def test_on_a_mesh_and_saved_while_it_goes_on(settings, tmp_path):
    mesh, objective = make_mesh({"fsdp": 4, "tensor": 2}), CountObjective(NETWORK, Process(259, 256), data_shards=4)
    train = TrainConfig(steps=5, batch_size=8, warmup_steps=1, **settings)
    rule = optimizers.optimizer(train)
    step, state = make_train_step(objective, rule, train, mesh), sharded_init(objective, rule, True, mesh, 0)
    batch = {name: np.ones((8, 16), kind) for name, kind in KINDS.items()}
    before = paths(state.trainable)
    moments = [leaf for leaf in jax.tree.leaves(state.optimizer) if leaf.ndim > 1 and leaf.shape[-1] > 1]
    assert all(not leaf.sharding.is_fully_replicated for leaf in moments if leaf.size > 100)
    for _ in range(2):
        state, _ = step(state, batch)
    stayed = {path for path, leaf in paths(state.trainable).items() if (leaf == before[path]).all()}
    frozen = optimizers.frozen_mask(train, before) if train.freeze else {}
    assert stayed == {path for path, is_frozen in paths(frozen).items() if is_frozen}
    checkpoints = Checkpoints(tmp_path)
    checkpoints.begin_save(2, state, {}, {})
    state, _ = step(state, batch)  # donates what is being saved
    checkpoints.wait()
    restored = checkpoints.restore(abstract_state(objective, rule, True, mesh))
    again, _ = step(restored.tree, batch)
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(again), jax.device_get(state))
