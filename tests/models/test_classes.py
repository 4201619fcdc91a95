"""Networks that are told the class of a row."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mdlm_jax.config import ConfigError
from mdlm_jax.models import api
from mdlm_jax.models.conditioning import checked_classes
from mdlm_jax.models.config import TransformerConfig
from mdlm_jax.models.hf import families
from mdlm_jax.models.shapes import shapes
from mdlm_jax.models.sharding import batch_sharding, make_mesh

from .hf.support import flat

PLAIN = TransformerConfig(11, 11, layers=2, d_model=16, heads=2, kv_heads=2, d_ff=32, conditioning="constant")
CLASSES = dataclasses.replace(PLAIN, classes=3)
TOKENS = np.random.default_rng(0).integers(0, 11, (4, 6)).astype(np.int32)


def lively(config, seed=1):
    """Parameters away from zero, so that modulations do something."""
    params = api.init(config, jax.random.key(seed))
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda x: x + 0.3 * rng.standard_normal(x.shape, np.float32), params)


@functools.partial(jax.jit, static_argnums=0)
def run(config, params, tokens, inputs):
    return api.apply(config, params, tokens, **inputs).logits()


def logits(config, params, condition=None, tokens=TOKENS, **more):
    condition = None if condition is None else jnp.asarray(condition, jnp.int32)
    return np.asarray(run(config, params, tokens, {"condition": condition, **more}))


def test_the_tree_has_a_row_for_each_class_and_one_for_none():
    found = {path: leaf.shape for path, leaf in flat(api.abstract(CLASSES)).items()}
    assert found == shapes(CLASSES) and found["classes"] == (4, 16)
    assert api.logical_axes(CLASSES)["classes"] == (None, "condition")
    assert set(found) - set(flat(api.abstract(PLAIN))) == {"classes"}


def test_nothing_said_is_the_last_row_and_is_said_by_minus_one():
    params = lively(CLASSES)
    none = logits(CLASSES, params)
    np.testing.assert_allclose(none, logits(CLASSES, params, [-1] * 4), atol=1e-4)
    moved = {**params, "classes": params["classes"].at[-1].set(params["classes"][1])}
    np.testing.assert_allclose(logits(CLASSES, moved), logits(CLASSES, params, [1] * 4), atol=5e-5)
    assert np.abs(none - logits(CLASSES, params, [1] * 4)).max() > 0.01


def test_rows_are_told_their_own_class():
    params = lively(CLASSES)
    mixed = logits(CLASSES, params, [2, 0, -1, 1])
    for row, one in enumerate([2, 0, -1, 1]):
        np.testing.assert_allclose(mixed[row], logits(CLASSES, params, [one] * 4)[row], atol=5e-5)


def test_the_class_is_added_before_the_silu_of_the_condition():
    """A class row equal to a shift of the time branch's last bias gives what that bias gives in a network without."""
    params = lively(CLASSES)
    plain = {name: leaf for name, leaf in params.items() if name != "classes"}
    plain["time"] = {**plain["time"], "second_bias": plain["time"]["second_bias"] + params["classes"][2]}
    np.testing.assert_allclose(logits(CLASSES, params, [2] * 4), logits(PLAIN, plain), atol=5e-5)


def test_with_a_time_and_in_two_streams():
    timed = dataclasses.replace(CLASSES, conditioning="time")
    params = lively(timed)
    at = {"time": jnp.asarray([0.1, 0.9, 0.5, 0.5])}
    assert np.abs(logits(timed, params, [0] * 4, **at) - logits(timed, params, [1] * 4, **at)).max() > 0.01
    twice = dataclasses.replace(CLASSES, attention="two_stream", block_length=2)
    tokens = np.tile(TOKENS, (1, 2))
    assert logits(twice, lively(twice), [0, 1, 2, -1], tokens).shape == (4, 12, 11)


def test_on_a_mesh_as_on_one_device():
    mesh = make_mesh({"fsdp": 4, "tensor": 2}, jax.devices()[:8])
    params, condition = lively(CLASSES), np.array([2, 0, -1, 1], np.int32)
    placed = jax.device_put(params, api.shardings(CLASSES, mesh))
    rows = jax.device_put((TOKENS, condition), batch_sharding(mesh))

    def total(params, tokens, condition):
        return (api.apply(CLASSES, params, tokens, condition=condition).logits() ** 2).sum()

    with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
        found = jax.jit(jax.grad(total))(placed, *rows)
    wanted = jax.jit(jax.grad(total))(params, TOKENS, condition)
    np.testing.assert_allclose(found["classes"], wanted["classes"], rtol=1e-3, atol=1e-3)


def test_what_does_not_fit_is_refused():
    with pytest.raises(ValueError, match="classes=3: AdaLN tells"):
        dataclasses.replace(CLASSES, conditioning="none", condition_dim=0, time_features=0)
    with pytest.raises(ValueError, match="condition: the network has no classes"):
        logits(PLAIN, lively(PLAIN), [0] * 4)
    with pytest.raises(ValueError, match=r"condition: has shape \[3\]; it must be \[4\]"):
        logits(CLASSES, lively(CLASSES), [0] * 3)
    with pytest.raises(ConfigError, match="classes is 3|classes"):
        families.family_of(CLASSES, {"mask_id": 10})


@pytest.mark.parametrize(("given", "message"), [
    (3, r"class 3: must lie in 0\.\.2"), (-2, "class -2"), ([0, 1], r"int64\[2\] for 3 row"), ([0.5] * 3, "float64"),
], ids=["above", "below", "number", "kind"])
def test_classes_are_checked_on_the_host(given, message):
    with pytest.raises(ConfigError, match=message):
        checked_classes(given, 3, 3)
    with pytest.raises(ConfigError, match="trained without classes"):
        checked_classes(given, 0, 3)
    np.testing.assert_array_equal(checked_classes(2, 3, 3), [2, 2, 2])
    np.testing.assert_array_equal(checked_classes([0, -1, 2], 3, 3), [0, -1, 2])
