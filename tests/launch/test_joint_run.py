"""A joint layer from end to end: a network, what it writes, the layer trained on it, and decoding by both."""

import json
import shutil

import numpy as np
import pytest

import mdlm_jax
from launch import train, trajectories
from mdlm_jax.config import ConfigError
from mdlm_jax.data.trajectories import read
from tests.launch.commands import assert_refused, run

SMALL = ("--config.data.length=6", "--config.train.batch_size=8", "--config.train.warmup_steps=1",
         "--config.eval.final_rows=16", "--config.eval.rows=8", "--config.sample.num=2")


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """base, written and joint below one folder."""
    folder = tmp_path_factory.mktemp("joint")
    network = [f"--config.model.{name}" for name in ("layers=1", "d_model=16", "heads=2")]
    assert train.main(["--config=oracle", f"--workdir={folder / 'base'}", "--config.data.source=language:shuffle",
                       "--config.train.steps=4", *network, *SMALL]) == 0
    assert trajectories.main(write(folder)) == 0
    assert train.main(learn(folder)) == 0
    return folder


def write(folder, *more):
    return [f"--checkpoint={folder / 'base'}", f"--output={folder / 'written'}", "--num=1100", "--length=6",
            "--suppress=7,8", "--batch_size=512", *more]


def learn(folder, *more):
    return ["--config=joint", f"--config.train.init_from={folder / 'base'}", f"--workdir={folder / 'joint'}",
            f"--config.data.source=trajectories:{folder / 'written'}", "--config.train.steps=5", *SMALL, *more]


def test_trajectories_are_rows_written_one_token_after_another(runs):
    tokens, rank = read(runs / "written")
    assert tokens.shape == rank.shape == (1100, 6) and tokens.min() >= 0 and tokens.max() < 6
    np.testing.assert_array_equal(np.sort(rank, axis=1), np.tile(np.arange(6), (1100, 1)))
    assert json.loads((runs / "written" / "meta.json").read_text())["shards"] == 2


def test_the_same_command_makes_what_is_missing_again_bit_for_bit(runs, tmp_path, capsys):
    copy = tmp_path / "copy"
    shutil.copytree(runs, copy)
    before = read(runs / "written")
    (copy / "written" / "00001.npz").unlink()
    shutil.rmtree(copy / "base")
    there = [flag.replace(f"checkpoint={copy}", f"checkpoint={runs}") for flag in write(copy)]
    assert trajectories.main(there) == 0
    for found, expected in zip(read(copy / "written"), before, strict=True):
        np.testing.assert_array_equal(found, expected)
    assert trajectories.main([*there, "--seed=1"]) == 2
    assert "holds trajectories of other settings (seed); choose another folder" in capsys.readouterr().err


def test_the_layer_is_loaded_with_its_network_which_stayed(runs):
    base, model = mdlm_jax.load(runs / "base"), mdlm_jax.load(runs / "joint")
    for name in base.params:
        for found, expected in zip(*map(_leaves, (model.params[name], base.params[name])), strict=True):
            np.testing.assert_array_equal(found, expected)
    assert base.joint is None and model.joint.most == 4 and np.any(np.asarray(model.joint.params["gain"]))
    answers = model.generate([np.zeros(0, np.int32)] * 3, new_tokens=6, decoder="adjust", max_length=6, stop_id=None)
    assert [len(one.tokens) for one in answers] == [6] * 3 and [one.forwards for one in answers] == [2] * 3
    one = model.generate([np.zeros(0, np.int32)], new_tokens=6, decoder="adjust", tokens=1, max_length=6, stop_id=None)
    assert one[0].forwards == 6 and sorted(one[0].order.tolist()) == list(range(6))
    with pytest.raises(ConfigError, match="tokens=5: the joint layer was trained for at most 4"):
        model.generate([np.zeros(0, np.int32)], new_tokens=6, decoder="adjust", tokens=5)
    with pytest.raises(ConfigError, match="tokens=2: needs a joint layer"):
        base.generate([np.zeros(0, np.int32)], new_tokens=6, decoder="adjust", tokens=2)


def test_the_run_says_what_it_measured_and_goes_on(runs, capsys):
    assert train.main(learn(runs, "--config.train.steps=7")) == 0
    out = capsys.readouterr().out
    assert "resuming from step 5" in out and "held-out KL from the network to the layer, a token written: " in out
    assert len((runs / "joint" / "samples.txt").read_text().split("--- sample")) == 3


def _leaves(tree):
    import jax

    return [np.asarray(leaf) for leaf in jax.tree.leaves(tree)]


@pytest.mark.parametrize(("flags", "said"), [
    (["--config.train.objective=joint:0"], "the passes must be a whole number from 1 to 64"),
    (["--config.train.init_from="], "give that with train.init_from"),
    (["--config.data.source=language:shuffle"], "learns from what the network itself wrote"),
    (["--config.data.length=8"], "the trajectories have rows of 6; set it so"),
    (["--config.data.packing=documents"], "data.packing='documents': has no meaning for trajectories"),
    (["--config.train.weighting=constant"], "does not read it; leave it out"),
])
def test_mistakes_are_named(runs, tmp_path, capsys, flags, said):
    command = [flag for flag in learn(runs) if not flag.startswith("--workdir")]
    assert train.main([*command, f"--workdir={tmp_path / 'new'}", *flags]) == 2
    assert said in capsys.readouterr().err and not (tmp_path / "new").exists()


def test_what_cannot_write_is_refused_before_jax(tmp_path):
    assert_refused(run("launch.trajectories"), "--checkpoint is missing")
    assert_refused(run("launch.trajectories", f"--checkpoint={tmp_path}", "--output=o"), "holds no checkpoint")
