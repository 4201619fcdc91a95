"""Learned self-correction from end to end: a network, a planner and a head beside it, and decoding by them."""

import jax
import numpy as np
import pytest

import mdlm_jax
from launch import train
from mdlm_jax.config import ConfigError
from mdlm_jax.models.quality import QualityConfig

SMALL = ("--config.data.length=6", "--config.train.batch_size=8", "--config.train.warmup_steps=1",
         "--config.eval.final_rows=16", "--config.eval.rows=8", "--config.sample.num=2",
         "--config.data.source=language:shuffle")
NETWORK = [f"--config.model.{name}" for name in ("layers=1", "d_model=16", "heads=2")]
EMPTY = [np.zeros(0, np.int32)] * 2


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """base, planner and prism below one folder."""
    folder = tmp_path_factory.mktemp("quality")
    assert train.main(["--config=oracle", f"--workdir={folder / 'base'}", "--config.train.steps=4", *NETWORK,
                       *SMALL]) == 0
    for kind in ("planner", "prism"):
        assert train.main(learn(folder, kind)) == 0
    return folder


def learn(folder, kind, *more):
    return [f"--config=planner:{kind}", f"--config.train.init_from={folder / 'base'}", f"--workdir={folder / kind}",
            "--config.train.steps=5", "--config.sample.steps=3", *SMALL, *more]


def leaves(tree):
    return [np.asarray(leaf) for leaf in jax.tree.leaves(tree)]


def written(model, **options):
    found = model.generate(EMPTY, new_tokens=6, max_length=6, stop_id=None, **options)
    assert all((np.asarray(one.tokens) != model.process.mask_id).all() and len(one.tokens) == 6 for one in found)
    return found


@pytest.mark.parametrize(("kind", "layers", "options"), [
    ("planner", 2, {"decoder": "p2", "planner": "trained", "steps": 4}),
    ("prism", 1, {"decoder": "prism", "remask": 2, "steps": 4})])
def test_it_is_loaded_with_its_network_which_stayed(runs, kind, layers, options):
    base, model = mdlm_jax.load(runs / "base"), mdlm_jax.load(runs / kind)
    for found, expected in zip(leaves(model.params), leaves(base.params), strict=True):
        np.testing.assert_array_equal(found, expected)
    assert base.quality is None and model.joint is None
    assert model.quality.config == QualityConfig(model.config, kind, layers)
    assert np.any(np.asarray(model.quality.params["score"]))
    assert [one.forwards for one in written(model, **options)] == [4, 4] or kind == "planner"
    with pytest.raises(ConfigError, match=f"quality=None: .*needs what train.objective={kind}:1 trained"):
        written(base, **options)


def test_one_does_not_do_for_the_other(runs):
    with pytest.raises(ConfigError, match="quality=planner: PRISM needs what train.objective=prism:1"):
        written(mdlm_jax.load(runs / "planner"), decoder="prism", steps=3)
    with pytest.raises(ConfigError, match="quality=prism: P2 needs what train.objective=planner:1"):
        written(mdlm_jax.load(runs / "prism"), decoder="p2", planner="trained", steps=3)
    written(mdlm_jax.load(runs / "prism"), decoder="p2", steps=3)


@pytest.mark.parametrize(("kind", "figure"), [("planner", "held-out loss of the planner, weighted: "),
                                              ("prism", "held-out loss of the head, a revealed token: ")])
def test_the_run_says_what_it_measured_and_goes_on(runs, capsys, kind, figure):
    assert train.main(learn(runs, kind, "--config.train.steps=7")) == 0
    out = capsys.readouterr().out
    assert "resuming from step 5" in out and figure in out
    assert len((runs / kind / "samples.txt").read_text().split("--- sample")) == 3


@pytest.mark.parametrize(("flags", "said"), [
    (["--config.train.objective=planner:0"], "the layers must be a whole number of at least 1, as in planner:1"),
    (["--config.train.objective=prism:1.5"], "the revealed tokens must be a whole number of at least 1"),
    (["--config.train.init_from="], "give that with train.init_from"),
    (["--config.train.objective=prism:1", "--config.train.weighting=constant"], "train.objective=prism does not read"),
    (["--config.train.lora_rank=2"], "adapts the network, which stays with train.objective=planner:2"),
    (["--config.process.mixing=0.1"], "knows no noise but the mask"),
    (["--config.model.attention=causal"], "model.attention='causal'"),
    (["--config.train.any_order=0.5"], "is read by train.objective=joint:PASSES only"),
])
def test_mistakes_are_named(runs, tmp_path, capsys, flags, said):
    command = [flag for flag in learn(runs, "planner") if not flag.startswith("--workdir")]
    assert train.main([*command, f"--workdir={tmp_path / 'new'}", *flags]) == 2
    assert said in capsys.readouterr().err and not (tmp_path / "new").exists()


def test_the_recipe_has_two_kinds(capsys):
    assert train.main(["--config=planner:bert", "--workdir=x"]) == 2
    assert "--config=planner:bert: choose one of planner, prism" in capsys.readouterr().err
