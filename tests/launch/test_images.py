"""Classes and images at the command line."""

import dataclasses
import json

import numpy as np
import pytest

from launch import _configs, _images, evaluate, sample
from mdlm_jax.config import ConfigError, DataConfig, RunConfig, freeze, to_dict
from mdlm_jax.data import images
from mdlm_jax.data.tokenizers import ByteTokenizer, CodeTokenizer
from mdlm_jax.training import manifest
from tests.launch.commands import run

pytest.importorskip("sklearn")
DIGITS = _configs.load("xdlm_digits", {})


def workdir(folder, config, tokenizer):
    """A run's folder without weights."""
    step = folder / "run" / "checkpoints" / "00000010"
    (step / "state").mkdir(parents=True)
    (step / "config.json").write_text(json.dumps(to_dict(config)))
    tokenizer.save(step / "tokenizer.json")
    manifest.write(step)
    return folder / "run"


def options(where, **flags):
    return sample.read_options({"checkpoint": str(where)} | flags)


def test_classes_by_default_in_turn_or_as_asked(tmp_path):
    where = workdir(tmp_path, DIGITS, CodeTokenizer(17))
    chosen = options(where)
    assert chosen.generate["label"] == [i % 10 for i in range(50)] and chosen.generate["guidance"] == 1.0
    assert options(where, label=3, num=2).generate["label"] == [3, 3]
    chosen = options(where, labels="4,-1,9")
    assert chosen.generate["label"] == [4, -1, 9] and chosen.sample.num == 3
    assert options(where, labels="4,5", num=3).generate["label"] == [4, 5, 4]


@pytest.mark.parametrize(("flags", "message"), [
    ({"label": 10}, r"--label=10: classes are 0\.\.9"),
    ({"labels": "1,two"}, "--labels=1,two: classes are"),
    ({"label": 1, "labels": "1"}, "--label, --labels: give one of them"),
    ({"output": "/tmp/no/where.png"}, "there is no folder"),
], ids=["class", "word", "both", "folder"])
def test_mistakes_in_classes(flags, message, tmp_path):
    with pytest.raises(ConfigError, match=message):
        options(workdir(tmp_path, DIGITS, CodeTokenizer(17)), **flags)


def test_runs_without_classes_take_no_label_and_draw_no_images(tmp_path):
    where = workdir(tmp_path, RunConfig(), ByteTokenizer())
    assert "label" not in options(where).generate
    with pytest.raises(ConfigError, match="--label=1: the network was trained without classes"):
        options(where, label=1)
    for name in ("a.png", "a.npz"):
        with pytest.raises(ConfigError, match=f"--output=.*{name}"):
            options(where, output=str(tmp_path / name))


def test_guidance_needs_rows_without_class_in_training(tmp_path):
    never = dataclasses.replace(DIGITS, train=dataclasses.replace(DIGITS.train, class_dropout=0.0),
                                sample=dataclasses.replace(DIGITS.sample, guidance=0.0))
    where = workdir(tmp_path, never, CodeTokenizer(17))
    with pytest.raises(ConfigError, match="--guidance=1.0: guides away from no class"):
        options(where, label=1, guidance=1.0)
    raw = to_dict(never)
    raw["sample"]["guidance"] = 1.0
    with pytest.raises(ConfigError, match="sample.guidance=1.0: guides towards a prompt, .* with train.class_dropout"):
        freeze(raw)


def test_texts_are_not_measured_by_a_run_on_images(tmp_path):
    with pytest.raises(ConfigError, match="the run's tokens are those of digits"):
        evaluate._texts({"text": "a.txt"}, DIGITS)


def test_images_are_written_as_pictures_and_as_the_arrays_that_training_reads(tmp_path):
    from matplotlib.image import imread

    labels = np.arange(20) % 10
    tokens = np.zeros((20, 64), np.int32)
    tokens[3] = 16
    tokens[4] = 17  # masks
    picture = imread(_images.write_run(tmp_path, "digits", tokens, labels, "digits, 32 steps"))[..., :3]
    assert (picture.std(-1) > 0.2).mean() > 0.01  # red: what is masked
    path = _images.write_run(tmp_path, "codes:somewhere", tokens[:3], labels[:3], "")
    read = images.open_images(DataConfig(source=f"codes:{path}", length=64))
    np.testing.assert_array_equal(read.tokens, tokens[:3])
    np.testing.assert_array_equal(read.labels, labels[:3])
    _images.write(tmp_path / "other.png", tokens, np.array([3, -1] * 10))


def test_the_recipe_of_imagenet_is_the_paper_s():
    config = _configs.load("xdlm_imagenet", {})
    assert (config.data.length, config.data.codes, config.model.classes) == (256, 16384, 1000)
    assert (config.train.steps, config.train.class_dropout, config.process.mixing) == (500_000, 0.1, 0.1)
    assert config.model.vocab_size == 16385


@pytest.mark.slow
def test_a_run_on_digits_is_trained_measured_and_sampled(tmp_path):
    small = ["--config.model.layers=1", "--config.model.d_model=16", "--config.model.heads=2", "--config.train.steps=4",
             "--config.train.warmup_steps=1", "--config.sample.steps=2", "--config.sample.num=12",
             "--config.eval.final_rows=16", "--config.eval.draws=2"]
    trained = run("launch.train", "--config=xdlm_digits", f"--workdir={tmp_path / 'run'}", *small)
    assert trained.status == 0, trained.err
    lines = trained.out.splitlines()
    assert lines[-2].startswith("bits per dimension: ") and lines[-1].startswith("held-out bound: ")
    assert (tmp_path / "run" / "samples.png").stat().st_size > 1000 and not (tmp_path / "run" / "samples.txt").exists()
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert 3.0 < summary["held_out"]["bits_per_dimension"] < 6.0
    sampled = run("launch.sample", f"--checkpoint={tmp_path / 'run'}", "--labels=3,4", "--guidance=1",
                  f"--output={tmp_path / 'two.npz'}", f"--picture={tmp_path / 'two.html'}")
    assert sampled.status == 0, sampled.err
    with np.load(tmp_path / "two.npz") as found:
        assert found["tokens"].shape == (2, 64) and found["labels"].tolist() == [3, 4]
        assert found["tokens"].max() < 17
