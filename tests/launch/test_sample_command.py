"""``python -m launch.sample``: which checkpoint is meant, and every mistake before jax is imported."""

import json
import shutil
from pathlib import Path

import pytest

import launch
from launch import sample
from mdlm_jax.config import ConfigError, RunConfig, SampleConfig, freeze, to_dict
from mdlm_jax.data.tokenizers import ByteTokenizer, LanguageTokenizer
from mdlm_jax.sampling import registry
from mdlm_jax.training import manifest
from tests.launch.commands import HEAVY, assert_refused, run, snapshot

MODULE = "launch.sample"


def save(folder, config, tokenizer):
    (folder / "config.json").write_text(json.dumps(config))
    tokenizer.save(folder / "tokenizer.json")
    manifest.write(folder)


@pytest.fixture
def workdir(tmp_path):
    """A run's folders and configurations, without any weights; step 20 is damaged, in its config.json."""
    config = to_dict(RunConfig())
    config["sample"] |= {"num": 3, "steps": 17}
    for step in (5, 10, 20):
        folder = tmp_path / "run" / "checkpoints" / f"{step:08d}"
        (folder / "state").mkdir(parents=True)
        save(folder, config, ByteTokenizer())
    (folder / "config.json").write_text("{}")
    (tmp_path / "run" / "checkpoints" / "00000030.unfinished").mkdir()
    return tmp_path / "run"


def options(workdir, **flags):
    return sample.read_options({"checkpoint": str(workdir)} | flags)


def test_more_tokens_than_the_model_was_made_for_are_noted(workdir, capsys):
    options(workdir, new_tokens=256)
    assert capsys.readouterr().err == ""
    assert options(workdir, new_tokens=300).length == 300
    assert "300 tokens are more than the 256 that the model was made for" in capsys.readouterr().err


def test_defaults_come_from_the_run(workdir):
    chosen = options(workdir)
    assert (chosen.sample.num, chosen.sample.steps, chosen.length) == (3, 17, 256)
    assert chosen.config == freeze(to_dict(RunConfig()) | {"sample": {"num": 3, "steps": 17}})
    assert (chosen.prompt, chosen.output, chosen.picture) == ("", None, None)
    assert chosen.generate == {"temperature": 1.0, "top_p": 1.0, "top_k": 0, "steps": 17, "guidance": 0.0, "seed": 0,
                               "stop_id": None, "max_length": 256}


def test_flags_go_before_them(workdir, tmp_path):
    flags = {
        "num": 1,
        "steps": 2,
        "temperature": 0.0,
        "top_p": 0.5,
        "top_k": 7,
        "guidance": 1.5,
        "seed": 9,
        "length": 40,
        "prompt": "def ",
        "output": str(tmp_path / "a.txt"),
        "picture": str(tmp_path / "b.html"),
    }
    chosen = options(workdir, **flags)
    assert chosen.sample == SampleConfig(num=1, steps=2, temperature=0.0, top_p=0.5, top_k=7, guidance=1.5, seed=9)
    assert (chosen.length, chosen.prompt) == (40, "def ")
    assert (chosen.output, chosen.picture) == (tmp_path / "a.txt", tmp_path / "b.html")


def test_three_ways_to_name_a_checkpoint(workdir, monkeypatch):
    folder = workdir / "checkpoints"
    for given in (workdir, folder, f"{folder}/", folder / "00000010"):
        assert sample.find_checkpoint(str(given)) == folder / "00000010"
    monkeypatch.chdir(folder / "00000005")
    assert sample.find_checkpoint(".") == folder / "00000005"


def test_configuration_and_weights_are_of_one_step_and_that_is_whole(workdir, caplog):
    """Step 20 has a readable config.json, which is not the one it was saved with."""
    chosen = options(workdir)
    assert chosen.folder == workdir / "checkpoints" / "00000010" and chosen.config.sample.steps == 17
    assert [record.getMessage() for record in caplog.records] == [
        f"checkpoint {workdir}/checkpoints/00000020 is passed over: size of config.json is 2, manifest.json says "
        f"{(chosen.folder / 'config.json').stat().st_size}"
    ]


def test_a_named_step_that_is_damaged_is_not_replaced_by_another(workdir):
    with pytest.raises(ConfigError, match="--checkpoint .*00000020: size of config.json is 2.*; give another step"):
        options(workdir / "checkpoints" / "00000020")


def test_a_language_is_prompted_with_numbers(workdir):
    save(workdir / "checkpoints" / "00000010", to_dict(RunConfig()), LanguageTokenizer(8))
    assert options(workdir, prompt="3 1 4").prompt == "3 1 4"
    with pytest.raises(ConfigError, match="--prompt: .*a language's tokens are written as numbers"):
        options(workdir, prompt="def")


def test_guidance_needs_masks_and_a_prompt_of_some_tokens(workdir):
    folder, config = workdir / "checkpoints" / "00000010", to_dict(RunConfig())
    save(folder, config, LanguageTokenizer(8))
    with pytest.raises(ConfigError, match="--guidance=0.5: guides towards a prompt; give a --prompt"):
        options(workdir, guidance=0.5, prompt=" ")
    config["process"]["mixing"] = 1.0
    save(folder, config, LanguageTokenizer(8))
    with pytest.raises(ConfigError, match="--guidance=0.5: masks the prompt, .*process.mixing=1 knows no masks"):
        options(workdir, guidance=0.5, prompt="3")


def test_help(tmp_path):
    result = run(MODULE, "--help", cwd=tmp_path)
    assert (result.status, result.err) == (0, "") and not result.imported.intersection(HEAVY)
    for flag in sample.FLAGS:
        assert f"--{flag.name}" in result.out
    for name in registry.DECODERS:
        assert f"--decoder={name}" in result.out
    names = [flag.name for flag in sample.FLAGS]
    assert len(set(names)) == len(names)


@pytest.mark.parametrize(
    ("arguments", "fragments"),
    [
        ([], ["--checkpoint is missing", "--checkpoint=runs/first"]),
        (["--checkpoint=gone"], ["--checkpoint", "gone: there is no such directory", "give a run's workdir"]),
        (["--checkpoint=."], ["--checkpoint", "holds no checkpoint"]),
        (["--checkpoint=run", "--num=0"], ["--num=0", "must be positive"]),
        (["--checkpoint=run", "--num=few"], ["--num=few", "a whole number"]),
        (["--checkpoint=run", "--steps=-4"], ["--steps=-4", "must be positive"]),
        (["--checkpoint=run", "--temperature=-1"], ["--temperature=-1", "0 is greedy"]),
        (["--checkpoint=run", "--temperature=nan"], ["--temperature=nan"]),
        (["--checkpoint=run", "--temperature=inf"], ["--temperature=inf"]),
        (["--checkpoint=run", "--top_p=0"], ["--top_p=0", "(0, 1]"]),
        (["--checkpoint=run", "--top_p=1.1"], ["--top_p=1.1"]),
        (["--checkpoint=run", "--top_k=-1"], ["--top_k=-1", "0 draws from all tokens"]),
        (["--checkpoint=run", "--guidance=-1", "--prompt=a"], ["--guidance=-1.0", "must not be negative"]),
        (["--checkpoint=run", "--guidance=0.5"], ["--guidance=0.5", "give a --prompt"]),
        (["--checkpoint=run", "--seed=-1"], ["--seed=-1", "2^32"]),
        (["--checkpoint=run", "--length=1"], ["--length=1", "at least 2"]),
        (["--checkpoint=run", "--length=4", "--prompt=déf"], ["--prompt is 4 tokens long", "--length=4"]),
        (["--checkpoint=run", "--picture=a.gif"], ["a.gif", ".html or .png"]),
        (["--checkpoint=run", "--picture=gone/a.png"], ["gone/a.png", "no folder gone"]),
        (["--checkpoint=run", "--output=run"], ["--output=run", "not a file name"]),
        (["--checkpoint=run", "--promt=x"], ["did you mean --prompt?"]),
        (["--checkpoint=run", "--config.train.steps=3"], ["no such flag"]),
    ],
)
def test_mistakes(arguments, fragments, workdir, tmp_path):
    shutil.rmtree(workdir / "checkpoints" / "00000020")
    before = snapshot(tmp_path)
    assert_refused(run(MODULE, *arguments, cwd=tmp_path), *fragments)
    assert snapshot(tmp_path) == before


def test_the_run_receives_the_options(workdir, monkeypatch):
    calls = []
    monkeypatch.setattr(launch, "run_sample", type("Recorder", (), {"main": staticmethod(calls.append)}), raising=False)
    assert sample.main([f"--checkpoint={workdir}", "--num", "2"]) == 0
    assert calls == [options(workdir, num=2)] and isinstance(calls[0].folder, Path)
