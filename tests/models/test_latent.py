"""A network that reads a latent: another law for each, none where its weights are zero, refused elsewhere."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mdlm_jax.errors import ConfigError
from mdlm_jax.models import api, cache, flops
from mdlm_jax.models.config import RopeConfig, TransformerConfig
from mdlm_jax.models.hf import families
from mdlm_jax.models.shapes import parameter_count, shapes

PLAIN = TransformerConfig(11, 11, layers=2, d_model=16, heads=2, kv_heads=2, d_ff=24)
MIXED = dataclasses.replace(PLAIN, latent=6)
LEARNED = dataclasses.replace(MIXED, rope=RopeConfig(theta=0.0), learned_positions=8)
TOKENS = jnp.asarray(np.random.default_rng(0).integers(0, 11, (3, 8)), jnp.int32)
LATENT = jnp.array([0.1, 0.5, 0.9])


def shaken(config, seed=1):
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda x: x + jnp.asarray(0.3 * rng.standard_normal(x.shape, np.float32)),
                        api.init(config, jax.random.key(0)))


def logits(config, params, tokens=TOKENS, **inputs):
    return np.asarray(api.apply(config, params, tokens, **inputs).logits())


@pytest.mark.parametrize("config", [MIXED, LEARNED, dataclasses.replace(MIXED, conditioning="time")],
                         ids=("rotary", "learned", "timed"))
def test_weights_are_those_of_the_formula(config):
    found = {jax.tree_util.keystr(path, simple=True, separator="/"): leaf.shape
             for path, leaf in jax.tree.leaves_with_path(api.abstract(config))}
    assert shapes(config) == found and parameter_count(config) == api.num_parameters(config)
    axes = jax.tree.leaves(api.logical_axes(config), is_leaf=lambda node: isinstance(node, tuple))
    assert [len(one) for one in axes] == [len(shape) for shape in found.values()]


def test_with_zero_weights_it_is_the_network_without_and_fresh_it_is_another_for_every_latent():
    fresh, before = api.init(MIXED, jax.random.key(0))["latent"], shaken(PLAIN)
    plain, zero = logits(PLAIN, before), {"latent": jax.tree.map(jnp.zeros_like, fresh)}
    for latent in (LATENT, 1.0 - LATENT):
        np.testing.assert_array_equal(logits(MIXED, before | zero, latent=latent), plain)
    one, other = (logits(MIXED, before | {"latent": fresh}, latent=latent) for latent in (LATENT, 1.0 - LATENT))
    assert np.abs(one - plain).mean() > 0.1 * plain.std() and np.abs(one - other)[0].mean() > 0.1 * plain.std()


@pytest.mark.parametrize("config", [MIXED, LEARNED], ids=("rotary", "learned"))
def test_on_masks_alone_it_tells_positions_and_latents_apart(config):
    masks = jnp.full((2, 8), 10)
    found = logits(config, shaken(config), masks, latent=jnp.array([0.2, 0.7]))
    assert np.abs(np.diff(found, axis=1)).max(-1).min() > 1e-3
    assert np.abs(found[0] - found[1]).max(-1).min() > 1e-3
    if config is MIXED:  # which the network without could not
        np.testing.assert_allclose(np.diff(logits(PLAIN, shaken(PLAIN), masks), axis=1), 0.0, atol=1e-5)


def test_a_row_sees_its_own_latent_alone():
    params = shaken(MIXED)
    found, alone = logits(MIXED, params, latent=LATENT), logits(MIXED, params, TOKENS[1:2], latent=LATENT[1:2])
    np.testing.assert_allclose(found[1:2], alone, atol=1e-5)


def test_beside_a_cache_it_is_what_it_is_on_the_whole():
    params, whole = shaken(MIXED), cache.empty(MIXED, 3, 8)
    expected = logits(MIXED, params, latent=LATENT)
    stored = api.forward(MIXED, params, TOKENS, cache=whole, start=0, latent=LATENT).cache
    window = api.forward(MIXED, params, TOKENS[:, 3:6], cache=stored, start=3, latent=LATENT)
    np.testing.assert_allclose(window.prediction.logits(), expected[:, 3:6], atol=1e-4)


def test_flops_count_it():
    more = flops.forward_flops(MIXED, 24, 8, 24) - flops.forward_flops(PLAIN, 24, 8, 24)
    assert more == 2 * 16 * (3 * 6 + 24 * (6 + 16))


@pytest.mark.parametrize(("config", "latent", "message"), [
    (MIXED, None, "latent: the network reads one; give latent"),
    (PLAIN, LATENT, "latent: the network reads none; leave it out"),
    (MIXED, LATENT[:2], r"latent: has shape \[2\]; it must be \[3\]"),
])
def test_errors(config, latent, message):
    with pytest.raises(ValueError, match=message):
        api.apply(config, api.abstract(config), TOKENS, latent=latent)


def test_an_odd_number_of_waves():
    with pytest.raises(ValueError, match="latent=5: must be even"):
        dataclasses.replace(PLAIN, latent=5)


def test_no_family_of_published_checkpoints_can_say_it():
    assert families.family_of(PLAIN, {"mask_id": 10, "bos_id": None, "eos_id": None, "pad_id": None})
    with pytest.raises(ConfigError, match="latent"):
        families.family_of(MIXED, {"mask_id": 10, "bos_id": None, "eos_id": None, "pad_id": None})
