"""A masked checkpoint in LLaDA's format becomes XDLM and is decoded by draft and edit, by commands alone."""

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from launch import _configs
from mdlm_jax.core import losses
from mdlm_jax.core.prediction import Prediction
from mdlm_jax.core.process import Process
from mdlm_jax.core.reduction import reduce
from mdlm_jax.core.schedules import Linear
from mdlm_jax.training.build import build_process
from tests.launch import commands
from tests.launch.test_init_from import plain


@pytest.mark.parametrize("name", ["xdlm_adapt", "llada_xdlm"])
def test_the_configs_say_llada_xdlm_s_loss(name):
    config = _configs.load(name, {})
    train, process = config.train, config.process
    assert (process.family, process.mixing, process.schedule, process.eps) == ("stationary", 0.1, "linear", 0.0)
    assert (train.objective, train.weighting, train.level_law) == ("nelbo", "elbo", "uniform")
    assert build_process(config, 20, 19).schedule == Linear(0.0)
    assert (train.time_sampling, train.ema_decay) == ("iid", 0.0)
    if name == "llada_xdlm":
        assert (train.batch_size, config.data.length, train.steps, train.learning_rate) == (512, 4096, 600, 2e-5)
        assert (train.weight_decay, train.warmup_steps, train.lr_schedule, train.clip_norm) == (0.1, 100, "constant", 1)


def test_weight_1_and_alpha_1_minus_t_are_llada_xdlm_s_loss():
    """The released get_kl with delta = 1, mixing 0.1, at the golden alphas."""
    golden = np.load(Path(__file__).parents[1] / "golden" / "diffusion_xdlm.npz")
    number = int(np.flatnonzero(golden["k"] == 0.1)[0])
    alpha, tokens, noisy = golden["alpha_t"], jnp.asarray(golden["x0"]), jnp.asarray(golden["xt"][number])
    process = Process(int(golden["vocab_size"]), int(golden["mask_id"]), 0.1, Linear(0.0))
    with jax.enable_x64(True):
        for case, expected in zip(alpha, golden["loss_ct_unit_llada"][number], strict=True):
            t = jnp.asarray(1 - case)
            reduced = reduce(Prediction.from_logits(jnp.asarray(golden["logits"], jnp.float64)),
                             suppress=process.mask_id, target=tokens, current=noisy,
                             offset=losses.softplus_offset(process, t, tokens.shape))
            found = losses.nelbo_rate(process, reduced, tokens, noisy, t)
            np.testing.assert_allclose(found, expected, rtol=1e-9, atol=1e-12)


@pytest.mark.slow
def test_a_checkpoint_in_llada_s_format_is_adapted_and_decoded(tmp_path):
    masked, published, adapted = (tmp_path / name for name in ("masked", "published", "adapted"))
    flags = [flag for flag in plain(tmp_path) if "tokenizer" not in flag and "--config=" not in flag]
    small = ["--config.model.layers=1", "--config.model.d_model=16", "--config.model.heads=2", "--config.model.d_ff=24"]
    for module, *arguments in (
        ("launch.train", f"--config={tmp_path / 'plain.py'}", *flags, *small, f"--workdir={masked}"),
        ("launch.convert", f"--from={masked}", f"--to={published}"),
        ("launch.train", "--config=xdlm_adapt", *flags, f"--config.train.init_from={published}",
         "--config.train.checkpoint_every=1", f"--workdir={adapted}"),
    ):
        done = commands.run(module, *arguments)
        assert done.status == 0, done.err
    process = json.loads((adapted / "config.json").read_text())["process"]
    assert process.items() >= {"family": "stationary", "mixing": 0.1, "schedule": "linear", "eps": 0.0}.items()
    done = commands.run("launch.sample", f"--checkpoint={adapted}", "--decoder=draft_edit", "--mixing=0.1", "--num=1",
                        "--steps=4", "--length=16")
    assert done.status == 0 and "--- sample 1 ---" in done.out, done.err
