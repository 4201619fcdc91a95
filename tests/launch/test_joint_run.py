"""A joint layer from end to end: a network, what it writes, the layer trained on it, and decoding by both."""

import json
import shutil

import numpy as np
import pytest

import mdlm_jax
from launch import convert, train, trajectories
from mdlm_jax.config import ConfigError
from mdlm_jax.data.trajectories import read
from mdlm_jax.loading import save_checkpoint
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
    with pytest.raises(ConfigError, match="tokens=2: Adjust needs a joint layer"):
        base.generate([np.zeros(0, np.int32)], new_tokens=6, decoder="adjust", tokens=2)


def test_a_layer_that_another_format_has_no_room_for_is_not_lost_without_a_word(runs, tmp_path, capsys):
    capsys.readouterr()
    assert convert.main([f"--from={runs / 'joint'}", f"--to={tmp_path / 'exported'}"]) == 0
    said = capsys.readouterr()
    assert "left out: joint," in said.out and "the decoder adjust or adjust_verified" in said.out
    assert "decoded by low_confidence, which is greedy," in said.out
    assert "ancestral at temperature 1: give decoder=ancestral and block_length=0" in said.out
    assert "noise" not in said.out and said.err == ""
    exported = mdlm_jax.load(tmp_path / "exported")
    assert exported.joint is None
    with pytest.raises(ConfigError, match="joint=None: Adjust needs a joint layer.*train.objective=joint:3"):
        exported.generate([np.zeros(0, np.int32)], new_tokens=6, decoder="adjust")
    with pytest.raises(ConfigError, match="joint: was learned beside the network"):
        save_checkpoint(tmp_path / "saved", mdlm_jax.load(runs / "joint"))


def test_the_run_says_what_it_measured_and_goes_on(runs, capsys):
    assert train.main(learn(runs, "--config.train.steps=7")) == 0
    out = capsys.readouterr().out
    assert "  the network without its layer " in out
    assert "the network without its layer" in json.loads((runs / "joint" / "summary.json").read_text())["references"]
    assert "resuming from step 5" in out
    assert "held-out KL from the network to the layer, of all that is masked, a token written: " in out
    assert len((runs / "joint" / "samples.txt").read_text().split("--- sample")) == 3


def _leaves(tree):
    import jax

    return [np.asarray(leaf) for leaf in jax.tree.leaves(tree)]


@pytest.mark.parametrize(("flags", "said"), [
    (["--config.train.objective=joint:0"], "the passes must be a whole number of at least 1, as in joint:3"),
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


def test_the_network_is_read_as_it_was_trained(runs, tmp_path, capsys):
    """Blocks of the base are those of the layer, and nothing else is taken."""
    network = [f"--config.model.{name}" for name in ("layers=1", "d_model=16", "heads=2", "attention=block_causal",
                                                     "block_length=3")]
    assert train.main(["--config=oracle", f"--workdir={tmp_path / 'base'}", "--config.data.source=language:shuffle",
                       "--config.train.steps=2", "--config.train.objective=block", *network, *SMALL]) == 0
    assert trajectories.main([*write(tmp_path), "--num=40"]) == 0
    _, rank = read(tmp_path / "written")
    assert (rank[:, :3] < 3).all() and (rank[:, 3:] >= 3).all()  # block after block
    assert train.main(learn(tmp_path, "--config.model.attention=bidirectional", "--config.model.block_length=1")) == 2
    assert "model.attention='bidirectional': the network of train.init_from stays as it is" in capsys.readouterr().err
    assert train.main(learn(tmp_path)) == 0
    model = mdlm_jax.load(tmp_path / "joint")
    assert (model.config.attention, model.config.block_length) == ("block_causal", 3) and model.joint.scope == "block"
    found = model.generate([np.zeros(0, np.int32)] * 2, new_tokens=6, decoder="adjust", max_length=6, stop_id=None)
    assert [one.forwards for one in found] == [2, 2]
    with pytest.raises(ConfigError, match="block_length=6: this joint layer was trained on blocks of 3"):
        model.generate([np.zeros(0, np.int32)], new_tokens=6, decoder="adjust", max_length=6, block_length=6)


def test_trajectories_are_those_of_the_network_and_its_law(runs, tmp_path, capsys):
    folder = tmp_path / "copy"
    shutil.copytree(runs / "written", folder / "written")
    meta = json.loads((folder / "written" / "meta.json").read_text())
    for change, flags, said in (
        ({"weights": "other"}, [], "was written by other weights than those of train.init_from"),
        ({"temperature": 0.5}, ["--config.train.on_policy=0.5"], "otherwise than the trajectories were written "
         r"(temperature=0.5)"),
        ({"block_length": 2}, ["--config.train.on_policy=1"], "(block_length=2)"),
    ):
        (folder / "written" / "meta.json").write_text(json.dumps(meta | change))
        command = [flag for flag in learn(runs, *flags) if not flag.startswith(("--workdir", "--config.data.source"))]
        command += [f"--workdir={tmp_path / 'new'}", f"--config.data.source=trajectories:{folder / 'written'}"]
        assert train.main(command) == 2 and said in capsys.readouterr().err
    assert not (tmp_path / "new").exists()


def test_several_processes_write_their_parts(runs, tmp_path):
    """Each its shards, and the same rows as one. On a mesh entropies that are nearly alike may change places."""
    output = [f"--output={tmp_path / 'parts'}" if flag.startswith("--output") else flag for flag in write(runs)]
    for number in (1, 0):
        assert trajectories.main([*output, f"--distributed=localhost:1,2,{number}"]) == 0
        assert len(list((tmp_path / "parts").glob("*.npz"))) == 2 - number
    for found, expected in zip(read(tmp_path / "parts"), read(runs / "written"), strict=True):
        np.testing.assert_array_equal(found, expected)
    assert trajectories.main([*output, f"--output={tmp_path / 'mesh'}", "--num=64", "--mesh=fsdp:-1"]) == 0
    np.testing.assert_array_equal(np.sort(read(tmp_path / "mesh")[1], axis=1), np.tile(np.arange(6), (64, 1)))


@pytest.mark.slow
def test_networks_that_read_the_time_are_refused(runs, tmp_path, capsys):
    assert train.main(["--config=oracle", f"--workdir={tmp_path / 'base'}", "--config.data.source=language:shuffle",
                       "--config.train.steps=1", "--config.model.conditioning=time", "--config.model.layers=1",
                       "--config.model.d_model=16", "--config.model.heads=2", *SMALL]) == 0
    assert trajectories.main(write(tmp_path)) == 2
    assert "its network reads the time" in capsys.readouterr().err


def test_greedy_rows_of_nothing_are_refused(runs, tmp_path, capsys):
    command = [f"--checkpoint={runs / 'base'}", f"--output={tmp_path / 'new'}", "--temperature=0"]
    assert trajectories.main(command) == 2
    assert "--temperature=0: without prompts all rows would be one" in capsys.readouterr().err
