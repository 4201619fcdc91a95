"""Which workdirs a run may use: launch/_workdir.py."""

import dataclasses
import json
import os

import pytest

from launch._workdir import check_workdir, read_config, set_aside
from mdlm_jax.config import ConfigError, RunConfig, to_dict
from tests.launch.commands import snapshot

CONFIG = RunConfig()


def changed(**fields) -> RunConfig:
    """``train_steps=5`` sets train.steps."""
    config = CONFIG
    for name, value in fields.items():
        section, _, field = name.partition("_")
        config = dataclasses.replace(
            config, **{section: dataclasses.replace(getattr(config, section), **{field: value})}
        )
    return config


@pytest.fixture
def used(tmp_path):
    """The workdir of a run with CONFIG that has saved a checkpoint."""
    (tmp_path / "config.json").write_text(json.dumps(to_dict(CONFIG)))
    (tmp_path / "checkpoints" / "00000500").mkdir(parents=True)
    return tmp_path


@pytest.fixture
def young(tmp_path):
    """The workdir of a run with CONFIG that ended while it wrote its first checkpoint."""
    (tmp_path / "config.json").write_text(json.dumps(to_dict(CONFIG)))
    (tmp_path / "metrics.jsonl").write_text('{"step": 3}\n')
    (tmp_path / "checkpoints" / "00000500.unfinished").mkdir(parents=True)
    (tmp_path / "log.txt").write_text("from the shell")
    return tmp_path


@pytest.mark.parametrize("name", ["new", "new/deep/er", "."])
def test_new_and_empty_folders_are_free(tmp_path, name):
    assert check_workdir(str(tmp_path / name), CONFIG) == tmp_path / name
    assert snapshot(tmp_path) == {}


def test_foreign_files_do_not_matter(tmp_path):
    (tmp_path / "log.txt").write_text("from the shell")
    assert check_workdir(str(tmp_path), CONFIG) == tmp_path


def test_home_is_expanded(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert check_workdir("~/runs", CONFIG) == tmp_path / "runs"


@pytest.mark.parametrize(
    "config", [CONFIG, changed(train_steps=2000), changed(eval_every=7, sample_steps=9, sample_seed=4),
               changed(train_mesh="fsdp:2,tensor:4", train_microbatches=2, model_remat="full", train_log_every=3)]
)
def test_the_same_run_may_go_on(used, config):
    before = snapshot(used)
    assert check_workdir(str(used), config) == used
    assert snapshot(used) == before


@pytest.mark.parametrize(
    ("config", "fragments"),
    [
        (
            changed(train_steps=999),
            ["train.steps is 1000 there and 999 here; steps may only grow", "another --workdir"],
        ),
        (
            changed(model_layers=6, train_seed=1),
            [
                "holds another run",
                "model.layers is 4 there and 6 here, train.seed is 0 there and 1 here",
                "to resume it",
            ],
        ),
        (changed(data_source="a.txt"), ["data.source is 'stdlib' there and 'a.txt' here"]),
        (changed(train_steps=500, train_seed=1), ["train.steps is 1000 there and 500 here", "train.seed is 0 there"]),
        (
            changed(
                model_layers=1, model_d_model=64, model_heads=2, data_length=9, data_seed=3, train_seed=1, train_b1=0.5
            ),
            ["and 2 more fields"],
        ),
    ],
)
def test_another_run_is_refused_with_both_values(used, config, fragments):
    before = snapshot(used)
    with pytest.raises(ConfigError) as caught:
        check_workdir(str(used), config)
    for fragment in [str(used), *fragments]:
        assert fragment in str(caught.value)
    assert snapshot(used) == before


@pytest.mark.parametrize("config", [changed(model_layers=6), changed(train_steps=999), changed(train_steps=2000)])
def test_without_a_checkpoint_another_configuration_makes_room_for_itself(young, config):
    before = snapshot(young)
    assert check_workdir(str(young), config) == young and snapshot(young) == before
    assert set_aside(young, config) == young / "earlier-1"
    moved = {name: content for name, content in before.items() if name != "log.txt"}
    expected = {"log.txt": b"from the shell", "earlier-1": None} | {f"earlier-1/{n}": c for n, c in moved.items()}
    assert snapshot(young) == expected
    assert check_workdir(str(young), config) == young and set_aside(young, config) is None
    (young / "config.json").write_text(json.dumps(to_dict(changed(train_seed=3))))
    assert set_aside(young, config) == young / "earlier-2"


def test_nothing_is_moved_of_the_same_run_or_of_one_with_a_checkpoint(young):
    before = snapshot(young)
    assert set_aside(young, CONFIG) is None and set_aside(young, changed(eval_every=7)) is None
    assert snapshot(young) == before
    (young / "checkpoints" / "00000500").mkdir()
    assert set_aside(young, changed(model_layers=6)) is None
    assert set_aside(young / "new", CONFIG) is None and not (young / "new").exists()


def test_a_field_added_since_then_had_its_default(used):
    stored = to_dict(CONFIG)
    del stored["train"]["clip_norm"], stored["sample"]
    (used / "config.json").write_text(json.dumps(stored))
    assert check_workdir(str(used), CONFIG) == used
    with pytest.raises(ConfigError, match="train.clip_norm is 1.0 there and 8.0 here"):
        check_workdir(str(used), changed(train_clip_norm=8.0))


def test_a_field_of_another_version_is_named(used):
    (used / "config.json").write_text(json.dumps(to_dict(CONFIG) | {"extra": {"x": 1}}))
    with pytest.raises(ConfigError, match="extra.x is 1 there and None here"):
        check_workdir(str(used), CONFIG)


@pytest.mark.parametrize("text", ["", "{", "[1]", '{"train": 3}', "\xff"])
def test_a_damaged_config_is_no_empty_folder(used, text):
    (used / "config.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(ConfigError, match="config.json"):
        check_workdir(str(used), CONFIG)


@pytest.mark.parametrize("name", ["metrics.jsonl", "checkpoints", "samples.txt"])
def test_results_without_their_config_are_not_overwritten(tmp_path, name):
    (tmp_path / name).mkdir()
    with pytest.raises(ConfigError, match=f"holds {name} but no config.json"):
        check_workdir(str(tmp_path), CONFIG)


@pytest.mark.parametrize("below", ["", "/deeper"])
def test_a_file_is_no_workdir(tmp_path, below):
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="file is not a folder"):
        check_workdir(f"{tmp_path}/file{below}", CONFIG)


def test_a_dangling_link_is_no_workdir(tmp_path):
    (tmp_path / "link").symlink_to(tmp_path / "gone")
    with pytest.raises(ConfigError, match="link is not a folder"):
        check_workdir(str(tmp_path / "link"), CONFIG)


def test_no_permission_is_said_beforehand(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "access", lambda path, mode: False)  # the tests may run as root, who may do everything
    with pytest.raises(ConfigError, match="no permission to write"):
        check_workdir(str(tmp_path / "new"), CONFIG)


def test_reading_a_config_back(used):
    assert read_config(used / "config.json") == CONFIG
    (used / "config.json").write_text('{"train": {"steps": -4}}')
    with pytest.raises(ConfigError, match="config.json: train.steps=-4: must be positive"):
        read_config(used / "config.json")
    with pytest.raises(ConfigError, match="gone/config.json"):
        read_config(used / "gone" / "config.json")
