"""The train step and the sampler lower for TPU and GPU without either being at hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mdlm_jax.config import RunConfig, freeze, parse_mesh
from mdlm_jax.models.denoise import Denoiser
from mdlm_jax.models.sharding import make_mesh
from mdlm_jax.sampling.ancestral import Ancestral
from mdlm_jax.sampling.canvas import blank
from mdlm_jax.sampling.loop import begin
from mdlm_jax.sampling.program import block
from mdlm_jax.training import optimizers
from mdlm_jax.training.build import build_network, build_objective, build_process
from mdlm_jax.training.state import abstract_state
from mdlm_jax.training.step import make_train_step
from tests.marks import slow_unless

PLATFORMS = ("tpu", "cuda")
SMALL = {"model": {"layers": 2, "d_model": 32, "heads": 2, "dtype": "bfloat16"}, "data": {"length": 16}}


def config(mixing: float, objective: str) -> RunConfig:
    train = {"batch_size": 16, "objective": objective, "mesh": "fsdp:4,tensor:2"}
    return freeze(SMALL | {"process": {"mixing": mixing}, "train": train})


@pytest.mark.parametrize(
    ("mixing", "objective"), slow_unless(
        [(0.0, "count"), (0.1, "continuous"), (0.1, "discrete:8"), (0.0, "genmd4:1")],
        (0.0, "count"), (0.1, "discrete:8"))
)
def test_train_step_lowers(mixing, objective):
    run = config(mixing, objective)
    mesh = make_mesh(parse_mesh(run.train.mesh))
    process, network = build_process(run, 40, 39), build_network(run, 40)
    if objective.startswith("genmd4"):
        network = build_network(freeze(SMALL | {"model": SMALL["model"] | {"conditioning": "time"}}), 40)
    built, _ = build_objective(run, network, process, data_shards=4)
    optimizer = optimizers.optimizer(run.train)
    step = make_train_step(built, optimizer, run.train, mesh)
    rows = {
        name: jax.ShapeDtypeStruct((16, 16), np.bool_ if name.endswith("e_mask") or name == "loss_mask" else np.int32)
        for name in ("tokens", "positions", "attention_mask", "noise_mask", "loss_mask")
    }
    traced = step.trace(abstract_state(built, optimizer, True, mesh), rows)
    for platform in PLATFORMS:
        assert "stablehlo.dot_general" in traced.lower(lowering_platforms=(platform,)).as_text()


@pytest.mark.parametrize("mixing", slow_unless([0.0, 0.1], 0.1))
def test_sampler_lowers(mixing):
    run = config(mixing, "nelbo")
    process, network = build_process(run, 40, 39), build_network(run, 40)
    built, _ = build_objective(run, network, process, data_shards=1)
    params = jax.eval_shape(lambda: built.init(jax.random.key(0)))["network"]
    canvas, decoder = blank(39, 2, 16), Ancestral(process, top_p=0.9)
    layout, numbers, first = begin(Denoiser(network), params, canvas, decoder, steps=4)
    traced = block.trace(layout.program(0), decoder, params, numbers, first, None, jnp.zeros((2,), jnp.int32))
    for platform in PLATFORMS:
        assert "stablehlo.while" in traced.lower(lowering_platforms=(platform,)).as_text()
