"""Every optimiser on a mesh: what trains, what does not, and a state saved in the background while the run goes on."""

import jax
import numpy as np
import pytest

from mdlm_jax.config import TrainConfig
from mdlm_jax.core.process import Process
from mdlm_jax.models.config import TransformerConfig
from mdlm_jax.models.sharding import make_mesh
from mdlm_jax.training import optimizers
from mdlm_jax.training.checkpoints import Checkpoints
from mdlm_jax.training.objectives.count import CountObjective
from mdlm_jax.training.state import abstract_state, sharded_init
from mdlm_jax.training.step import make_train_step

NETWORK = TransformerConfig(259, 259, layers=2, d_model=32, heads=4, kv_heads=4, d_ff=64)
KINDS = {"tokens": np.int32, "attention_mask": np.int32, "positions": np.int32, "noise_mask": bool, "loss_mask": bool}


def paths(tree) -> dict:
    return {jax.tree_util.keystr(path, simple=True, separator="/"): np.asarray(leaf)
            for path, leaf in jax.tree.leaves_with_path(jax.device_get(tree))}


@pytest.mark.parametrize("settings", [
    {"optimizer": "muon"}, {"optimizer": "lion"}, {"freeze": "network/embedding,network/layers/mlp/*"},
    {"optimizer": "muon", "freeze": "network/layers/attention/*"}], ids=["muon", "lion", "frozen", "both"])
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
