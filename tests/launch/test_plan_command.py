"""The command line of launch.plan: what it refuses, without jax, in one line."""

import importlib.util
import json

import pytest

from launch import plan
from mdlm_jax.config import ModelConfig, RunConfig
from mdlm_jax.planning.decoding import Blocks
from tests.launch import commands

RECIPE = """
from mdlm_jax.config import default_config

def get_config():
    config = default_config()
    config.model.vocab_size = 1000
    return config
"""


@pytest.fixture
def recipe(tmp_path):
    path = tmp_path / "recipe.py"
    path.write_text(RECIPE)
    return f"--config={path}"


def test_help():
    done = commands.run("launch.plan", "--help")
    assert done.status == 0 and "--topology=NAME" in done.out and "jax" not in done.imported


@pytest.mark.parametrize(("arguments", "message"), (
    ((), "--topology is missing"),
    (("--topology=v5x:4x4",), "generations are v4, v5e"),
    (("--topology=v5e:4x4", "--compile=0", "--config.train.lora_rank=4", "--config.train.init_from=x"),
     "train.lora_rank=4: arithmetic knows no adapters"),
    (("--topology=v5e:4x4x4",), "2 sizes, as in v5e:16x16"),
    (("--topology=v5e:4x4", "--num_slices=0"), "num_slices=0"),
    (("--topology=v5e:4x4", "--config.train.mesh=fsdp:8"), "makes 8 devices and 1 x v5e:4x4 has 16"),
    (("--topology=v5e:4x4", "--step=encode"), "--step=encode: choose train or decode"),
    (("--topology=v5e:4x4", "--rows=16"), "--rows=16: of a decoding step"),
    (("--topology=v5e:4x4", "--step=decode", "--rows=0"), "--rows=0: must be at least 1"),
    (("--topology=v5e:4x4", "--step=decode", "--rows=6"), "the mesh splits rows over 4 devices; make it a multiple"),
    (("--topology=v5e:4x4", "--step=decode", "--slots=16"), "--window=32: more than the 16 slots"),
    (("--topology=v5e:4x4", "--json=/nowhere/at/all.json"), "its folder does not exist"),
    (("--topology=v5e:4x4", "--picture=/nowhere/at/all.png"), "--picture=/nowhere/at/all.png: its folder"),
    (("--topology=v5e:4x4", "--picture=plan.pdf"), "--picture=plan.pdf: its name must end in .png"),
    (("--topology=v5p-500",), "choose v5p-384 (v5p:4x4x12) or v5p-512 (v5p:4x8x8)"),
    (("--topology=v5e:4x4", "--tokens=3Q"), "--tokens=3Q: must be a number, as in 2.3e12, 300B or 2.3T"),
    (("--topology=v5e:4x4", "--tokens=0"), "--tokens=0: must be positive"),
    (("--topology=v5e:4x4", "--efficiency=1.5"), "--efficiency=1.5: must lie in (0, 1]"),
    (("--topology=v5e:4x4", "--compile=2"), "--compile=2: without --search"),
    (("--topology=v5e:4x4", "--compile=-1"), "--compile=-1: must be at least 0"),
    (("--topology=v5e:4x4", "--search", "--config.train.mesh=fsdp:-1"), "--search chooses the mesh"),
    (("--topology=v5e:4x4", "--search", "--step=decode"), "--search=True: of a training step; drop --step=decode"),
    (("--topology=v5e:4x4", "--step=decode", "--compile=0", "--rows=16", "--slots=64"), "always compiled, once"),
    (("--topology=h100:8x2", "--compile=1"), "--compile=1: nothing is compiled for h100"),
    (("--topology=h100:8x2", "--step=decode", "--slots=64"), "--step=decode: nothing is compiled for h100"),
    (("--topology=h100:8x2", "--num_slices=2"), "--num_slices=2: of TPUs"),
    (("--topology=h100:8x3",), "which 24 devices cannot share evenly"),
))
def test_refusals(recipe, arguments, message):
    commands.assert_refused(commands.run("launch.plan", recipe, *arguments), message)


@pytest.mark.skipif(importlib.util.find_spec("libtpu") is not None, reason="libtpu is installed")
def test_without_libtpu_it_names_the_extra(recipe):
    done = commands.run("launch.plan", recipe, "--topology=v5e:4x4")
    commands.assert_refused(done, "--topology=v5e:4x4", "pip install 'mdlm_jax[tpu]', or add --compile=0")
    done = commands.run("launch.plan", recipe, "--topology=v5e:4x4", "--step=decode")
    commands.assert_refused(done, "--topology=v5e:4x4", "pip install 'mdlm_jax[tpu]'")
    assert "--compile" not in done.err


def test_gpus_by_arithmetic_without_jax(recipe, tmp_path):
    out, picture = tmp_path / "plan.json", tmp_path / "plan.png"
    done = commands.run("launch.plan", recipe, "--topology=h100:8x2", "--tokens=1e9", "--efficiency=0.4",
                        f"--json={out}")
    assert done.status == 0, done.err
    assert "by arithmetic, nothing compiled" in done.out and "at  40% of the bound" in done.out
    assert not done.imported.intersection(commands.HEAVY)
    found = json.loads(out.read_text())
    assert found["arithmetic"] and found["budget"]["tokens"] == 1e9 and found["budget"]["chips"] == 16
    drawn = commands.run("launch.plan", recipe, "--topology=h100:8x2", f"--picture={picture}")
    assert drawn.status == 0 and picture.is_file() and "jax" not in drawn.imported


def test_a_search_without_the_compiler(recipe, tmp_path):
    out = tmp_path / "plan.json"
    done = commands.run("launch.plan", recipe, "--topology=v5e:4x4", "--search", "--compile=0", f"--json={out}")
    assert done.status == 0, done.err
    assert done.out.startswith("searched ") and "flags      --config.train.mesh=" in done.out
    assert not done.imported.intersection(commands.HEAVY)
    found = json.loads(out.read_text())
    assert found["mesh"] == found["search"][0]["mesh"] and found["compiled"] == []


def test_what_does_not_fit_has_status_1(recipe):
    done = commands.run("launch.plan", recipe, "--topology=v5e:1x1", "--compile=0", "--config.model.d_model=8192",
                        "--config.model.layers=64")
    assert done.status == 1 and "does not fit" in done.out


def test_another_mesh_than_the_config_s_is_said(recipe, capsys):
    plan.main([recipe, "--topology=v5litepod-16", "--compile=0"])
    out = capsys.readouterr().out
    assert "note       planned for the topology's own mesh; the config says train.mesh=fsdp:-1. Give " in out
    assert "--config.train.mesh=replica:4,fsdp:4 to the run, or" in out
    for flag in ("--config.train.mesh=fsdp:-1", "--search"):
        plan.main([recipe, "--topology=v5litepod-16", "--compile=0", flag])
        assert "planned for" not in capsys.readouterr().out


def test_a_search_where_nothing_fits_has_status_1_and_recommends_nothing(tmp_path, capsys):
    out = tmp_path / "plan.json"
    assert plan.main(["--config=llada_8b", "--topology=v5litepod-8", "--search", "--compile=0", f"--json={out}"]) == 1
    text = capsys.readouterr().out
    assert "misfit     nothing fits: the best, " in text and "might fit  v5e:4x4, 16 devices (v5litepod-16)" in text
    assert not {"flags", "budget"}.intersection(line.partition(" ")[0] for line in text.splitlines())
    assert json.loads(out.read_text())["compiled"] == []


def test_steps_follow_from_tokens(capsys):
    assert plan.main(["--config=llada_8b", "--topology=v5p-512", "--compile=0", "--tokens=300B"]) == 0
    text = capsys.readouterr().out
    assert "budget     300B tokens on 256 chips: train.steps=57221" in text  # 300e9 / (1280 x 4096)


@pytest.mark.parametrize(("arguments", "message"), (
    (("--cache=all",), "--cache=all: is of decoding; add --step=decode"),
    (("--step=decode", "--prompt=64", "--topology=v5e:4x4"), "--prompt=64: goes with --cache"),
    (("--step=decode", "--cache=kv"), "--cache=kv: choose of none, prefix, dual, block, or all"),
    (("--step=decode", "--cache=all", "--topology=v5e:4x4"), "--topology=v5e:4x4: --cache counts FLOPs"),
    (("--step=decode", "--cache=all", "--prompt=65"), "--prompt=65: must be a multiple of the block, --window=32"),
    (("--step=decode", "--cache=dual", "--new_tokens=0"), "--new_tokens=0: must be at least 1"),
    (("--step=decode", "--cache=dual", "--per_forward=64"), "--per_forward=64: must be at most a block"),
    (("--step=decode", "--cache=dual", "--json=/nowhere/at/all.json"), "its folder does not exist"),
))
def test_refusals_of_caches(recipe, arguments, message):
    done = commands.run("launch.plan", recipe, *arguments)
    assert done.status == 2 and message in done.err and "jax" not in done.imported


def test_each_cache_is_announced_before_it_is_compiled(monkeypatch, capsys):
    from launch import _planning
    from mdlm_jax.planning import block_decoding, report

    def compiled(network, blocks, cache):
        assert capsys.readouterr().err == f"compiling  the forwards with cache={cache} ...\n"
        return cache

    monkeypatch.setattr(block_decoding, "plan", compiled)
    monkeypatch.setattr(report, "cache_text", str)
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    config = RunConfig(model=ModelConfig(vocab_size=64))
    _planning.run_caches(config, Blocks(1, 64, 64, 32, 1), ("none", "block"), None)
