"""A run of adapters on another run's weights, by the commands: trained, sampled from, loaded, exported."""

import json

import numpy as np
import pytest

import mdlm_jax
from tests.launch import commands
from tests.launch.test_init_from import SETTINGS

LORA = ["--config.train.lora_rank=2", "--config.train.lora_targets=*/attention/*"]


@pytest.mark.slow
def test_adapters_from_end_to_end(tmp_path):
    base, run = tmp_path / "base", tmp_path / "run"
    done = commands.run("launch.train", *SETTINGS, f"--workdir={base}")
    assert done.status == 0, done.err
    lora = [*SETTINGS, *LORA, f"--config.train.init_from={base}", "--config.train.learning_rate=0.05",
            f"--workdir={run}"]
    done = commands.run("launch.train", *lora)
    assert done.status == 0, done.err
    held, trained = (json.loads((run / "summary.json").read_text())["parameters"][name] for name in ("held", "trained"))
    assert trained == 4 * 2 * (32 + 32)  # query, key, value and out, a layer of 32
    assert f"train.lora_rank=2: {trained:,} of {held:,} parameters train" in done.out
    assert json.loads((run / "summary.json").read_text())["training"]["flops"] > 0
    assert held == json.loads((base / "summary.json").read_text())["parameters"]["held"] + trained

    sampled = commands.run("launch.sample", f"--checkpoint={run}", "--num=1", "--steps=2")
    assert sampled.status == 0 and "--- sample 1 ---" in sampled.out, sampled.err
    exported = commands.run("launch.convert", f"--from={run}", f"--to={tmp_path / 'hf'}")
    assert exported.status == 0, exported.err
    models = [mdlm_jax.load(path) for path in (base, run, tmp_path / "hf")]
    tokens = np.arange(12)[None] % 5
    scores = [np.asarray(model.logits(tokens)) for model in models]
    assert np.abs(scores[1] - scores[0]).max() > 1e-3
    np.testing.assert_allclose(scores[2], scores[1], atol=1e-5)


@pytest.mark.parametrize(("more", "message"), [
    ((), "train.lora_rank=2: trains adapters of given weights"),
    (("--config.train.init_from=x", "--config.train.optimizer=muon"), "train.optimizer='muon'"),
])
def test_refusals(more, message, tmp_path):
    done = commands.run("launch.train", *SETTINGS, *LORA, *more, f"--workdir={tmp_path / 'run'}")
    commands.assert_refused(done, message)
    assert not (tmp_path / "run").exists()
