"""CoDD from end to end: a network, a circuit beside it, and joint decoding by both."""

import jax
import numpy as np
import pytest

import mdlm_jax
from launch import evaluate, sample, train
from mdlm_jax.config import ConfigError
from mdlm_jax.models.circuit import CircuitConfig
from tests.launch.test_quality_run import EMPTY, NETWORK, SMALL


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """base and codd below one folder."""
    folder = tmp_path_factory.mktemp("codd")
    assert train.main(["--config=oracle", f"--workdir={folder / 'base'}", "--config.train.steps=4", *NETWORK,
                       *SMALL]) == 0
    assert train.main(learn(folder)) == 0
    return folder


def learn(folder, *more):
    return ["--config=codd:3", f"--config.train.init_from={folder / 'base'}", f"--workdir={folder / 'codd'}",
            "--config.train.steps=5", "--config.sample.steps=3", *SMALL, *more]


def written(model, **options):
    found = model.generate(EMPTY, new_tokens=6, max_length=6, stop_id=None, decoder="codd", **options)
    assert all((np.asarray(one.tokens) != model.process.mask_id).all() and len(one.tokens) == 6 for one in found)
    return [one.forwards for one in found]


def test_it_is_loaded_with_its_network_which_stayed(runs):
    base, model = mdlm_jax.load(runs / "base"), mdlm_jax.load(runs / "codd")
    for found, expected in zip(jax.tree.leaves(model.params), jax.tree.leaves(base.params), strict=True):
        np.testing.assert_array_equal(np.asarray(found), np.asarray(expected))
    assert base.circuit is None and model.joint is None and model.quality is None
    assert model.circuit.config == CircuitConfig(3, model.config.head_size)
    assert np.any(np.asarray(model.circuit.params["end"]))
    assert written(model) == [1, 1] and written(model, tokens=2) == [3, 3]
    assert written(model, tokens=4, block_length=3, max_masked=0.7, temperature=0.5) == [2, 2]
    with pytest.raises(ConfigError, match="circuit=None: CoDD needs what train.objective=codd:16 trained"):
        written(base)


def test_the_run_says_what_it_measured_goes_on_and_is_sampled(runs, capsys):
    assert train.main(learn(runs, "--config.train.steps=7")) == 0
    out = capsys.readouterr().out
    assert "resuming from step 5" in out and "held-out loss of the circuit, a masked token: " in out
    assert len((runs / "codd" / "samples.txt").read_text().split("--- sample")) == 3
    assert sample.main([f"--checkpoint={runs / 'codd'}", "--decoder=codd", "--tokens=2", "--num=1"]) == 0
    assert evaluate.main([f"--checkpoint={runs / 'codd'}", "--rows=4", "--draws=2", "--samples=0"]) == 0


@pytest.mark.parametrize(("flags", "said"), [
    (["--config.train.objective=codd:1.5"], "the states must be a whole number of at least 1, as in codd:16"),
    (["--config.train.objective=codd:1"], "one state says nothing of how tokens hang together; take at least 2"),
    (["--config.train.init_from="], "give that with train.init_from"),
    (["--config.train.half_head=false"], "train.objective=codd does not read"),
    (["--config.process.mixing=0.1"], "knows no noise but the mask"),
    (["--config.model.attention=block_causal"], "model.attention='block_causal'"),
])
def test_mistakes_are_named(runs, tmp_path, capsys, flags, said):
    command = [flag for flag in learn(runs) if not flag.startswith("--workdir")]
    assert train.main([*command, f"--workdir={tmp_path / 'new'}", *flags]) == 2
    assert said in capsys.readouterr().err and not (tmp_path / "new").exists()


def test_the_recipe_takes_a_number_of_states(capsys):
    assert train.main(["--config=codd:many", "--workdir=x"]) == 2
    assert "--config=codd:many: the states must be a whole number of at least 2" in capsys.readouterr().err
