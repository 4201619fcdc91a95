"""The published recipes: what their configs say, what a dry run counts, and that they run from prepared rows."""

import json
import random
import re

import pytest

from launch import _configs, train
from launch import plan as plan_command
from mdlm_jax.models import api
from mdlm_jax.training.build import build_network, build_objective, build_process
from tests.launch.commands import run

SHARED = {  # of xdlm's code: every corpus
    "process.mixing": 0.1, "process.eps": 1e-3, "process.schedule": "linear", "model.layers": 12, "model.heads": 12,
    "model.d_model": 768, "model.d_ff": 3072, "model.condition_dim": 128, "model.conditioning": "constant",
    "model.dropout": 0.1, "model.tied": False, "model.dtype": "bfloat16", "train.optimizer": "adamw",
    "train.learning_rate": 3e-4, "train.b1": 0.9, "train.b2": 0.999, "train.adam_eps": 1e-8, "train.weight_decay": 0.0,
    "train.warmup_steps": 2500, "train.lr_schedule": "constant", "train.clip_norm": 1.0, "train.batch_size": 512,
    "train.steps": 1_000_000, "train.ema_decay": 0.9999, "train.seed": 1, "train.time_sampling": "stratified",
    "train.objective": "continuous", "train.weighting": "elbo", "data.packing": "wrapped", "eval.every": 10_000,
}
RECIPES = {  # ids, tokens a row, tokens in all
    "xdlm_owt": (50258, 1024, 524_288_000_000),
    "xdlm_lm1b": (30522, 128, 65_536_000_000),
    "xdlm_text8": (35, 256, 131_072_000_000),
}


def value(config, name):
    section, field = name.split(".")
    return getattr(getattr(config, section), field)


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_says_what_was_published(name):
    config, (ids, length, tokens) = _configs.load(name, {}), RECIPES[name]
    assert {field: value(config, field) for field in SHARED} == SHARED
    assert (config.model.vocab_size, config.model.head_size, config.data.length) == (ids, ids, length)
    assert config.train.steps * config.train.batch_size * length == tokens


@pytest.mark.parametrize("overrides", [{}, {"process.mixing": 0.0, "train.objective": "count",
                                            "train.time_sampling": "auto"}], ids=["mixed", "masked"])
@pytest.mark.parametrize("name", RECIPES)
def test_a_dry_run_counts_what_the_trainer_does(name, overrides):
    config = _configs.load(name, overrides)
    ids = config.model.vocab_size
    network = build_network(config, ids)
    objective, _ = build_objective(config, network, build_process(config, ids, 4), 32)
    flops = objective.train_flops(config.train.batch_size, config.data.length) * config.train.steps
    said = re.fullmatch(r"([\d,]+) parameters, ([\d,]+) tokens in 1,000,000 steps, (\S+) FLOPs",
                        train._size(config, ids)).groups()
    assert said == (f"{api.num_parameters(network):,}", f"{RECIPES[name][2]:,}", f"{flops:.2e}")


def test_gpt2_s_vocabulary_gives_the_170_million_parameters_of_the_paper():
    assert train._size(_configs.load("xdlm_owt", {}), 50258).startswith("169,627,218 parameters")


@pytest.mark.parametrize("name", RECIPES)
def test_a_plan_by_arithmetic_fits_32_chips(name, capsys):
    assert plan_command.main([f"--config={name}", "--topology=v5e:4x8", "--compile=0"]) == 0
    assert "; fits" in capsys.readouterr().out


def test_without_its_rows_a_dry_run_still_counts(tmp_path):
    done = run("launch.train", "--config=xdlm_owt", "--dry_run", cwd=tmp_path)
    assert done.status == 2
    counted, error = done.err.splitlines()
    assert counted == "169,627,218 parameters, 524,288,000,000 tokens in 1,000,000 steps, 4.48e+20 FLOPs"
    assert error.startswith("error: prepared rows in rows/openwebtext: there is no such folder; make it with")
    assert "jax" not in done.imported


@pytest.mark.slow
def test_text8_from_the_characters_to_a_trained_model(tmp_path):
    rng = random.Random(0)
    pieces = ["".join(rng.choice("abc ") for _ in range(256)) for _ in range(60)]
    (tmp_path / "text8.jsonl").write_text("".join(json.dumps({"text": piece}) + "\n" for piece in pieces))
    made = run("launch.prepare", "--source=text8.jsonl", "--valid_last=12", "--tokenizer=text8", "--length=256",
               "--packing=wrapped", "--out=rows/text8", "--workers=1", cwd=tmp_path)
    assert made.status == 0 and "--config.data.packing=wrapped" in made.out, made
    small = ["--config=xdlm_text8", "--config.model.layers=1", "--config.model.d_model=16", "--config.model.d_ff=32",
             "--config.model.heads=2", "--config.model.kv_heads=2", "--config.model.head_dim=8",
             "--config.model.backend=xla", "--config.train.mesh=fsdp:-1",
             "--config.train.steps=2", "--config.train.warmup_steps=1", "--config.train.batch_size=8",
             "--config.sample.steps=4", "--config.sample.num=1", "--config.eval.final_rows=4", "--config.eval.draws=2"]
    dry = run("launch.train", *small, "--dry_run", cwd=tmp_path)
    assert dry.status == 0 and dry.err.startswith("all right: "), dry
    done = run("launch.train", *small, "--workdir=run", cwd=tmp_path)
    assert done.status == 0 and "bits per byte" in done.out.splitlines()[-1], done
