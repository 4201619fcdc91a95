"""A mixture student from end to end: it starts from a network without a latent, and is used as any other model."""

import json

import numpy as np
import pytest

import mdlm_jax
from launch import train
from launch._start import network_fields
from mdlm_jax.config import ConfigError
from mdlm_jax.models import api

SMALL = ("--config.data.length=6", "--config.train.batch_size=8", "--config.train.warmup_steps=1",
         "--config.eval.final_rows=16", "--config.eval.rows=8", "--config.sample.num=2", "--config.train.ema_decay=0",
         "--config.data.source=language:shuffle")
NETWORK = [f"--config.model.{name}" for name in ("layers=1", "d_model=16", "heads=2")]


def learn(folder, name, of, *more):
    return ["--config=di4c", f"--config.train.init_from={folder / of}", f"--workdir={folder / name}",
            "--config.train.objective=di4c:6,3,0.2,1", "--config.train.steps=3", "--config.sample.steps=2", *SMALL,
            *more]


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """base, and student, below one folder."""
    folder = tmp_path_factory.mktemp("di4c")
    assert train.main(["--config=oracle", f"--workdir={folder / 'base'}", "--config.train.steps=3", *NETWORK,
                       *SMALL]) == 0
    assert train.main(learn(folder, "student", "base")) == 0
    return folder


@pytest.mark.slow
def test_it_is_loaded_and_writes_by_decoders_that_know_nothing_of_it(runs):
    base, model = mdlm_jax.load(runs / "base"), mdlm_jax.load(runs / "student")
    assert (base.config.latent, model.config.latent) == (0, 32)
    assert model.params.keys() - base.params.keys() == {"latent"} and "samples.txt" in {f.name for f in
                                                                                        (runs / "student").iterdir()}
    answers = model.generate([np.zeros(0, np.int32)] * 3, new_tokens=6, max_length=6, stop_id=None, steps=2,
                             decoder="low_confidence")
    assert all((np.asarray(one.tokens) != model.process.mask_id).all() for one in answers)
    held_out = json.loads((runs / "student" / "summary.json").read_text())["held_out"]
    assert np.isfinite(held_out["nats_per_token"])


def test_logits_are_those_of_a_latent(runs):
    base, model = mdlm_jax.load(runs / "base"), mdlm_jax.load(runs / "student")
    tokens = np.full((2, 6), model.process.mask_id)
    found = model.logits(tokens, latent=[0.2, 0.8])
    expected = api.apply(model.config, model.params, tokens, latent=np.float32([0.2, 0.8])).logits()
    np.testing.assert_allclose(found, expected, atol=1e-5)
    for bad in ([0.5], [0.5, 1.5]):
        with pytest.raises(ValueError, match=r"latent: must be \[2\] numbers in \[0, 1\]"):
            model.logits(tokens, latent=bad)
    with pytest.raises(ValueError, match="reads one; give latent"):
        model.logits(tokens)
    with pytest.raises(ValueError, match="reads none; leave it out"):
        base.logits(tokens, latent=[0.2, 0.8])


def test_saved_and_loaded_it_is_the_same(runs, tmp_path):
    from mdlm_jax.loading import save_checkpoint

    model = mdlm_jax.load(runs / "student")
    save_checkpoint(tmp_path / "saved", model, (runs / "student" / "tokenizer.json").read_bytes())
    again, tokens = mdlm_jax.load(tmp_path / "saved"), np.full((1, 6), model.process.mask_id)
    np.testing.assert_array_equal(again.logits(tokens, latent=[0.3]), model.logits(tokens, latent=[0.3]))


def test_likelihoods_of_a_mixture_are_not_those_of_a_draw(runs):
    with pytest.raises(ConfigError, match="latent=32: the network is a mixture"):
        mdlm_jax.load(runs / "student").log_likelihood([np.zeros(0, np.int32)], [np.arange(6)])


def test_the_checkpoint_has_the_say_where_it_has_a_latent(runs):
    assert "latent" not in network_fields(str(runs / "base"), {})
    assert network_fields(str(runs / "student"), {})["latent"] == 32


@pytest.mark.slow
def test_a_mixture_teaches_another(runs):
    assert train.main(learn(runs, "second", "student")) == 0
    assert train.main(learn(runs, "second", "student", "--config.train.steps=4")) == 0  # resumed, its teacher with it


@pytest.mark.parametrize(("more", "message"), [
    (["--config.model.latent=0"], "model.latent=0: train.objective=di4c teaches a network to read a latent"),
    (["--config.train.objective=di4c:6,3,0.2"], "takes 4 number(s), as in 'di4c:1024,16,0.1,1'"),
    (["--config.train.lora_rank=4"], "train.lora_rank=4"),
    (["--config.train.objective=nelbo"], "model.latent=32: train.objective=di4c teaches"),
])
def test_mistakes(runs, more, message, capsys):
    assert train.main([*learn(runs, "wrong", "base", *more), "--dry_run"]) == 2
    assert message in capsys.readouterr().err
