"""Mistakes that stand on no command line: packages, permissions, the environment, folders and files of other things.

The key of a case is a part of its message.
"""

import concurrent.futures
import contextlib
import dataclasses
import importlib
import importlib.util
import json
import os
import sys
import types
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

import jax
import numpy as np
import pytest

import launch.convert
import launch.evaluate
import mdlm_jax
from launch import (
    _decoders,
    _distributed,
    _evaluation,
    _weights,
    run_evaluate,
    run_prepare,
    run_train,
    run_trajectories,
    sample,
)
from mdlm_jax.config import DataConfig, RunConfig, to_dict
from mdlm_jax.data import images, parquet_source, pipeline, processes, prompts, sources, trajectories
from mdlm_jax.data.languages.drift import Drift
from mdlm_jax.data.splits import Split
from mdlm_jax.data.tfds_source import TfdsSource
from mdlm_jax.data.tokenizers import ByteTokenizer
from mdlm_jax.evaluation import mauve
from mdlm_jax.models.config import TransformerConfig
from mdlm_jax.training import checkpoints, hosts
from mdlm_jax.training.trainer import Trainer
from tests import fake_bucket
from tests.errors.form import faults
from tests.generation.models import bytes_model, tokens_model

NETWORK = TransformerConfig(9, 9, layers=1, d_model=8, heads=2, kv_heads=2, d_ff=8)


def refused(said: str, work) -> None:
    with pytest.raises((ValueError, ImportError)) as caught:
        work()
    assert said in str(caught.value) and not faults(str(caught.value)), str(caught.value)


def command(name: str, *words: str):
    """What a command does, with its error raised."""
    module = importlib.import_module(f"launch.{name}")
    return lambda: module._prepare(list(words))


@pytest.mark.parametrize(("package", "said", "work"), [
    ("pyarrow", "data.source='x': parquet needs pyarrow; pip install pyarrow",
     lambda: parquet_source.ParquetFile("x", Split(0.1), Path("x"), "text")),
    ("sklearn.cluster", "mauve: needs scikit-learn", lambda: mauve._clusters(np.ones((4, 2)), 2, 0)),
    ("sklearn.datasets", "data.source='digits': needs scikit-learn", images._digits),
    ("lm_eval.api.model", "mdlm_jax.harness needs lm-evaluation-harness: pip install 'mdlm_jax[eval]'",
     lambda: importlib.import_module("mdlm_jax.harness")),
    ("wandb", "log.wandb=True: needs the package wandb",
     command("train", "--config=oracle", "--config.log.wandb=true", "--config.log.project=mine", "--dry_run")),
    ("libtpu", "--topology=v5e:2x2: compiling for TPU needs libtpu",
     command("plan", "--config=llada_8b", "--topology=v5e:2x2", "--config.train.batch_size=20")),
])
def test_a_package_that_is_missing_is_named(package, said, work, monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setitem(sys.modules, package, None)
    monkeypatch.delitem(sys.modules, "mdlm_jax.harness", raising=False)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *more: None if name == package else find(name, *more))
    refused(said, work)


def test_where_nothing_may_be_written_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "access", lambda *given: False)
    refused(f"--output={tmp_path}/x.txt: no permission", lambda: sample._writable("output", f"{tmp_path}/x.txt"))
    refused(f"--to={tmp_path}/new: no permission", lambda: launch.convert._new_folder({"to": f"{tmp_path}/new"}))


def test_a_cluster_is_asked_for_and_there_must_be_one(monkeypatch):
    monkeypatch.setenv("SLURM_NTASKS", "4")
    refused("SLURM_NTASKS=4: this is one of several processes; add --distributed=auto on all of them, or unset it to "
            "answer prompts alone", lambda: _distributed.asked({}, "answer prompts"))
    monkeypatch.setattr(jax.distributed, "initialize", _no_cluster)
    refused("--distributed=auto: no cluster is found here (coordinator_address", _distributed._join_cluster)


def _no_cluster(**given):
    raise ValueError("coordinator_address should be defined.")


def test_processes_that_read_other_things_are_told(monkeypatch):
    from jax.experimental import multihost_utils

    monkeypatch.setattr(jax, "process_count", lambda: 2)
    monkeypatch.setattr(multihost_utils, "process_allgather", lambda mine: np.stack([mine, mine + 1]))
    refused("config.json: not the same in all processes: 1 of 2 differ", lambda: hosts.agree({"config.json": "{}"}))


@pytest.mark.skipif(fake_bucket.GCSFS, reason="gcsfs tries again for a minute")
def test_what_buckets_hold_is_not_written_in_place(tmp_path):
    checkpoints.Checkpoints(tmp_path / "checkpoints").save(
        1, {"trainable": {"network": {"w": jax.numpy.zeros(1)}}}, {}, {"config.json": json.dumps(to_dict(RunConfig()))})
    with fake_bucket.emptied() as bucket:
        bucket.put("own/hf/config.json", b'{"model_type": "llada"}')
        bucket.put("own/hf/model.safetensors", b"")
        for path in tmp_path.rglob("*"):
            if path.is_file():
                bucket.put(f"own/run/{path.relative_to(tmp_path)}", path.read_bytes())
        refused("--from=gs://own/hf: a Hugging Face directory must be a folder",
                lambda: launch.convert.read_options({"from": "gs://own/hf", "to": str(tmp_path / "new")}))
        refused("gs://own/hf: a Hugging Face directory must be a folder", lambda: mdlm_jax.load("gs://own/hf"))
        refused("--output is missing", lambda: launch.evaluate.read_options({"checkpoint": "gs://own/run"}))


def _killed(context, item):
    raise BrokenProcessPool


def _full(*given):
    raise OSError(28, "No space left on device", "rows/0")


def test_killed_workers_and_a_full_disk_are_told(tmp_path, monkeypatch):
    monkeypatch.setattr(concurrent.futures, "ProcessPoolExecutor",
                        lambda workers, *given: concurrent.futures.ThreadPoolExecutor(workers))
    refused("--workers: one of them was killed", lambda: list(processes.run(_killed, None, [1, 2], 2)))
    monkeypatch.setattr(run_prepare.data_prepare, "prepare", _full)
    options = types.SimpleNamespace(dry_run=False, preparation=None, out=tmp_path, workers=2)
    refused("rows/0: No space left on device; mend that", lambda: run_prepare.main(options))


@pytest.mark.parametrize(("model", "length", "said"), [
    (dataclasses.replace(tokens_model(), description=dataclasses.replace(tokens_model().description, max_length=0)), 0,
     "--length is missing"),
    (tokens_model("causal"), 0, "--checkpoint=x: its network is causal"),
    (tokens_model(conditioning="time"), 0, "--checkpoint=x: its network reads the time"),
    (bytes_model(), 99999999, "--length=99999999: must be at most"),
    (tokens_model(), 8, "--checkpoint=x: has no tokenizer.json"),
])
def test_models_that_write_no_trajectories_are_refused(model, length, said, monkeypatch):
    monkeypatch.setattr(mdlm_jax, "load", lambda folder, mesh: model)
    options = types.SimpleNamespace(mesh=None, folder="x", length=length, num=1)
    refused(said, lambda: run_trajectories.main(options))


def test_runs_and_their_surroundings_must_fit(tmp_path, monkeypatch):
    config = RunConfig()
    cudnn = dataclasses.replace(config, model=dataclasses.replace(config.model, backend="cudnn"))
    refused("model.backend='cudnn': runs on NVIDIA GPUs, not on a cpu",
            lambda: run_train._train(cudnn, tmp_path, tmp_path, None, None, contextlib.ExitStack()))
    damaged = types.SimpleNamespace(passed_over=[(3, "its manifest is cut off")], directory=tmp_path)
    refused(f"{tmp_path}: no step is whole (step 3: its manifest is cut off)",
            lambda: Trainer._refuse_damaged(types.SimpleNamespace(checkpoints=damaged)))
    monkeypatch.setattr(_weights, "_loaded", lambda path, mesh: tokens_model())
    refused("train.init_from='x': embedding is [12, 16] there and [9, 8] in this run",
            lambda: _weights.loaded("init_from", "x", NETWORK, None))
    (tmp_path / "evaluation.json").write_text('{"model": 3}')
    refused("evaluation.json: is no record of launch.evaluate", lambda: _evaluation.read(tmp_path / "evaluation.json"))
    refused("--top_k=1.5: must be of type int", lambda: _decoders.numbers({"top_k": 1.5}, "ancestral"))


def test_data_that_changed_since_a_run_was_trained_on_them_are_refused(monkeypatch):
    row = types.SimpleNamespace(fingerprint="b" * 64)
    monkeypatch.setattr(pipeline, "build", lambda *given: types.SimpleNamespace(train=row))
    monkeypatch.setattr(checkpoints, "read_meta", lambda folder: {"data": {"fingerprint": "a" * 64}})
    loaded = run_evaluate.Loaded(types.SimpleNamespace(config=RunConfig(), folder="runs/first/1"))
    loaded.__dict__["model"] = bytes_model()
    refused("data.source='stdlib': is no longer what runs/first/1 was trained on", lambda: loaded.built)


class _Confused(ByteTokenizer):
    """Takes text for the end of text, as a damaged tokenizer.json may."""

    def encode_batch(self, texts):
        return [np.array([self.eos_id]) for _ in texts]


def test_sources_that_cannot_be_rows_are_refused(tmp_path, monkeypatch):
    for name, length in (("a", 6), ("b", 8)):
        np.savez(tmp_path / f"{name}.npz", tokens=np.zeros((2, length), int), labels=np.zeros(2, int))
    codes = DataConfig(source=f"codes:{tmp_path}", length=6)
    refused("holds rows of 6 and of 8 codes; make them one length", lambda: images.open_images(codes))
    refused("tau=2: must lie", lambda: Drift.random(2))
    refused("data.source='stdlib': 9 bytes of text are too few", lambda: pipeline.check_size(DataConfig(), 4, 9))
    refused("data.tokenizer: turns text of the document 'x'", lambda: prompts._encoded(
        sources.Document("x", "a", "b"), _Confused()))
    refused("rows of 65535 tokens: must", lambda: trajectories.write_shard(
        tmp_path / "x", np.zeros((1, 65535), np.uint8), None))
    (tmp_path / trajectories.META).write_text("{")
    refused(f"{trajectories.META} cannot be read (", lambda: trajectories.read_meta(tmp_path))
    info = types.SimpleNamespace(features=["text"], splits=["train", "test"])
    monkeypatch.setattr("mdlm_jax.data.tfds_source._find_builder", lambda *given: types.SimpleNamespace(
        is_prepared=lambda: True, info=info))
    refused("data.valid_last=5: tfds:x has a split 'test' of its own", lambda: TfdsSource(
        "tfds:x", Split(0.1, last=5), "", "text"))
