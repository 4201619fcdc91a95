"""One run at a time in a workdir."""

import os
import subprocess
import sys

import pytest

from launch import _lock, train
from mdlm_jax.config import ConfigError

TINY = ("--config=oracle", "--config.data.length=8", "--config.train.steps=1", "--config.train.warmup_steps=1",
        "--config.model.layers=1", "--config.model.d_model=16", "--config.model.heads=2", "--config.eval.rows=8",
        "--config.eval.final_rows=8", "--config.sample.num=1", "--config.sample.steps=2")


def test_the_second_is_told_who_the_first_is(tmp_path):
    with _lock.held(tmp_path):
        with pytest.raises(ConfigError, match=f"is in use by process {os.getpid()} on .*; wait for it, stop it"):
            with _lock.held(tmp_path):
                pass
    with _lock.held(tmp_path):
        pass


def test_a_process_that_was_killed_holds_nothing(tmp_path):
    code = ("import os, signal; from launch import _lock; from pathlib import Path\n"
            f"with _lock.held(Path({str(tmp_path)!r})): os.kill(os.getpid(), signal.SIGKILL)")
    assert subprocess.run([sys.executable, "-c", code]).returncode == -9 and (tmp_path / _lock.NAME).exists()
    with _lock.held(tmp_path):
        pass


def test_training_leaves_a_workdir_alone_that_is_in_use(tmp_path, capsys):
    run = tmp_path / "run"
    run.mkdir()
    with _lock.held(run):
        assert train.main([*TINY, f"--workdir={run}"]) == 2
    assert f"--workdir={run}: is in use by process {os.getpid()}" in capsys.readouterr().err
    assert [file.name for file in run.iterdir()] == [_lock.NAME]
    assert train.main([*TINY, f"--workdir={run}"]) == 0 and (run / "summary.json").exists()
