"""A run that starts from the weights of another."""

import json
import random

import pytest

from launch._weights import loaded
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


@pytest.mark.slow
def test_a_run_goes_on_from_another_s_weights(tmp_path):
    long = [*SETTINGS, "--config.train.steps=150", "--config.train.learning_rate=0.01", "--config.train.ema_decay=0"]
    first = commands.run("launch.train", *long, f"--workdir={tmp_path / 'one'}")
    assert first.status == 0, first.err
    second = commands.run("launch.train", *SETTINGS, "--config.train.ema_decay=0", f"--workdir={tmp_path / 'two'}",
                          f"--config.train.init_from={tmp_path / 'one'}")
    assert second.status == 0, second.err
    assert first_loss(tmp_path / "two") < first_loss(tmp_path / "one") - 0.1


def plain(tmp_path):
    """A recipe of the defaults, a text, and the flags of a run on it that trains its own tokenizer."""
    recipe, text = tmp_path / "plain.py", tmp_path / "text.txt"
    recipe.write_text("from mdlm_jax.config import default_config as get_config\n")
    rng = random.Random(0)
    words = ["mask", "token", "noise", "time", "clean", "bound", "count", "pair", "row"]
    text.write_text("".join(f"{n}: {' '.join(rng.choices(words, k=12))}\n\n" for n in range(600)))
    return [f"--config={recipe}", f"--config.data.source={text}", "--config.data.tokenizer=bpe:300",
            "--config.data.length=16", "--config.data.valid_fraction=0.3", "--config.train.steps=1",
            "--config.train.batch_size=4", "--config.train.warmup_steps=0", "--config.eval.rows=4",
            "--config.eval.final_rows=4", "--config.sample.num=1", "--config.sample.steps=1"]


def test_the_checkpoint_gives_the_network_and_the_tokenizer(tmp_path):
    """Small by flags of the first run; the second names neither them nor the tokenizer, and has another text."""
    flags = plain(tmp_path)
    small = ["--config.model.layers=1", "--config.model.d_model=16", "--config.model.heads=2", "--config.model.d_ff=24"]
    first, second = tmp_path / "first", tmp_path / "second"
    done = commands.run("launch.train", *flags, *small, f"--workdir={first}")
    assert done.status == 0, done.err
    (tmp_path / "text.txt").write_text("Andere Wörter stehen hier, und neue Paare gäbe es.\n\n" * 400)
    start = [*flags, f"--config.train.init_from={first}"]
    done = commands.run("launch.train", *start, "--config.model.dropout=0.1", f"--workdir={second}")
    assert done.status == 0, done.err
    assert f"starting from {first}, step 1\n" in done.out and "drawing 1 sample(s) in 1 steps" in done.out
    assert f"data.tokenizer=bpe:300: no new one is trained; that of {first} is taken" in done.out
    assert (second / "tokenizer.json").read_bytes() == (first / "tokenizer.json").read_bytes()
    models = [json.loads((folder / "config.json").read_text())["model"] for folder in (first, second)]
    assert models[1] == models[0] | {"dropout": 0.1}

    wide = commands.run("launch.train", *start, "--config.model.d_ff=32", "--dry_run")
    commands.assert_refused(wide, f"train.init_from='{first}': model.d_ff is 24 there and 32 here; leave them out")
    other = commands.run("launch.train", *start, "--config.data.tokenizer=byte", "--dry_run")
    commands.assert_refused(other, "data.tokenizer='byte': is another tokenizer than that of", f"{first}/tokenizer")
    same = commands.run("launch.train", *start, f"--config.data.tokenizer={first / 'tokenizer.json'}", "--dry_run")
    assert same.status == 0, same.err


def test_an_empty_folder_is_refused(tmp_path):
    done = commands.run("launch.train", *SETTINGS, f"--config.train.init_from={tmp_path}", "--dry_run")
    commands.assert_refused(done, f"train.init_from='{tmp_path}': {tmp_path} holds no checkpoint; give a Hugging")


@pytest.mark.slow
def test_weights_of_another_network_are_refused(tmp_path):
    done = commands.run("launch.train", *SETTINGS, f"--workdir={tmp_path / 'one'}")
    assert done.status == 0, done.err
    network = TransformerConfig(19, 19, layers=2, d_model=32, heads=2, kv_heads=2, d_ff=128)
    with pytest.raises(ConfigError, match=r"train.init_from=.*: .* is \[.*\] there and \[.*\] in this run"):
        loaded("init_from", str(tmp_path / "one"), network, make_mesh({"fsdp": 8}))
    missing = commands.run("launch.train", *SETTINGS, f"--workdir={tmp_path / 'two'}",
                           "--config.train.init_from=/nowhere")
    commands.assert_refused(missing, "train.init_from='/nowhere': there is no such directory")
