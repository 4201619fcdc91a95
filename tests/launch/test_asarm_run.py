"""An any-subset model from end to end: a run, its samples, and decoding by ASSD as any other run is decoded."""

import json

import numpy as np
import pytest

import mdlm_jax
from launch import train


@pytest.mark.slow
@pytest.mark.parametrize("objective", ["any_subset:0.1,0.5", "any_order"])
def test_a_run_is_loaded_and_fills_holes(objective, tmp_path, capsys):
    small = ("data.length=12", "train.batch_size=8", "train.warmup_steps=1", "train.steps=6", "eval.final_rows=16",
             "eval.rows=8", "sample.num=2", "model.layers=1", "model.d_model=16", "model.heads=2")
    assert train.main(["--config=asarm", f"--workdir={tmp_path}", f"--config.train.objective={objective}",
                       *(f"--config.{name}" for name in small)]) == 0
    said = "what random prompts leave" if objective.startswith("any_subset") else "held-out bound"
    assert said in capsys.readouterr().out
    assert np.isfinite(json.loads((tmp_path / "summary.json").read_text())["held_out"]["nats_per_token"])
    model = mdlm_jax.load(tmp_path)
    mask = model.process.mask_id
    found = model.generate([[1, 2], np.zeros(0, np.int32)], new_tokens=6, max_length=12, decoder="assd", stop_id=None)
    filled = model.infill([[mask, 1, mask, 2, mask]], drafts=2)
    for one, holes in zip(found + filled, (6, 6, 3), strict=True):
        assert mask not in one.row and one.forwards <= holes
    assert filled[0].row[[1, 3]].tolist() == [1, 2]
