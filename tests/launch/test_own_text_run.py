"""dParallel and DMax from end to end: a network, its trajectories, training on them, and decoding."""

import numpy as np
import pytest

import mdlm_jax
from launch import train, trajectories

SMALL = ("--config.data.length=6", "--config.train.batch_size=8", "--config.train.warmup_steps=1",
         "--config.eval.final_rows=16", "--config.eval.rows=8", "--config.sample.num=2", "--config.train.steps=3")
NETWORK = [f"--config.model.{name}" for name in ("layers=1", "d_model=16", "heads=2")]
EMPTY = [np.zeros(0, np.int32)] * 2


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """base, its trajectories, and runs on them below one folder."""
    folder = tmp_path_factory.mktemp("own")
    assert train.main(["--config=oracle", f"--workdir={folder / 'base'}", "--config.data.source=language:shuffle",
                       *NETWORK, *SMALL]) == 0
    assert trajectories.main([f"--checkpoint={folder / 'base'}", f"--output={folder / 'rows'}", "--num=96"]) == 0
    for kind, more in (("dparallel", ["--config.train.lora_rank=2", "--config.train.objective=dparallel:3,2,0.5"]),
                       ("dmax", [])):
        assert train.main([f"--config={kind}", f"--config.train.init_from={folder / 'base'}",
                           f"--workdir={folder / kind}", f"--config.data.source=trajectories:{folder / 'rows'}",
                           "--config.data.valid_fraction=0.25", *SMALL, *more]) == 0
    return folder


def written(model, **options):
    found = model.generate(EMPTY, new_tokens=6, max_length=6, stop_id=None, **options)
    assert all((np.asarray(one.tokens) != model.process.mask_id).all() and len(one.tokens) == 6 for one in found)
    return found


@pytest.mark.slow
def test_runs_are_used_as_any_other(runs, capsys):
    base, sure, soft = (mdlm_jax.load(runs / name) for name in ("base", "dparallel", "dmax"))
    assert all((a != b).any() for a, b in ((base.params["layers"]["mlp"]["up"], m.params["layers"]["mlp"]["up"])
                                           for m in (sure, soft)))  # adapters are merged
    np.testing.assert_array_equal(base.params["embedding"], sure.params["embedding"])
    assert all(one.forwards <= 6 for one in written(sure, decoder="threshold", threshold=0.5, steps=6))
    assert all(one.forwards <= 22 for one in written(soft, decoder="soft_parallel", threshold=0.3))
    assert all(one.forwards <= 2 * 19 for one in written(soft, decoder="soft_parallel", block_length=3, blend=2))
    assert len((runs / "dmax" / "samples.txt").read_text().split("--- sample")) == 3


def test_a_run_goes_on(runs, capsys):
    assert train.main(["--config=dmax", f"--config.train.init_from={runs / 'base'}", f"--workdir={runs / 'dmax'}",
                       f"--config.data.source=trajectories:{runs / 'rows'}", "--config.data.valid_fraction=0.25",
                       *SMALL, "--config.train.steps=4"]) == 0
    out = capsys.readouterr().out
    assert "resuming from step 3" in out and "held-out bound: " in out and "samples (" not in out


@pytest.mark.slow
def test_a_block_causal_network_learns_in_its_blocks(runs, tmp_path):
    assert train.main(["--config=dmax", "--config.train.init_from=", f"--workdir={tmp_path / 'blocks'}", *NETWORK,
                       "--config.data.source=language:shuffle", "--config.model.attention=block_causal",
                       "--config.model.block_length=3", *SMALL]) == 0
    model = mdlm_jax.load(tmp_path / "blocks")
    found, plain = (written(model, decoder="soft_parallel", cache=cache) for cache in ("block", "none"))
    assert [one.tokens.tolist() for one in found] == [one.tokens.tolist() for one in plain]


@pytest.mark.parametrize(("flags", "said"), [
    (["--config.train.objective=count"], "are for train.objective=joint:3, dparallel:32,2,0.5 and dmax:1,1,0"),
    (["--config.model.attention=causal"], "model.attention='causal'"),
    (["--config.data.length=8"], "data.length=8: the trajectories have rows of 6"),
])
def test_mistakes_are_named(runs, tmp_path, capsys, flags, said):
    assert train.main(["--config=dparallel", f"--config.train.init_from={runs / 'base'}",
                       f"--workdir={tmp_path / 'new'}", f"--config.data.source=trajectories:{runs / 'rows'}",
                       *SMALL, *flags]) == 2
    assert said in capsys.readouterr().err and not (tmp_path / "new").exists()
