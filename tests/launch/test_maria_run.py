"""A masked network and an autoregressive one joined, from end to end: the copula, MARIA's head, and their mistakes."""

import contextlib

import jax
import numpy as np
import pytest

import mdlm_jax
from launch import sample, train
from mdlm_jax.config import ConfigError
from mdlm_jax.models import fused
from mdlm_jax.models.fused import FusedConfig

SMALL = ("--config.data.length=6", "--config.train.batch_size=8", "--config.train.warmup_steps=1",
         "--config.eval.final_rows=16", "--config.eval.rows=8", "--config.sample.num=2",
         "--config.data.source=language:shuffle")
NETWORK = [f"--config.model.{name}" for name in ("layers=1", "heads=2")]
CAUSAL = ["--config.train.objective=autoregressive", "--config.model.attention=causal",
          "--config.model.logit_shift=true"]
EMPTY = [np.zeros(0, np.int32)] * 2


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """base, twin and maria below one folder."""
    folder = tmp_path_factory.mktemp("maria")
    for kind, width, more in (("base", 16, []), ("twin", 8, CAUSAL)):
        assert train.main(["--config=oracle", f"--workdir={folder / kind}", "--config.train.steps=4", *NETWORK, *more,
                           f"--config.model.d_model={width}", *SMALL]) == 0
    assert train.main(learn(folder)) == 0
    return folder


def learn(folder, *more):
    return ["--config=maria", f"--config.train.init_from={folder / 'base'}", f"--config.train.twin={folder / 'twin'}",
            f"--workdir={folder / 'maria'}", "--config.train.steps=5", *SMALL, *more]


@contextlib.contextmanager
def alone(runs):
    """The two networks' runs out of reach meanwhile."""
    for name in ("base", "twin"):
        (runs / name).rename(runs / f"{name}_away")
    yield
    for name in ("base", "twin"):
        (runs / f"{name}_away").rename(runs / name)


def leaves(tree):
    return [np.asarray(leaf) for leaf in jax.tree.leaves(tree)]


def written(model, **options):
    found = model.generate(EMPTY, new_tokens=6, max_length=6, stop_id=None, **options)
    assert all((np.asarray(one.tokens) != model.process.mask_id).all() and len(one.tokens) == 6 for one in found)
    return found


def test_a_checkpoint_holds_both_networks_and_their_head(runs):
    base, twin = (mdlm_jax.load(runs / name) for name in ("base", "twin"))
    with alone(runs):
        model, narrow = (mdlm_jax.load(runs / "maria", dtype=dtype) for dtype in (None, "bfloat16"))
    for found, expected in zip(leaves((model.params, model.fused.twin.params)), leaves((base.params, twin.params)),
                               strict=True):
        np.testing.assert_array_equal(found, expected)
    assert model.fused.twin.network == twin.config and model.fused.twin.start_id == twin.process.mask_id
    fresh = fused.averaged(FusedConfig(base.config, twin.config), base.params, twin.params)
    moved = np.abs(np.asarray(model.fused.params["kernel"]) - np.asarray(fresh["kernel"]))
    assert 0 < moved.max() < 0.02 and base.fused is None  # five steps from the mean
    assert [one.forwards for one in written(model, decoder="maria")] == [1, 1]
    mask = model.process.mask_id
    filled = model.infill([[0, mask, 2, mask, 4, 5]], decoder="maria")[0].row
    np.testing.assert_array_equal(filled[[0, 2, 4, 5]], [0, 2, 4, 5])
    assert (filled != mask).all()
    assert narrow.fused.twin.network.dtype == "bfloat16"
    written(narrow, decoder="maria", temperature=0.0)
    with pytest.raises(ConfigError, match="fused=None: MARIA needs a head that was trained on two networks"):
        written(base, decoder="maria")


@pytest.mark.slow
def test_a_run_goes_on_and_says_what_it_measured(runs, capsys):
    assert train.main(learn(runs, "--config.train.steps=7")) == 0
    out = capsys.readouterr().out
    assert "resuming from step 5" in out
    assert "held-out loss of a masked token given the others, mean over masks, exact: " in out
    assert len((runs / "maria" / "samples.txt").read_text().split("--- sample")) == 3
    assert (runs / "maria" / "twin.json").is_file()


def test_the_copula_takes_an_autoregressive_model(runs, capsys):
    base, twin = mdlm_jax.load(runs / "base"), mdlm_jax.load(runs / "twin")
    found = written(base, decoder="copula", twin=twin, steps=2, suppress=[7, 8])
    assert [one.forwards for one in found] == [2, 2]
    command = [f"--checkpoint={runs / 'base'}", "--decoder=copula", "--steps=2", "--num=2", "--length=6"]
    assert sample.main([*command, f"--twin={runs / 'twin'}"]) == 0
    assert capsys.readouterr().out.count("--- sample") == 2
    for flags, said in ((command, "twin=None: Copula needs an autoregressive model"),
                        ([*command, f"--twin={runs}"], "--twin: must be a run of train.objective=autoregressive"),
                        ([*command, f"--twin={runs / 'base'}"], "twin: attention='bidirectional', logit_shift=False"),
                        ([*command[:1], f"--twin={runs / 'twin'}"], "goes with --decoder=copula")):
        assert sample.main(flags) == 2 and said in capsys.readouterr().err
    for options, said in (({"twin": "runs/twin"}, "must be a language model; give mdlm_jax.load"),
                          ({"twin": twin, "decoder": "ancestral"}, "is read by the decoder copula alone")):
        with pytest.raises(ConfigError, match=said):
            written(base, **{"decoder": "copula", "steps": 2} | options)


@pytest.mark.slow
def test_another_tokenizer_is_refused(runs, tmp_path, capsys):
    other = [flag for flag in SMALL if "data.source" not in flag]
    assert train.main(["--config=oracle", f"--workdir={tmp_path / 'other'}", "--config.train.steps=2", *NETWORK,
                       *CAUSAL, "--config.model.d_model=8", "--config.data.source=language:parity", *other]) == 0
    base, twin = mdlm_jax.load(runs / "base"), mdlm_jax.load(tmp_path / "other")
    with pytest.raises(ConfigError, match="twin: has another tokenizer than the model"):
        written(base, decoder="copula", twin=twin, steps=2)
    command = [flag for flag in learn(runs) if not flag.startswith(("--workdir", "--config.train.twin"))]
    assert train.main([*command, f"--workdir={tmp_path / 'new'}", f"--config.train.twin={tmp_path / 'other'}"]) == 2
    assert "has another tokenizer than train.init_from" in capsys.readouterr().err


@pytest.mark.parametrize(("flags", "said"), [
    (["--config.train.twin="], "is read by train.objective=maria, which needs it"),
    (["--config.train.twin=nowhere"], "train.twin='nowhere': there is no such directory"),
    (["--config.train.twin={base}"], "is a run of train.objective=nelbo; give one of autoregressive"),
    (["--config.train.init_from="], "give that with train.init_from"),
    (["--config.sample.steps=3"], "sample.steps=3: train.objective=maria does not read it"),
    (["--config.train.lora_rank=2"], "adapts the network, which stays with train.objective=maria"),
    (["--config.process.mixing=0.1"], "knows no noise but the mask"),
    (["--config.model.attention=causal"], "model.attention='causal'"),
    (["--config.train.each_twice=true"], "needs process.mixing=0 and train.objective=count or block"),
    (["--config.train.objective=planner:1"], "is read by train.objective=maria, which needs it"),
])
def test_mistakes_are_named(runs, tmp_path, capsys, flags, said):
    command = [flag for flag in learn(runs) if not flag.startswith("--workdir")]
    flags = [flag.replace("{base}", str(runs / "base")) for flag in flags]
    assert train.main([*command, f"--workdir={tmp_path / 'new'}", *flags]) == 2
    assert said in capsys.readouterr().err and not (tmp_path / "new").exists()
