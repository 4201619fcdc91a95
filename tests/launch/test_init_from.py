"""A run that starts from the weights of another."""

import json

import pytest

from launch._weights import starting_weights
from mdlm_jax.config import ConfigError
from mdlm_jax.models.config import TransformerConfig
from mdlm_jax.models.sharding import make_mesh
from tests.launch import commands

SETTINGS = ["--config=oracle", "--config.data.source=language:copy", "--config.train.batch_size=8",
            "--config.model.layers=1", "--config.model.d_model=32", "--config.model.heads=2", "--config.eval.rows=8",
            "--config.eval.final_rows=8", "--config.sample.num=1", "--config.sample.steps=2", "--config.train.steps=2",
            "--config.train.warmup_steps=1", "--config.train.log_every=1"]


def first_loss(workdir):
    with open(workdir / "metrics.jsonl") as file:
        return json.loads(file.readline())["loss"]


def test_a_run_goes_on_from_another_s_weights(tmp_path):
    long = [*SETTINGS, "--config.train.steps=150", "--config.train.learning_rate=0.01", "--config.train.ema_decay=0"]
    first = commands.run("launch.train", *long, f"--workdir={tmp_path / 'one'}")
    assert first.status == 0, first.err
    second = commands.run("launch.train", *SETTINGS, "--config.train.ema_decay=0", f"--workdir={tmp_path / 'two'}",
                          f"--config.train.init_from={tmp_path / 'one'}")
    assert second.status == 0, second.err
    assert first_loss(tmp_path / "two") < first_loss(tmp_path / "one") - 0.1


def test_weights_of_another_network_are_refused(tmp_path):
    done = commands.run("launch.train", *SETTINGS, f"--workdir={tmp_path / 'one'}")
    assert done.status == 0, done.err
    network = TransformerConfig(19, 19, layers=2, d_model=32, heads=2, kv_heads=2, d_ff=128)
    with pytest.raises(ConfigError, match=r"train.init_from=.*: .* is \[.*\] there and \[.*\] in this run"):
        starting_weights(str(tmp_path / "one"), network, make_mesh({"fsdp": 8}))
    missing = commands.run("launch.train", *SETTINGS, f"--workdir={tmp_path / 'two'}",
                           "--config.train.init_from=/nowhere")
    commands.assert_refused(missing, "train.init_from='/nowhere': there is no such directory")
