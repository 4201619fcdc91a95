"""MARIA's loss against plain numpy, what of it trains, and what it refuses."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mdlm_jax.core.process import Process
from mdlm_jax.core.weights import Power
from mdlm_jax.models import api, flops, fused
from mdlm_jax.models.config import TransformerConfig
from mdlm_jax.training import adapters
from mdlm_jax.training.objectives.maria import MariaObjective
from tests.marks import slow_unless

V, ID, LONG = 5, 5, 8
KEY = jax.random.key(0)
NETWORK = TransformerConfig(V + 1, V + 1, layers=1, d_model=16, heads=2, kv_heads=2, d_ff=24, head_bias=True)
TWIN = TransformerConfig(V + 1, V + 1, layers=1, d_model=8, heads=2, kv_heads=2, d_ff=16, attention="causal",
                         logit_shift=True)
OBJECTIVE = MariaObjective(NETWORK, Process(V + 1, ID), twin=TWIN)


def random(tree, seed):
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda leaf: jnp.asarray(0.4 * rng.standard_normal(leaf.shape), jnp.float32), tree)


PARAMS = {"network": random(api.abstract(NETWORK), 0), "twin": random(api.abstract(TWIN), 1),
          "fused": random(fused.abstract(OBJECTIVE.fused), 2)}


def batch(rows=4):
    """A prompt that is no noise, padding, and two documents in one row."""
    noise, segment = np.ones((rows, LONG), bool), np.ones((rows, LONG), np.int32)
    noise[0, :3] = noise[1, 6:] = False
    segment[1, 6:], segment[2, 5:] = 0, 2
    return {"tokens": jnp.asarray(np.random.default_rng(5).integers(0, V, (rows, LONG)), jnp.int32),
            "attention_mask": jnp.asarray(segment), "noise_mask": jnp.asarray(noise), "loss_mask": jnp.asarray(noise),
            "positions": jnp.broadcast_to(jnp.arange(LONG), (rows, LONG))}


@pytest.mark.parametrize("half_head", slow_unless([True, False], True))
def test_the_loss_is_that_of_numpy(half_head):
    objective, data, rows = replace(OBJECTIVE, half_head=half_head), batch(), jnp.arange(4)
    u = objective._unit_levels(KEY, rows, 4)
    draw, = objective.draws(objective.noise_keys(KEY, rows), u, data["noise_mask"])
    tokens, masked, segment = (np.asarray(x) for x in (data["tokens"], draw.masked, data["attention_mask"]))
    before = np.full_like(tokens, ID)
    for row, i in zip(*np.nonzero(segment), strict=True):
        if i and segment[row, i] == segment[row, i - 1]:
            before[row, i] = tokens[row, i - 1]
    how = {"attention_mask": data["attention_mask"], "positions": data["positions"]}
    states = jax.jit(lambda: (
        api.apply(NETWORK, PARAMS["network"], jnp.where(draw.masked, ID, data["tokens"]), **how).hidden,
        api.apply(TWIN, PARAMS["twin"], jnp.asarray(before), raw=True, **how).hidden))()
    logits = np.concatenate(states, -1).astype(np.float64) @ np.asarray(PARAMS["fused"]["kernel"], np.float64)
    logits += np.asarray(PARAMS["fused"]["bias"])
    logits[..., ID] = -np.inf
    log_p = logits - np.logaddexp.reduce(logits, -1, keepdims=True)
    nats = -np.take_along_axis(log_p, tokens[..., None], -1)[..., 0]
    eligible, number = np.asarray(data["noise_mask"]).sum(1), masked.sum(1)
    expected = np.where(masked, nats * (eligible / number)[:, None], 0.0)
    for weighting, values in ((objective.weighting, expected), (Power(0.0), np.where(masked, nats, 0.0))):
        made = replace(objective, weighting=weighting)
        found = jax.jit(lambda u, made=made: made.loss_at(PARAMS, data, KEY, rows, u).terms)(u)
        np.testing.assert_allclose(sum(found.values()), values, atol=2e-5)


def test_only_the_head_trains():
    data, rows = batch(), jnp.arange(4)
    found = jax.jit(jax.grad(lambda weights: OBJECTIVE.loss(weights, data, KEY, rows, 4).objective()))(PARAMS)
    assert not any(np.any(leaf) for name in ("network", "twin") for leaf in jax.tree.leaves(found[name]))
    assert np.any(found["fused"]["kernel"]) and np.any(found["fused"]["bias"])
    fresh = jax.eval_shape(OBJECTIVE.init, KEY)
    assert jax.tree.map(jnp.shape, fresh) == jax.tree.map(jnp.shape, PARAMS)
    trainable, frozen = adapters.split(adapters.Beside("maria"), NETWORK, fresh, KEY)
    assert trainable.keys() == {"fused"} and frozen.keys() == {"network", "twin"}
    assert adapters.join(adapters.Beside("maria"), trainable, frozen).keys() == fresh.keys()


@pytest.mark.slow
def test_a_fresh_one_is_the_mean_of_its_networks():
    fresh = OBJECTIVE.init(KEY)
    expected = fused.averaged(OBJECTIVE.fused, fresh["network"], fresh["twin"])
    for name, leaf in expected.items():
        np.testing.assert_array_equal(fresh["fused"][name], leaf)


def test_flops_are_two_forwards_and_the_head_with_its_gradient():
    rows, tokens = 4, 4 * LONG
    heads = 4 * rows // 2 * (LONG + 1) * (16 + 8) * (V + 1)
    forwards = flops.forward_flops(NETWORK, tokens, LONG, 0) + flops.forward_flops(TWIN, tokens, (LONG + 1) // 2, 0)
    assert OBJECTIVE.train_flops(rows, LONG) == forwards + heads


@pytest.mark.parametrize(("make", "said"), [
    (lambda: replace(OBJECTIVE, twin=None), "twin=None: needs the shape of an autoregressive network"),
    (lambda: replace(OBJECTIVE, twin=NETWORK), "twin: attention='bidirectional', logit_shift=False; must be causal"),
    (lambda: replace(OBJECTIVE, network=TWIN), "must be bidirectional, without classes"),
    (lambda: replace(OBJECTIVE, process=Process(6, 5, 0.5)), "mixing=0.5: MariaObjective knows no noise but the mask"),
])
def test_mistakes_are_named(make, said):
    with pytest.raises(ValueError, match=said):
        make()
