import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mdlm_jax.config import ConfigError, TrainConfig
from mdlm_jax.training.optimizers import decay_mask, optimizer, trainable_parameters
from mdlm_jax.training.schedules import learning_rate

PEAK = 3e-4


def rates(kind, steps=50, warmup=10):
    train = TrainConfig(steps=steps, warmup_steps=warmup, lr_schedule=kind, learning_rate=PEAK)
    return np.asarray(learning_rate(train)(jnp.arange(steps)), np.float64)


def expected(kind, steps=50, warmup=10):
    out = []
    for n in range(1, steps + 1):
        if n <= warmup:
            out.append(PEAK * n / warmup)
        elif kind == "cosine":
            out.append(PEAK * (0.1 + 0.9 * (1 + math.cos(math.pi * (n - warmup) / (steps - warmup))) / 2))
        elif kind == "linear":
            out.append(PEAK * (steps + 1 - n) / (steps + 1 - warmup))
        else:
            out.append(PEAK)
    return np.array(out)


@pytest.mark.parametrize("kind", ["cosine", "constant", "linear"])
@pytest.mark.parametrize("steps, warmup", [(50, 10), (50, 0), (50, 50), (50, 49), (1, 0), (1, 1), (100_000, 2_000)])
def test_every_rate_of_a_run(kind, steps, warmup):
    np.testing.assert_allclose(rates(kind, steps, warmup), expected(kind, steps, warmup), rtol=2e-5, atol=0)


@pytest.mark.parametrize("kind, last", [("cosine", PEAK / 10), ("constant", PEAK), ("linear", PEAK / 41)])
def test_first_update_warm_up_end_last_update_and_after(kind, last):
    train = TrainConfig(steps=50, warmup_steps=10, lr_schedule=kind, learning_rate=PEAK)
    values = np.asarray(learning_rate(train)(jnp.array([0, 8, 9, 49, 50, 1000])), np.float64)
    np.testing.assert_allclose(values, [PEAK / 10, PEAK * 0.9, PEAK, last, last, last], rtol=1e-6)
    assert np.diff(rates(kind)[:10]).min() > 0 and np.diff(rates(kind)[9:]).max() <= 0


def test_a_python_count_and_a_traced_one_agree():
    schedule = learning_rate(TrainConfig(steps=50, warmup_steps=10))
    assert schedule(20).dtype == jnp.float32 and schedule(20).shape == ()
    np.testing.assert_allclose(np.asarray(jax.jit(schedule)(jnp.int32(20))), np.asarray(schedule(20)), rtol=1e-6)


PARAMS = {
    "embedding": jnp.ones((4, 2)),
    "layers": {"kernel": jnp.ones((3, 2, 2)), "bias": jnp.ones((3, 2)), "norm": {"scale": jnp.ones((3, 2))}},
    "final": {"scale": jnp.ones(2), "offset": jnp.ones(2)},
}


def test_weight_decay_touches_matrices_and_nothing_else():
    assert decay_mask(PARAMS) == {
        "embedding": True,
        "layers": {"kernel": True, "bias": False, "norm": {"scale": False}},
        "final": {"scale": False, "offset": False},
    }
    stacked = {"layers": {"attention": {"query_bias": jnp.ones((2, 4, 8)), "query_norm": jnp.ones((2, 8)),
                                        "query": jnp.ones((2, 4, 8))}, "moe": {"router_bias": jnp.ones((2, 4))}}}
    assert [path[-1].key for path, decays in jax.tree.leaves_with_path(decay_mask(stacked)) if decays] == ["query"]
    train = TrainConfig(steps=10, warmup_steps=0, lr_schedule="constant", learning_rate=0.1, weight_decay=0.5)
    transform = optimizer(train)
    zeros = jax.tree.map(jnp.zeros_like, PARAMS)
    updates, _ = transform.update(zeros, transform.init(PARAMS), PARAMS)
    for path, mask in jax.tree.leaves_with_path(decay_mask(PARAMS)):
        update = dict(jax.tree.leaves_with_path(updates))[path]
        np.testing.assert_allclose(np.asarray(update), -0.1 * 0.5 if mask else 0.0, rtol=1e-6)


def test_wsd_is_constant_and_then_linear_to_zero():
    found = rates("wsd:0.2")
    np.testing.assert_allclose(found[10:40], PEAK, rtol=1e-6)
    np.testing.assert_allclose(found[40:], PEAK * np.arange(10, 0, -1) / 11, rtol=1e-6)


@pytest.mark.parametrize("given", [{"lr_schedule": "wsd:0"}, {"lr_schedule": "wsd:1.5"}, {"lr_schedule": "wsd"},
                                   {"lr_schedule": "step"}, {"optimizer": "sgd"}])
def test_what_there_is_not(given):
    with pytest.raises(ConfigError, match=f"train.{next(iter(given))}"):
        TrainConfig(**given)


def test_muon_orthogonalises_the_matrices_of_layers_alone():
    """One update from zero momentum: singular values of a matrix's update are all alike, 0.2 sqrt(largest side)."""
    rng = np.random.default_rng(0)
    params = {"network": {"embedding": jnp.zeros((12, 8)), "layers": {"attention": {
        "query": jnp.zeros((2, 8, 2, 4)), "out": jnp.zeros((2, 2, 4, 8)), "query_norm": jnp.zeros((2, 4))}}}}
    grads = jax.tree.map(lambda w: jnp.asarray(rng.normal(size=w.shape), jnp.float32), params)
    train = TrainConfig(steps=4, warmup_steps=0, lr_schedule="constant", learning_rate=0.5, optimizer="muon",
                        clip_norm=1e9)
    transform = optimizer(train)
    updates, _ = transform.update(grads, transform.init(params), params)
    attention = updates["network"]["layers"]["attention"]
    for matrix in (*attention["query"].reshape(2, 8, 8), *attention["out"].reshape(2, 8, 8)):
        values = np.linalg.svd(matrix, compute_uv=False)
        np.testing.assert_allclose(values, 0.5 * 0.2 * 8**0.5, rtol=0.35)  # Newton-Schulz of five steps
    for leaf, grad in ((updates["network"]["embedding"], grads["network"]["embedding"]),
                       (attention["query_norm"], grads["network"]["layers"]["attention"]["query_norm"])):
        step = 0.5 * (0.9 * 0.1 / (1 - 0.9**2) + 0.1 / (1 - 0.9))  # Adam's first, with Nesterov's look ahead
        np.testing.assert_allclose(leaf, -step * np.sign(grad), rtol=1e-3)


def test_lion_moves_by_the_sign():
    train = TrainConfig(steps=4, warmup_steps=0, lr_schedule="constant", learning_rate=0.1, optimizer="lion")
    params = {"kernel": jnp.ones((2, 2))}
    grads, transform = {"kernel": jnp.array([[3.0, -2.0], [0.5, -1.0]])}, optimizer(train)
    updates, _ = transform.update(grads, transform.init(params), params)
    np.testing.assert_allclose(updates["kernel"], [[-0.1, 0.1], [-0.1, 0.1]], rtol=1e-6)


def test_frozen_weights_have_no_moments_and_stay():
    train = TrainConfig(steps=4, warmup_steps=0, lr_schedule="constant", weight_decay=0.5,
                        freeze="embedding, layers/n*")
    transform, ones = optimizer(train), jax.tree.map(jnp.ones_like, PARAMS)
    state = transform.init(PARAMS)
    updates, _ = transform.update(ones, state, PARAMS)
    assert not np.any(updates["embedding"]) and not np.any(updates["layers"]["norm"]["scale"])
    assert np.all(np.asarray(updates["layers"]["kernel"]) != 0)
    trained = sum(leaf.size for leaf in jax.tree.leaves(PARAMS)) - PARAMS["embedding"].size
    trained -= PARAMS["layers"]["norm"]["scale"].size
    assert trainable_parameters(train, PARAMS) == trained
    assert sum(leaf.size for leaf in jax.tree.leaves(state) if leaf.ndim) == 2 * trained


@pytest.mark.parametrize(("freeze", "message"), [("nothing/*", "fits no weight"), ("*", "leaves nothing to train")])
def test_freezing_that_cannot_be_meant(freeze, message):
    with pytest.raises(ConfigError, match=message):
        optimizer(TrainConfig(freeze=freeze)).init(PARAMS)


def test_optimizer_is_adamw_on_clipped_gradients():
    """Three updates against Adam written out in numpy; the norms of the gradients are above and below the limit."""
    optimisation = dict(learning_rate=0.01, b1=0.8, b2=0.9, weight_decay=0.3, clip_norm=2.0)
    train = TrainConfig(steps=8, warmup_steps=2, lr_schedule="linear", **optimisation)
    transform = optimizer(train)
    params = {"kernel": jnp.array([[1.0, -2.0], [0.5, 3.0]]), "scale": jnp.array([0.7, -0.1])}
    state, twin = transform.init(params), {k: np.asarray(v, np.float64) for k, v in params.items()}
    mean, square = ({k: np.zeros_like(v) for k, v in twin.items()} for _ in range(2))
    rng = np.random.default_rng(0)
    for n, size in enumerate((5.0, 0.1, 1.0), start=1):
        gradients = {k: rng.normal(size=v.shape) * size for k, v in twin.items()}
        updates, state = transform.update({k: jnp.asarray(g, jnp.float32) for k, g in gradients.items()}, state, params)
        params = jax.tree.map(jnp.add, params, updates)
        norm = math.sqrt(sum((g**2).sum() for g in gradients.values()))
        rate = 0.01 * (n / 2 if n <= 2 else 1 - (n - 2) / 7)
        for name, gradient in gradients.items():
            clipped = gradient * min(1.0, 2.0 / norm)
            mean[name] = 0.8 * mean[name] + 0.2 * clipped
            square[name] = 0.9 * square[name] + 0.1 * clipped**2
            step = mean[name] / (1 - 0.8**n) / (np.sqrt(square[name] / (1 - 0.9**n)) + 1e-8)
            twin[name] = twin[name] - rate * (step + (0.3 * twin[name] if name == "kernel" else 0.0))
            np.testing.assert_allclose(np.asarray(params[name]), twin[name], rtol=1e-5)
