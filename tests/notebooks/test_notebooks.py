"""Every notebook runs from its first cell to its last, with smaller numbers in the cell of its parameters."""

import json
from pathlib import Path

import matplotlib
import pytest

FOLDER = Path(__file__).resolve().parents[2] / "notebooks"
SMALL = {
    "xdlm.ipynb": """
TINY = {"model.layers": 1, "model.d_model": 16, "model.heads": 2, "data.length": 16, "eval.final_rows": 16,
        "sample.num": 1, "train.warmup_steps": 1, "train.steps": 2, "train.checkpoint_every": 2}
MIXINGS, TRAINING, ADAPTED = (0, 0.5), TINY, {n: v for n, v in TINY.items() if not n.startswith("model")}
MEASURED = ["--rows=8", "--samples=4", "--steps=2,4"]
""",
}


def cells(path: Path) -> list[dict]:
    return [cell for cell in json.loads(path.read_text())["cells"] if cell["cell_type"] == "code"]


def test_every_notebook_is_run():
    assert sorted(path.name for path in FOLDER.glob("*.ipynb")) == sorted(SMALL)


@pytest.mark.parametrize("name", SMALL)
def test_a_notebook_is_kept_without_outputs(name):
    for cell in cells(FOLDER / name):
        assert not cell["outputs"] and cell["execution_count"] is None


@pytest.mark.slow
@pytest.mark.parametrize("name", SMALL)
def test_a_notebook_runs(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    matplotlib.use("Agg")
    scope, parameters = {}, 0
    for cell in cells(FOLDER / name):
        exec("".join(cell["source"]), scope)
        if "parameters" in cell["metadata"].get("tags", []):
            exec(SMALL[name], scope)
            parameters += 1
    scope["plt"].close("all")
    assert parameters == 1
    assert {path.name for path in tmp_path.rglob("*.png")} >= {"tradeoff.png", "evolution.png", "adapted.png"}
