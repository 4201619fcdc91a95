"""The command line of launch.plan: what it refuses, without jax, in one line."""

import importlib.util

import pytest

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
    (("--topology=v5e:4x4x4",), "2 sizes, as in v5e:16x16"),
    (("--topology=v5e:4x4", "--num_slices=0"), "num_slices=0"),
    (("--topology=v5e:4x4", "--config.train.mesh=fsdp:8"), "makes 8 devices and 1 x v5e:4x4 has 16"),
    (("--topology=v5e:4x4", "--step=encode"), "--step=encode: choose train or decode"),
    (("--topology=v5e:4x4", "--rows=16"), "--rows=16: of a decoding step"),
    (("--topology=v5e:4x4", "--step=decode", "--rows=0"), "--rows=0: must be at least 1"),
    (("--topology=v5e:4x4", "--step=decode", "--rows=6"), "the mesh splits rows over 4 devices; make it a multiple"),
    (("--topology=v5e:4x4", "--step=decode", "--slots=16"), "--window=32: more than the 16 slots"),
    (("--topology=v5e:4x4", "--json=/nowhere/at/all.json"), "its folder does not exist"),
))
def test_refusals(recipe, arguments, message):
    commands.assert_refused(commands.run("launch.plan", recipe, *arguments), message)


@pytest.mark.skipif(importlib.util.find_spec("libtpu") is not None, reason="libtpu is installed")
def test_without_libtpu_it_names_the_extra(recipe):
    done = commands.run("launch.plan", recipe, "--topology=v5e:4x4")
    commands.assert_refused(done, "--topology=v5e:4x4", "pip install 'mdlm_jax[tpu]'")
