"""``launch.evaluate``, ``launch.tradeoff`` and ``launch.evolution`` on tiny runs, and what they refuse before jax."""

import dataclasses
import json
import math
import shutil
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from launch import evaluate, evolution, run_evaluate, tradeoff, train
from mdlm_jax.config import ConfigError, EvalConfig, RunConfig
from mdlm_jax.data.packing import make_batch
from mdlm_jax.data.tokenizers import ByteTokenizer
from mdlm_jax.training import manifest
from tests.generation import models
from tests.launch.commands import assert_refused, run

SMALL = {
    "model.layers": 1, "model.d_model": 16, "model.heads": 2, "data.length": 16, "train.steps": 3,
    "train.batch_size": 8, "train.warmup_steps": 1, "eval.final_rows": 24, "sample.num": 1,
}
FEW = ("--rows=24", "--samples=6", "--steps=2,4", "--batch_size=4")


def trained(workdir, **fields):
    flags = [f"--config.{name}={value}" for name, value in (SMALL | fields).items()]
    assert train.main(["--config=oracle", f"--workdir={workdir}", *flags]) == 0
    return workdir


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    for mixing in (0, 0.5):
        trained(folder / f"m{mixing}", **{"process.mixing": mixing, "eval.draws": 2, "sample.steps": 2})
    causal = {"train.objective": "autoregressive", "model.attention": "causal", "model.logit_shift": True}
    trained(folder / "judge", **causal)
    return folder


@pytest.fixture
def copied(runs, tmp_path):
    return shutil.copytree(runs, tmp_path / "runs")


def test_bounds_samples_and_judges_are_recorded(copied, capsys):
    command = [f"--checkpoint={copied / 'm0'}", f"--judge=oracle,{copied / 'judge'}", *FEW]
    assert evaluate.main(command) == 0
    out = capsys.readouterr().out
    record = json.loads((copied / "m0" / "evaluation.json").read_text())
    held_out, summary = record["likelihood"]["held-out"], json.loads((copied / "m0" / "summary.json").read_text())
    assert held_out["bound"]["nats"][0] == pytest.approx(summary["held_out"]["nats_per_token"], rel=1e-6)
    assert held_out["bound"]["perplexity"] == pytest.approx(math.exp(held_out["bound"]["nats"][0]))
    assert not held_out["exact"] and "published" in held_out and "true bound" in out
    assert list(record["generation"]) == ["held-out", "2", "4"]
    for part in record["generation"].values():
        assert part["rows"] == 6 and list(part["cross_entropy"]) == ["oracle", str(copied / "judge")]
    assert record["generation"]["2"]["forwards"] == 2.0
    assert f"cross-entropy, {copied / 'judge'}" in out


@pytest.mark.slow
def test_eight_devices_give_the_same_figures(copied):
    command = [f"--checkpoint={copied / 'm0'}", f"--judge=oracle,{copied / 'judge'}", *FEW]
    one, eight = copied / "one.json", copied / "eight.json"
    assert evaluate.main([*command, f"--output={one}"]) == 0
    assert evaluate.main([*command, f"--output={eight}", "--mesh=fsdp:-1"]) == 0
    record, found = (json.loads(path.read_text()) for path in (one, eight))
    expected = record["likelihood"]["held-out"]["bound"]["nats"]
    assert found["likelihood"]["held-out"]["bound"]["nats"] == pytest.approx(expected, rel=1e-5)
    assert found["generation"]["4"]["entropy"] == record["generation"]["4"]["entropy"]


def test_a_stopped_command_goes_on_and_makes_nothing_twice(copied, monkeypatch):
    command = [f"--checkpoint={copied / 'm0'}", *FEW]
    drawn, draw = [], run_evaluate._draw

    def stopped(options, model, steps):
        if steps == 4:
            raise KeyboardInterrupt
        return draw(options, model, steps)

    monkeypatch.setattr(run_evaluate, "_draw", stopped)
    assert evaluate.main(command) == 130
    before = json.loads((copied / "m0" / "evaluation.json").read_text())
    assert list(before["generation"]) == ["held-out", "2"]
    monkeypatch.setattr(run_evaluate, "_draw", lambda *a: drawn.append(a[2]) or draw(*a))
    assert evaluate.main(command) == 0
    after = json.loads((copied / "m0" / "evaluation.json").read_text())
    assert drawn == [4] and after["generation"]["2"] == before["generation"]["2"]
    monkeypatch.setattr(run_evaluate.mdlm_jax, "load", None)  # a whole record needs no model
    assert evaluate.main(command) == 0


@pytest.mark.slow
def test_a_command_tells_what_it_asked_for_and_nothing_older(copied, capsys):
    path = copied / "m0" / "evaluation.json"
    assert evaluate.main([f"--checkpoint={copied / 'm0'}", "--rows=0", "--samples=2", "--steps=2"]) == 0
    capsys.readouterr()
    assert evaluate.main([f"--checkpoint={copied / 'm0'}", "--rows=0", "--samples=4", "--steps=4"]) == 0
    assert "\n       2 " not in capsys.readouterr().out and list(json.loads(path.read_text())["generation"]) == [
        "held-out", "2", "4"]


def test_the_record_of_another_checkpoint_is_set_aside(copied, capsys):
    command = [f"--checkpoint={copied / 'm0'}", "--rows=8", "--samples=0"]
    assert evaluate.main(command) == 0
    path = copied / "m0" / "evaluation.json"
    content = json.loads(path.read_text())
    path.write_text(json.dumps(content | {"model": content["model"] | {"digest": "other"}}))
    assert evaluate.main(command) == 0
    assert "it is now evaluation-00000003.json" in capsys.readouterr().out
    assert json.loads((copied / "m0" / "evaluation-00000003.json").read_text())["model"]["digest"] == "other"


@pytest.mark.slow
def test_other_data_than_the_run_was_trained_on_are_refused(tmp_path, capsys):
    text = tmp_path / "text.txt"
    text.write_text("".join(f"line {n} of a text\n\n" for n in range(2000)))
    small = {"data.source": text, "data.valid_fraction": 0.3, "eval.draws": 2, "sample.steps": 2}
    trained(tmp_path / "run", **small)
    command = [f"--checkpoint={tmp_path / 'run'}", "--rows=8", "--samples=0", f"--text={text}"]
    assert evaluate.main(command) == 0
    text.write_text("a new beginning\n\n" * 300 + text.read_text())
    assert evaluate.main([*command, "--output=" + str(tmp_path / "other.json")]) == 2
    assert "is no longer what" in capsys.readouterr().err


@pytest.mark.slow
def test_texts_and_samples_need_none_of_the_runs_data(tmp_path, capsys):
    text, other = tmp_path / "text.txt", tmp_path / "other.txt"
    for file in (text, other):
        file.write_text("".join(f"line {n} of a {file.stem}\n\n" for n in range(500)))
    trained(tmp_path / "run", **{"data.source": text, "data.valid_fraction": 0.3, "eval.draws": 2, "sample.steps": 2})
    text.unlink()
    command = [f"--checkpoint={tmp_path / 'run'}", "--rows=8", "--samples=2", "--steps=2", f"--text={other}"]
    assert evaluate.main(command) == 2
    capsys.readouterr()
    assert evaluate.main([*command, "--held_out=false"]) == 0
    record = json.loads((tmp_path / "run" / "evaluation.json").read_text())
    assert list(record["likelihood"]) == [str(other)] and list(record["generation"]) == ["2"]


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["block", "gidd"])
def test_runs_of_other_kinds(tmp_path, kind):
    """Blocks share the steps; GIDD's figures leave out nothing of the bound."""
    fields = {"block": {"train.objective": "block", "model.attention": "block_causal", "model.block_length": 4},
              "gidd": {"process.family": "gidd", "process.p_uniform": 0.2, "model.conditioning": "time"}}[kind]
    trained(tmp_path / "run", **fields)
    steps = "8" if kind == "block" else "3"
    command = [f"--checkpoint={tmp_path / 'run'}", "--rows=8", "--samples=2", "--draws=2"]
    if kind == "block":
        assert evaluate.main([*command, "--steps=3"]) == 2
    assert evaluate.main([*command, f"--steps={steps}"]) == 0
    record = json.loads((tmp_path / "run" / "evaluation.json").read_text())
    held_out = record["likelihood"]["held-out"]
    assert ("published" in held_out) == (kind == "gidd")
    assert record["generation"][steps]["forwards"] == int(steps)
    assert held_out["bound"]["nats"][0] == pytest.approx(sum(held_out["terms"].values()), rel=1e-5)


@pytest.mark.slow
def test_an_autoregressive_run_is_exact_and_takes_its_own_steps(copied):
    assert evaluate.main([f"--checkpoint={copied / 'judge'}", "--rows=8", "--samples=2"]) == 0
    record = json.loads((copied / "judge" / "evaluation.json").read_text())
    assert record["likelihood"]["held-out"]["exact"] and "published" not in record["likelihood"]["held-out"]
    assert record["generation"]["own"]["forwards"] == 16.0


def test_models_are_put_side_by_side(copied, capsys):
    figure, table = copied / "f.png", copied / "t.md"
    flags = [f"--figure={figure}", f"--table={table}", *FEW]
    assert tradeoff.main([f"--checkpoints={copied}/m*", *flags]) == 0
    assert figure.stat().st_size > 10_000
    assert "| 0 | 1 |" in table.read_text() and "| 0.5 | 1 |" in table.read_text()
    assert "[2 of 2]" in capsys.readouterr().out


def test_transitions_are_drawn(copied, capsys):
    figure = copied / "e.png"
    flags = [f"--figure={figure}", "--steps=4", "--samples=3"]
    assert evolution.main([f"--checkpoints={copied / 'm0'},{copied / 'm0.5'}", *flags]) == 0
    out = capsys.readouterr().out
    assert figure.stat().st_size > 10_000 and "| mixing 0 | 4 | 1.000 | 0.000 | 0.000 |" in out


def test_the_published_convention_is_the_mean_integrand_without_the_ends():
    """A network that knows nothing: the bound is log 11, the mean of rate(t) / b(t) over masks 0.999 of it."""
    batch = make_batch(np.arange(40).reshape(4, 10) % 10, "concat", models.EOS, 77)
    asked = types.SimpleNamespace(draws=64, seed=0)

    def figures(mixing):
        model = models.tokens_model(mixing=mixing)
        model = dataclasses.replace(model, params=jax.tree.map(jnp.zeros_like, model.params))
        config = dataclasses.replace(RunConfig(), eval=EvalConfig(draws=64))
        return run_evaluate.Measure(asked, config, model)(batch)

    masked, mixed = figures(0.0), figures(0.5)
    assert masked["bound"]["nats"] == pytest.approx([math.log(11), 0.0], abs=1e-5)
    mean, error = masked["published"]["nats"]
    assert abs(mean - 0.999 * math.log(11)) < 4 * error + 1e-3 and error < 0.1
    assert mixed["published"]["nats"][0] == pytest.approx(mixed["terms"]["diffusion"] / 0.999, rel=1e-6)
    assert mixed["bound"]["nats"][0] == pytest.approx(sum(mixed["terms"].values()), rel=1e-6)


@pytest.mark.parametrize(("flags", "said"), [
    ({"samples": -1}, "--samples=-1: must be at least 0"),
    ({"samples": 0, "held_out": False}, "there is nothing to measure; give --rows"),
    ({"samples": 0, "rows": 0}, "there is nothing to measure; give --rows"),
    ({"steps": "4,x"}, "--steps=4,x: must be whole numbers"),
    ({"text": "some.txt"}, "stand for no text"),
    ({"judge": "nowhere"}, "--judge=nowhere: "),
    ({"judge": "SELF"}, "was trained with train.objective=nelbo; a judge must be autoregressive"),
    ({"judge": "BYTES"}, "one of the two stand for no text"),
    ({"judge": "NO_TOKENS"}, "tokenizer.json is missing"),
    ({"decoder": "joint_speedy", "steps": "4"}, "the decoder joint_speedy takes as many as it needs"),
    ({"output": "nowhere/e.json"}, "--output=nowhere/e.json: give a file in a folder that exists"),
    ({"decoder": "threshold", "eta": 0.1}, "--eta=0.1: the decoder threshold has no such number"),
])
def test_mistakes_are_named(copied, flags, said):
    runs = copied
    flags = {name: str(runs / "m0") if value == "SELF" else value for name, value in flags.items()}
    if flags.get("judge") in ("BYTES", "NO_TOKENS"):
        file = next((runs / "judge").glob("checkpoints/*")) / "tokenizer.json"
        file.unlink()
        if flags["judge"] == "BYTES":
            ByteTokenizer().save(file)
        manifest.write(file.parent)
        flags["judge"] = str(runs / "judge")
    with pytest.raises(ConfigError) as caught:
        evaluate.read_options({"checkpoint": str(runs / "m0")} | flags)
    assert said in str(caught.value)


def test_mistakes_of_the_other_two(runs, capsys):
    assert tradeoff.main([f"--checkpoints={runs}/x*"]) == 2
    assert tradeoff.main([f"--checkpoints={runs}/m*", "--by=process.mixin"]) == 2
    assert tradeoff.main([f"--checkpoints={runs}/m*", "--few=3"]) == 2
    assert evolution.main([f"--checkpoints={runs}/judge", "--figure=e.png"]) == 2
    err = capsys.readouterr().err
    for said in ("nothing matches", "--by=process.mixin", "--few=3", "its network is causal"):
        assert said in err


@pytest.mark.parametrize("module", ["launch.evaluate", "launch.tradeoff", "launch.evolution"])
def test_a_missing_checkpoint_is_refused_before_jax(module):
    assert_refused(run(module), "is missing")
