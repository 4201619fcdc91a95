"""The layer of experts: its parameters, its arithmetic, and the same numbers on every mesh."""

import dataclasses
import functools
import re

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mdlm_jax.models.config import MoEConfig, TransformerConfig
from mdlm_jax.models.moe.experts import MixtureOfExperts
from mdlm_jax.models.moe.routing import balance_loss, route, z_loss
from mdlm_jax.models.sharding import batch_sharding, make_mesh, weight_sharding
from tests.marks import slow_unless

MOE = MoEConfig(experts=8, per_token=3, d_ff=24, shared_d_ff=16, router="sigmoid", selection_bias=True, groups=4,
                top_groups=2, normalize=True, scale=2.5)
FORMS = {
    "llada2": MOE,
    "llada-moe": MoEConfig(experts=8, per_token=2, d_ff=24),
    "llada2.2": dataclasses.replace(MOE, groups=1, top_groups=1, block=4, block_pool=5),
    "six experts": MoEConfig(experts=6, per_token=2, d_ff=24),
}
MESHES = [{"fsdp": 8}, {"fsdp": 2, "expert": 4}, {"tensor": 2, "expert": 4}, {"fsdp": 2, "tensor": 2, "expert": 2},
          {"replica": 2, "context": 2, "expert": 2}]
INPUT = jax.random.normal(jax.random.key(1), (8, 6, 32))
SEGMENT = jnp.broadcast_to(jnp.asarray([1, 1, 1, 2, 2, 0]), (8, 6))
COTANGENT = jax.random.normal(jax.random.key(2), INPUT.shape)


def config(moe, **fields):
    return TransformerConfig(8, 8, layers=2, d_model=32, heads=4, kv_heads=2, d_ff=48, moe=moe, **fields)


@functools.cache
def boxed(form):
    return MixtureOfExperts(config(FORMS[form])).init(jax.random.key(0), INPUT, SEGMENT)["params"]


def parameters(form):
    params = nn.unbox(boxed(form))
    if FORMS[form].selection_bias:
        params = {**params, "router_bias": 0.1 * jax.random.normal(jax.random.key(3), (FORMS[form].experts,))}
    return params


def loss(form, params, x, segment):
    y, stats = MixtureOfExperts(config(FORMS[form])).apply({"params": params}, x, segment)
    return (y * COTANGENT).sum() + 10 * balance_loss(stats) + z_loss(stats), (y, stats)


@functools.cache
def alone(form):
    run = jax.jit(jax.value_and_grad(functools.partial(loss, form), argnums=(0, 1), has_aux=True))
    return run(parameters(form), INPUT, SEGMENT)


def largest_difference(ours, theirs):
    ours, theirs = np.asarray(ours, np.float64), np.asarray(theirs, np.float64)
    return np.abs(ours - theirs).max() / max(np.abs(theirs).max(), 1e-30)


def test_parameters_are_those_of_the_contract():
    leaves = {name: (box.value.shape, tuple(box.names)) for name, box in boxed("llada2").items()}
    assert leaves == {
        "router": ((32, 8), ("embed", None)), "router_bias": ((8,), (None,)),
        "gate": ((8, 32, 24), ("experts", "embed", "mlp")), "up": ((8, 32, 24), ("experts", "embed", "mlp")),
        "down": ((8, 24, 32), ("experts", "mlp", "embed")),
        "shared_gate": ((32, 16), ("embed", "mlp")), "shared_up": ((32, 16), ("embed", "mlp")),
        "shared_down": ((16, 32), ("mlp", "embed")),
    }
    assert set(boxed("llada-moe")) == {"router", "gate", "up", "down"}


@pytest.mark.parametrize("form", FORMS)
def test_a_token_is_the_weighted_sum_of_its_experts(form):
    p, moe = jax.tree.map(lambda w: np.asarray(w, np.float64), parameters(form)), FORMS[form]
    (_, (y, _)), _ = alone(form)
    logits = jnp.asarray(np.asarray(INPUT, np.float64) @ p["router"], jnp.float32)
    routing = route(moe, logits, p.get("router_bias"), segment=SEGMENT)

    def swiglu(x, gate, up, down):
        z = x @ gate
        return (z / (1 + np.exp(-z)) * (x @ up)) @ down

    for row, i in np.ndindex(8, 6):
        x = np.asarray(INPUT[row, i], np.float64)
        visits = zip(np.asarray(routing.index[row, i]), np.asarray(routing.weight[row, i]), strict=True)
        expected = sum(w * swiglu(x, p["gate"][e], p["up"][e], p["down"][e]) for e, w in visits)
        if moe.shared_d_ff:
            expected = expected + swiglu(x, p["shared_gate"], p["shared_up"], p["shared_down"])
        np.testing.assert_allclose(y[row, i], expected, rtol=1e-4, atol=1e-5)


def test_padding_is_not_counted():
    (_, (_, stats)), _ = alone("llada2")
    assert float(stats.tokens) == 40 and float(stats.chosen.sum()) == 120


@pytest.mark.parametrize("form", FORMS)
def test_every_parameter_but_the_bias_learns(form):
    _, (grads, _) = alone(form)
    assert {name for name, grad in grads.items() if not np.any(grad)} <= {"router_bias"}


@pytest.mark.parametrize(("form", "sizes"), slow_unless([("llada2", sizes) for sizes in MESHES] + [
    ("llada-moe", MESHES[3]), ("llada2.2", MESHES[4]), ("six experts", MESHES[1]), ("six experts", MESHES[3])],
    ("llada2", MESHES[1]), ("llada2.2", MESHES[4]), ("six experts", MESHES[3])), ids=str)
def test_every_mesh_gives_the_numbers_of_one_device(form, sizes):
    """Forward, losses, gradients. The router's logits may differ in the last bit, so the inputs keep off ties.

    Six experts do not divide over four or two groups of devices evenly: over four they stay whole everywhere.
    """
    keep_distance_from_ties(form)
    mesh = make_mesh(sizes)
    layout = {name: weight_sharding(mesh, box.names, box.value.shape) for name, box in boxed(form).items()}
    rows = batch_sharding(mesh)

    def on_mesh(params, x, segment):
        with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
            return loss(form, params, x, segment)

    run = jax.jit(jax.value_and_grad(on_mesh, argnums=(0, 1), has_aux=True), in_shardings=(layout, rows, rows),
                  out_shardings=(None, (layout, rows)))
    placed = (jax.device_put(z, s) for z, s in ((parameters(form), layout), (INPUT, rows), (SEGMENT, rows)))
    (value, (y, stats)), grads = run(*placed)
    (expected, (y_alone, stats_alone)), grads_alone = alone(form)
    np.testing.assert_array_equal(stats.chosen, stats_alone.chosen)
    np.testing.assert_allclose(value, expected, rtol=1e-5, atol=1e-4)
    differences = jax.tree.map(largest_difference, (y, stats, grads), (y_alone, stats_alone, grads_alone))
    assert max(jax.tree.leaves(differences)) < 1e-5, differences


def keep_distance_from_ties(form):
    """Fails if any choice hangs on less than 1e-5 of a score (groups and pools included: more candidates, same gap)."""
    moe, params = FORMS[form], parameters(form)
    logits = np.asarray(INPUT) @ np.asarray(params["router"])
    routing = route(moe, logits, params.get("router_bias"), segment=SEGMENT)
    for change in (-1e-5, 1e-5):
        noise = change * np.sign(np.random.default_rng(0).normal(size=logits.shape)).astype(np.float32)
        other = route(moe, logits + noise, params.get("router_bias"), segment=SEGMENT)
        np.testing.assert_array_equal(np.sort(other.index), np.sort(routing.index))


def test_expert_parallelism_holds_a_part_and_moves_no_expert():
    """With fsdp = 1 the experts stay where they are: no collective is as large as a device's part of one weight."""
    mesh = make_mesh({"expert": 8})
    moe = MoEConfig(experts=16, per_token=2, d_ff=512)
    module = MixtureOfExperts(dataclasses.replace(config(moe), d_model=256))
    x = jax.ShapeDtypeStruct((8, 4, 256), jnp.float32, sharding=batch_sharding(mesh))
    boxes = jax.eval_shape(lambda: module.init(jax.random.key(0), jnp.zeros((1, 2, 256))))["params"]
    params = {name: jax.ShapeDtypeStruct(box.value.shape, jnp.float32,
                                         sharding=weight_sharding(mesh, box.names, box.value.shape))
              for name, box in boxes.items()}
    with jax.set_mesh(mesh):
        run = jax.jit(jax.grad(lambda p, x: module.apply({"params": p}, x)[0].sum()),
                      out_shardings={name: leaf.sharding for name, leaf in params.items()})
        compiled = run.lower(params, x).compile()
    moved = [line for line in compiled.as_text().splitlines() if re.search(r" (all-|reduce-scatter|collective)", line)]
    moved = [line.split("(")[0] for line in moved if "{{0},{1}" not in line]  # groups of one device move nothing
    assert moved and not any("512" in line for line in moved), moved
    assert not any("[8,4,16]" in line for line in moved), "scores were gathered"
    part = 4 * 2 * 256 * 512
    assert compiled.memory_analysis().argument_size_in_bytes < 3 * part + 2**17


@pytest.mark.parametrize("train", [False, True])
def test_llada2_flash_lowers_for_tpu(train):
    moe = MoEConfig(experts=256, per_token=8, d_ff=1024, shared_d_ff=1024, router="sigmoid", selection_bias=True,
                    groups=8, top_groups=4, normalize=True, scale=2.5)
    module = MixtureOfExperts(dataclasses.replace(config(moe, dtype="bfloat16"), d_model=4096))
    x = jax.ShapeDtypeStruct((1, 256, 4096), jnp.bfloat16)
    params = nn.unbox(jax.eval_shape(lambda: module.init(jax.random.key(0), jnp.zeros(x.shape, x.dtype))))

    def forward(params, x):
        y, stats = module.apply(params, x)
        return (y.astype(jnp.float32) ** 2).sum() + balance_loss(stats)

    run = jax.jit(jax.grad(forward, argnums=(0, 1)) if train else forward)
    text = run.trace(params, x).lower(lowering_platforms=("tpu",)).as_text()
    calls = re.findall(r"call @(t?gmm)", text)
    assert (calls.count("gmm"), calls.count("tgmm")) == ((6, 3) if train else (3, 0))
    assert "256x4096x1024" in text
