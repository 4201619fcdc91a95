"""A run with GIDD's noise: trained, measured, loaded and sampled by the commands."""

import json

import numpy as np
import pytest

import mdlm_jax
from mdlm_jax.core.gidd import GiddProcess
from tests.launch.commands import run

START = ["--config=oracle", "--workdir=run", "--config.process.family=gidd", "--config.process.p_uniform=0.2",
         "--config.train.weighting=dynamic", "--config.train.steps=6", "--config.train.warmup_steps=1",
         "--config.train.batch_size=8", "--config.model.layers=1", "--config.model.d_model=16",
         "--config.model.heads=2", "--config.model.conditioning=time", "--config.data.length=16",
         "--config.sample.num=2", "--config.sample.steps=5", "--config.eval.rows=8", "--config.eval.final_rows=8",
         "--config.eval.draws=2", "--config.eval.every=6", "--config.train.checkpoint_every=6",
         "--config.train.mesh=fsdp:1"]


@pytest.mark.slow
def test_trained_measured_loaded_and_sampled(tmp_path):
    done = run("launch.train", *START, cwd=tmp_path)
    assert done.status == 0 and "held-out bound" in done.out.splitlines()[-1], done
    assert json.loads((tmp_path / "run" / "config.json").read_text())["process"]["family"] == "gidd"
    records = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    terms = [record for record in records if "eval/prior" in record][-1]
    assert terms["eval/prior"] == 0.0 < terms["eval/reconstruction"] < terms["eval/diffusion"] < terms["eval/loss"]
    model = mdlm_jax.load(tmp_path / "run")
    assert type(model.process) is GiddProcess and model.process.p_uniform == 0.2
    blank = [np.zeros(0, np.int32)] * 2
    one, two = (model.generate(blank, new_tokens=16, steps=5, seed=3) for _ in range(2))
    for found, again in zip(one, two, strict=True):
        assert (found.tokens == again.tokens).all() and (found.tokens != model.process.mask_id).all()
        assert found.forwards == 5
    drawn = run("launch.sample", "--checkpoint=run", "--num=2", "--steps=4", cwd=tmp_path)
    assert drawn.status == 0 and "GIDD" not in drawn.err, drawn
    refused = run("launch.sample", "--checkpoint=run", "--num=2", "--decoder=p2", cwd=tmp_path)
    assert refused.status == 2 and "masked process" in refused.err
