"""``launch.scaling``: the grid it makes, what it refuses, and a study that is killed and goes on."""

import json
import sys
from pathlib import Path

import pytest

from launch import _configs, _scaling, scaling
from mdlm_jax.config import ConfigError, to_dict
from mdlm_jax.models.shapes import layer_parameter_count
from tests.launch.commands import assert_refused, killed_and_again, run

TINY = '''
from mdlm_jax.config import default_config
STUDY = {"sizes": ("8", "16", "24"), "budgets": (BUDGET,), "families": ("masked", "autoregressive")}
def get_config(choice="8,masked,1e9"):
    size, family, flops = choice.split(",")
    config = default_config()
    config.model.layers, config.model.d_model, config.model.heads, config.model.d_ff = 1, int(size), 1, 16
    config.data.source, config.data.length = "language:hmm", 16
    config.train.batch_size, config.train.warmup_steps, config.train.checkpoint_every = 8, 1, 50
    count = 4 * int(size) ** 2 + 3 * int(size) * 16 + 3 * int(size)
    config.train.steps = round(float(flops) / (6 * count * 8 * 16))
    config.eval.final_rows = config.eval.rows = 8
    config.eval.every, config.sample.num = 10**6, 1
    if family == "autoregressive":
        config.model.attention, config.model.logit_shift = "causal", True
        config.train.objective = "autoregressive"
    else:
        config.sample.steps, config.eval.draws = 2, 2
    return config
'''


def recipe(folder: Path, budget="3e7") -> str:
    (folder / "tiny.py").write_text(TINY.replace("BUDGET", budget))
    return str(folder / "tiny.py")


def study(folder, overrides=None, **flags):
    return scaling.read_study({"config": recipe(folder), "workdir": str(folder / "study")} | flags, overrides or {})


def test_the_grid_of_the_recipe_for_a_cpu():
    grid = scaling.read_study({"config": "scaling", "dry_run": True}, {"train.seed": 3})
    told = _configs.study("scaling")
    assert len(grid.cells) == 30 == sum(map(len, told["sizes"].values())) * len(told["families"])
    assert {c.size for c in grid.cells if c.flops == 1e12} == set(told["sizes"][1e12])
    for cell in grid.cells:
        assert abs(cell.spent / cell.flops - 1) < 0.01 and cell.config.train.seed == 3
        assert cell.parameters == layer_parameter_count(cell.config.model.transformer(259))
        assert (cell.config.train.objective == "autoregressive") == (cell.family == "autoregressive")
    twins = [{(c.size, c.flops, c.config.train.steps) for c in grid.cells if c.family == f} for f in told["families"]]
    assert twins[0] == twins[1]


def test_sizes_of_a_budget_that_the_recipe_does_not_know():
    with pytest.raises(ConfigError, match="--budgets=2e.12: the recipe's STUDY has sizes for 1e.12, .*; say with --si"):
        scaling.read_study({"config": "scaling", "dry_run": True, "budgets": "2e12"}, {})
    flags = {"config": "scaling", "dry_run": True, "budgets": "2e12,1e12", "sizes": "2x32,2x48"}
    assert [cell.size for cell in scaling.read_study(flags, {}).cells] == ["2x32", "2x48"] * 4


def test_a_plan_for_a_pod_has_days_and_chip_hours():
    flags = {"config": "smdm", "sizes": "19,170", "budgets": "6e18", "dry_run": True, "topology": "v5p:2x2x4"}
    text = _scaling.grid(scaling.read_study(flags, {"data.source": "prepared:rows"}))
    assert "masked_170_6e+18" in text and "chip-hours at 50% of the bound" in text and len(text.splitlines()) == 6
    small = flags | {"topology": "v5e:1x1", "sizes": "2121", "budgets": "1e20"}
    with pytest.raises(ConfigError, match="masked_2121_1e.20: fits no mesh of v5e:1x1"):
        _scaling.grid(scaling.read_study(small, {"data.source": "prepared:rows"}))


@pytest.mark.parametrize(("flags", "said"), [
    ({"budgets": "lots"}, "--budgets=lots: must be positive"),
    ({"budgets": "1e7,1e7"}, "names one twice"),
    ({"sizes": "8,eight"}, "ValueError"),
    ({"budgets": "3e5"}, r"its 1 steps spend 5.1e\+05 FLOPs \(6 N D\), not 300000"),
    ({"topology": "v5e:4x4"}, "--topology=v5e:4x4: is of a plan; add --dry_run"),
    ({"workdir": ""}, "--workdir is missing"),
    ({"config": "scaling:2x32,masked,1e12"}, "what is behind the colon is made here"),
    ({"config": "quickstart"}, "--budgets is missing: the recipe has no STUDY"),
    ({"config": "quickstart", "budgets": "1e12"}, "--sizes is missing: the recipe has no STUDY"),
    ({"config": "quickstart", "sizes": "1,2,3", "budgets": "1e12"}, "takes 0 positional arguments"),
])
def test_mistakes_are_named(tmp_path, flags, said):
    with pytest.raises(ConfigError, match=said):
        study(tmp_path, **flags)


def test_what_is_done_is_fitted_and_drawn(tmp_path, capsys):
    made = study(tmp_path, budgets="3e7,9e7", report=True)
    for number, cell in enumerate(made.cells):
        folder = made.workdir / cell.name
        folder.mkdir(parents=True)
        held_out = {"nats_per_token": 2.0 + (number % 3 - 1) ** 2 - cell.flops / 1e9, "nats_stderr": 0.01}
        (folder / "summary.json").write_text(json.dumps({"held_out": held_out}))
        (folder / "config.json").write_text(json.dumps(to_dict(cell.config)))
    (made.workdir / made.cells[0].name / "summary.json").unlink()
    assert _scaling.run(made) == 0
    out = capsys.readouterr().out
    assert "11 of 12 runs are done" in out and "autoregressive: exponent of L*" in out
    assert (made.workdir / "scaling.png").stat().st_size > 10_000
    assert "| autoregressive | 9e+07 |" in (made.workdir / "scaling.md").read_text()
    assert json.loads((made.workdir / "scaling.json").read_text())["autoregressive: exponent of L*"]["value"] < 0


def test_runs_of_a_study_are_measured_alike(tmp_path):
    made = study(tmp_path, {"eval.draws": 6}, report=True)
    assert [cell.config.eval.draws for cell in made.cells] == [6] * 3 + [4] * 3  # autoregressive ones read none
    assert ["--config.eval.draws=6" in cell.flags for cell in made.cells] == [True] * 3 + [False] * 3
    folder = made.workdir / made.cells[0].name
    folder.mkdir(parents=True)
    (folder / "summary.json").write_text("{}")
    (folder / "config.json").write_text(json.dumps(to_dict(made.cells[0].config)))
    with pytest.raises(ConfigError, match=r"was measured with eval.draws=6, not 2; .* set --config.eval.draws=6"):
        _scaling.run(study(tmp_path, report=True))


def test_refused_before_jax():
    assert_refused(run("launch.scaling"), "--config is missing")


@pytest.mark.slow
def test_a_killed_study_goes_on(tmp_path):
    """SIGKILL amid its second run: the first is not made again, the second goes on from its checkpoint."""
    command = [sys.executable, "-m", "launch.scaling", f"--config={recipe(tmp_path, '3e8')}",
               f"--workdir={tmp_path / 'study'}", "--sizes=8,16,24"]
    first, second = (tmp_path / "study" / f"masked_{size}_3e+08" for size in (8, 16))
    said = killed_and_again(command, first, second, 300)
    assert "6 of 6 runs are done" in said and "autoregressive" in (tmp_path / "study" / "scaling.md").read_text()
