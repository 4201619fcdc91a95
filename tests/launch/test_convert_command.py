"""launch.convert: both ways, dry runs, and errors of one line."""

import json

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file

import mdlm_jax
from tests.launch.commands import assert_refused, run
from tests.models.hf.support import DESCRIPTIONS, GOLDEN, random_tensors, save

DREAM = GOLDEN / "dream_ckpt"


def test_there_and_back(tmp_path):
    done = run("launch.convert", f"--from={DREAM}", f"--to={tmp_path / 'ours'}")
    assert done.status == 0, done
    assert "39 tensors" in done.out and "mask_id 246" in done.out
    model, expected = mdlm_jax.load(tmp_path / "ours"), mdlm_jax.load(DREAM)
    assert model.config == expected.config
    assert all(map(np.array_equal, jax.tree.leaves(model.params), jax.tree.leaves(expected.params)))
    done = run("launch.convert", f"--from={tmp_path / 'ours'}", f"--to={tmp_path / 'hf'}")
    assert done.status == 0, done
    written, original = load_file(tmp_path / "hf" / "model.safetensors"), load_file(DREAM / "model.safetensors")
    assert written.keys() == original.keys()
    assert all(np.array_equal(written[name], original[name]) for name in original)
    raw = json.loads((tmp_path / "hf" / "config.json").read_text())
    assert (raw["model_type"], raw["mask_token_id"], raw["rope_theta"]) == ("Dream", 246, 1e6)


def test_a_dry_run_prints_the_table_and_writes_nothing(tmp_path):
    done = run("launch.convert", f"--from={DREAM}", "--dry_run")
    assert done.status == 0 and "model.embed_tokens.weight" in done.out and "256x64" in done.out
    assert not list(tmp_path.iterdir())


def test_bare_safetensors_and_a_preset(tmp_path):
    (tmp_path / "bare").mkdir()
    folder = save(tmp_path / "smdm", DESCRIPTIONS["smdm"], random_tensors(DESCRIPTIONS["smdm"]))
    (folder / "model.safetensors").rename(tmp_path / "bare" / "mdm.safetensors")
    assert_refused(run("launch.convert", f"--from={tmp_path / 'bare'}", "--dry_run"), "--preset")
    done = run("launch.convert", f"--from={tmp_path / 'bare'}", "--preset=smdm-6m", "--dry_run")
    assert done.status == 2 and "of another shape" in done.err and len(done.err.splitlines()) == 1


@pytest.mark.parametrize(
    "arguments, fragments",
    [
        ([], ["--from is missing"]),
        (["--from=/nowhere", "--to=x"], ["/nowhere", "no such folder"]),
        ([f"--from={DREAM}"], ["--to is missing"]),
        ([f"--from={DREAM}", f"--to={DREAM}"], ["exists already"]),
        ([f"--from={DREAM}", "--to=x", "--dtype=int4"], ["--dtype=int4", "bfloat16"]),
        ([f"--from={DREAM}", "--to=x", "--preset=dream-7b"], ["--preset", "config.json"]),
        ([f"--from={DREAM}", "--frm=x"], ["--frm", "did you mean --from"]),
    ],
)
def test_mistakes_are_told_in_one_line(arguments, fragments):
    assert_refused(run("launch.convert", *arguments), *fragments)


def test_a_config_that_cannot_be_obeyed_is_refused_before_jax(tmp_path):
    raw = json.loads((DREAM / "config.json").read_text()) | {"use_sliding_window": True}
    (tmp_path / "config.json").write_text(json.dumps(raw))
    assert_refused(run("launch.convert", f"--from={tmp_path}", "--dry_run"), "use_sliding_window")


def test_help():
    done = run("launch.convert", "--help")
    assert done.status == 0 and "--from" in done.out and "llada_moe" in done.out
