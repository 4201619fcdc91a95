"""``launch.distil``: the rounds it makes, what it refuses, and rounds that are killed and go on."""

import json
import sys

import jax
import numpy as np
import pytest

import mdlm_jax
from launch import distil, train
from mdlm_jax.config import ConfigError
from mdlm_jax.training.checkpoints import Checkpoints, abstract, restore_path
from tests.launch.commands import assert_refused, killed_and_again, run

SMALL = {"data.source": "language:shuffle", "data.length": 6, "train.batch_size": 8, "train.warmup_steps": 1,
         "eval.final_rows": 8, "eval.rows": 8, "sample.num": 1, "sample.steps": 2}
NETWORK = {"model.layers": 1, "model.d_model": 16, "model.heads": 2}


def flags(fields):
    return [f"--config.{name}={value}" for name, value in fields.items()]


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    folder = tmp_path_factory.mktemp("distil") / "teacher"
    assert train.main(["--config=oracle", f"--workdir={folder}", *flags(SMALL | NETWORK | {"train.steps": 3})]) == 0
    return folder


def asked(teacher, workdir, *more, rounds=2, config="sdtt"):
    return [f"--config={config}", f"--from={teacher}", f"--workdir={workdir}", "--steps=4", f"--rounds={rounds}",
            *flags(SMALL | {"train.steps": 4}), *more]


def trainable(folder):
    step = Checkpoints(folder / "checkpoints").latest_good()
    return restore_path(step, abstract(step)).tree


def leaves(tree):
    return [np.asarray(leaf) for leaf in jax.tree.leaves(tree)]


def test_each_round_is_taught_by_the_one_before(teacher, tmp_path, capsys, monkeypatch):
    commands = []

    def here(job):
        commands.append(job.command)
        return train.main(job.command[3:])

    monkeypatch.setattr(distil, "supervise", here)
    assert distil.main(asked(teacher, tmp_path / "few")) == 0
    table = capsys.readouterr().out.splitlines()[-4:]
    bounds = [json.loads((folder / "summary.json").read_text())["held_out"]["nats_per_token"]
              for folder in (teacher, tmp_path / "few" / "round_1", tmp_path / "few" / "round_2")]
    for line, objective, bound in zip(table[1:], ("", "sdtt:4", "sdtt:2"), bounds, strict=True):
        assert f"| {objective} | {bound:.4f} +-" in line
    first, second = (trainable(tmp_path / "few" / f"round_{n}") for n in (1, 2))
    for found, expected in zip(leaves(first["frozen"]["teacher"]), leaves(trainable(teacher)["ema"]["network"]),
                               strict=True):
        np.testing.assert_array_equal(found, expected)
    for found, expected in zip(leaves(second["frozen"]["teacher"]), leaves(first["ema"]["network"]), strict=True):
        np.testing.assert_array_equal(found, expected)

    assert len(commands) == 2 and distil.main(asked(teacher, tmp_path / "few")) == 0 and len(commands) == 2
    (tmp_path / "few" / "round_2" / "summary.json").unlink()
    assert distil.main(asked(teacher, tmp_path / "few")) == 0 and len(commands) == 3
    assert distil.main(asked(teacher, tmp_path / "few", "--config.train.steps=9")) == 2
    assert "was trained for train.steps=4, not 9" in capsys.readouterr().err

    model = mdlm_jax.load(tmp_path / "few" / "round_2")
    for found, expected in zip(leaves(model.params), leaves(second["ema"]["network"]), strict=True):
        np.testing.assert_array_equal(found, expected)
    rows = model.generate([np.zeros(0, np.int32)] * 2, new_tokens=6, max_length=6, stop_id=None, steps=1)
    assert all((row.row != model.process.mask_id).all() and row.forwards == 1 for row in rows)


def test_a_dry_run_lists_the_rounds(teacher, capsys, tmp_path):
    command = [flag for flag in asked(teacher, "x") if not flag.startswith("--workdir")]
    assert distil.main([*command, "--dry_run"]) == 0
    out = capsys.readouterr().out
    assert "round 1: train.objective=sdtt:4, 4 steps of 8 rows" in out and "round 2: train.objective=sdtt:2" in out


@pytest.mark.parametrize(("more", "said"), [
    (["--rounds=3"], "4 steps cannot be halved so often; give fewer rounds, or a multiple of 8 as --steps"),
    (["--rounds=0"], "--rounds=0: must be at least 1"),
    (["--config.train.objective=sdtt:8"], "follows from --steps and the round"),
    (["--config.train.init_from=x"], "follows from --from and the round before"),
    (["--config=oracle"], "has no rounds; choose a recipe with sdtt:STEPS or duo:STEPS"),
    (["--config=sdtt:dmd"], "--config=sdtt:dmd: choose one of sdtt, duo"),
    (["--config=sdtt:duo"], "process.mixing=1.0: the network of --from was trained with 0.0; take one that "
     "was trained so"),
    (["--config.process.mixing=0.1"], "knows no noise but the mask"),
    (["--config.train.weighting=constant"], "does not read it"),
    (["--config.train.divergence=js"], "train.divergence='js'"),
    (["--config.model.attention=causal"], "model.attention"),
    (["--from=nowhere"], "--from=nowhere: there is no such directory"),
])
def test_mistakes_are_named(teacher, tmp_path, capsys, more, said):
    assert distil.main([*asked(teacher, tmp_path / "new"), *more]) == 2
    assert said in capsys.readouterr().err and not (tmp_path / "new").exists()


@pytest.mark.parametrize(("fields", "said"), [
    ({"objective": "sdtt:3"}, "the teacher's steps must be an even number, as in sdtt:64"),
    ({"objective": "duo:1"}, "the teacher's steps must be a whole number of at least 2, as in duo:64"),
    ({"objective": "sdtt:4", "init_from": ""}, "learns from a network that is there"),
    ({"objective": "nelbo", "divergence": "forward_kl"}, "is read by train.objective=sdtt:STEPS and duo:STEPS only"),
])
def test_fields_that_cannot_be(fields, said):
    from mdlm_jax.config import TrainConfig

    with pytest.raises(ConfigError, match=said):
        TrainConfig(**{"init_from": "x"} | fields)


def test_refused_before_jax():
    assert_refused(run("launch.distil"), "--config is missing")


@pytest.mark.slow
def test_duo_s_rounds_and_a_kill_amid_them(tmp_path):
    """SIGKILL amid the second round: the first is not made again, the second goes on from its checkpoint."""
    fields = SMALL | NETWORK | {"train.steps": 3, "process.mixing": 1.0}
    assert train.main(["--config=oracle", f"--workdir={tmp_path / 'teacher'}", *flags(fields)]) == 0
    command = [sys.executable, "-m", "launch.distil", *asked(
        tmp_path / "teacher", tmp_path / "few", "--config.train.steps=2000", "--config.train.checkpoint_every=50",
        config="sdtt:duo")]
    first, second = (tmp_path / "few" / f"round_{n}" for n in (1, 2))
    said = killed_and_again(command, first, second, 500)
    assert "| 2 | duo:2 |" in said
    model = mdlm_jax.load(second)
    rows = model.generate([np.zeros(0, np.int32)] * 2, new_tokens=6, max_length=6, stop_id=None, steps=2,
                          decoder="ancestral")
    assert model.process.mixing == 1.0 and all((row.row != model.process.mask_id).all() for row in rows)
