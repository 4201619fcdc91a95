"""Jobs of several real processes: the same batches, noise and losses as one, every example once, restarts by itself."""

import collections
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from mdlm_jax.training import metrics

ROOT = Path(__file__).resolve().parents[2]
TINY = ["--config=oracle", "--config.data.source=language:copy", "--config.train.steps=20",
        "--config.train.checkpoint_every=10", "--config.train.batch_size=32", "--config.train.log_every=1",
        "--config.model.layers=1", "--config.model.d_model=32", "--config.model.heads=2", "--config.eval.every=20",
        "--config.eval.rows=16", "--config.eval.final_rows=16", "--config.sample.steps=2", "--config.sample.num=1",
        "--config.train.warmup_steps=5"]
OBJECTIVES = {
    "count": [],
    "hybrid": ["--config.process.mixing=0.1"],
    "discrete": ["--config.train.objective=discrete:10", "--config.process.mixing=0.3"],
    "genmd4": ["--config.train.objective=genmd4:1"],
    "autoregressive": ["--config.train.objective=autoregressive", "--config.model.attention=causal",
                       "--config.model.logit_shift=true", "--config.sample.steps=64"],
    "block": ["--config.train.objective=block", "--config.model.attention=block_causal",
              "--config.model.block_length=8"],
    "any_order": ["--config.train.objective=any_order", "--config.model.attention=permutation",
                  "--config.sample.steps=64"],
    "any_subset": ["--config.train.objective=any_subset:0.1,0.5", "--config.model.attention=permutation",
                   "--config.sample.steps=64"],
    "draft_edit": ["--config.train.objective=draft_edit:0.1,1,2"],
    "levenshtein": ["--config.train.objective=levenshtein:1,2", "--config.model.attention=block_causal",
                    "--config.model.block_length=8", "--config.model.head_size=21"],
}


def job(processes: int, devices: int, *command: str, limit: int = 400, **options) -> subprocess.CompletedProcess:
    environment = {k: v for k, v in os.environ.items() if k not in ("XLA_FLAGS", "JAX_NUM_CPU_DEVICES")}
    environment |= {"PYTHONPATH": str(ROOT), "XLA_FLAGS": "--xla_backend_optimization_level=0"}
    start = [sys.executable, "-m", "launch.local", f"--processes={processes}", f"--devices_per_process={devices}"]
    start += [f"--{name}={value}" for name, value in options.items()]
    return subprocess.run([*start, "--", sys.executable, *command], cwd=ROOT, env=environment, capture_output=True,
                          text=True, timeout=limit)


def fed(tmp_path, processes: int, first: int, last: int) -> dict:
    out = tmp_path / f"{processes}-{first}.json"
    done = job(processes, 8 // processes, "-m", "tests.training.process_worker", str(out), str(first), str(last))
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads(out.read_text())
    assert (found["processes"], found["devices"]) == (processes, 8)
    return found["steps"]


@pytest.mark.slow
def test_batches_and_noise_are_the_same_bit_for_bit(tmp_path):
    one, two = (fed(tmp_path, processes, 0, 3) for processes in (1, 2))
    assert one == two


@pytest.mark.slow
def test_every_example_once_though_the_number_of_processes_changes(tmp_path):
    """12 steps of 16 rows are two epochs of 96: by 1, 2, 4 and 1 processes, each from where the last ones stopped."""
    steps = [step for processes, first, last in ((1, 0, 2), (2, 2, 7), (4, 7, 10), (1, 10, 12))
             for step in fed(tmp_path, processes, first, last)]
    assert [step["step"] for step in steps] == list(range(12))
    for epoch in (steps[:6], steps[6:]):
        seen = collections.Counter(number for step in epoch for number in step["ids"])
        assert seen == dict.fromkeys(range(96), 1)


def losses(workdir: Path) -> list[float]:
    return [record["loss"] for record in metrics.read(workdir) if "loss" in record]


@pytest.mark.slow
@pytest.mark.parametrize("name", list(OBJECTIVES))
def test_two_processes_of_four_devices_train_as_one_of_eight(name, tmp_path):
    """First loss to 1e-6, loss after 20 steps to 5e-5; the same layout again, bit for bit."""
    found = []
    for number, (processes, devices) in enumerate(((1, 8), (2, 4), (2, 4))):
        workdir = tmp_path / str(number)
        done = job(processes, devices, "-m", "launch.train", *TINY, *OBJECTIVES[name], f"--workdir={workdir}",
                   limit=1200)
        assert done.returncode == 0, done.stderr[-2000:]
        found.append(losses(workdir))
    one, two, again = found
    assert len(one) == 20 and two == again
    print(f"{name}: first loss {two[0]:.6f}, off by {two[0] / one[0] - 1:+.1e}; after 20 steps {two[-1]:.6f}, off by "
          f"{two[-1] / one[-1] - 1:+.1e}; the same layout again: {two == again}")
    assert two[0] == pytest.approx(one[0], rel=1e-6) and two[-1] == pytest.approx(one[-1], rel=5e-5)


def test_hosts_with_different_files_are_told_before_anything_is_written(tmp_path):
    for number, text in enumerate(("one text", "another ")):
        (tmp_path / str(number)).mkdir()
        (tmp_path / str(number) / "book.txt").write_text(text * 500)
    there = ("import os, runpy, sys; os.chdir(os.path.join(sys.argv[1], os.environ['MDLM_JAX_PROCESS'].split(',')[2]));"
             "del sys.argv[1]; runpy.run_module('launch.train', run_name='__main__')")
    done = job(2, 1, "-c", there, str(tmp_path), "--config=quickstart", "--config.data.source=book.txt",
               "--config.data.tokenizer=byte", "--config.data.length=16", "--config.train.batch_size=2",
               "--config.model.layers=1", "--config.model.d_model=32", "--config.model.heads=2",
               f"--workdir={tmp_path / 'run'}")
    assert done.returncode == 2, done.stderr[-2000:]
    assert "the training data: not the same in all processes: 1 of 2 differ from process 0" in done.stderr
    assert not (tmp_path / "run").exists()
