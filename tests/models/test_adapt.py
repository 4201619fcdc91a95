"""Causal networks made diffusion networks: what changes, and what must not."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mdlm_jax.errors import ConfigError
from mdlm_jax.models import adapt, api
from tests.marks import slow_unless
from tests.models.hf.support import DESCRIPTIONS, random_params

BASES = ["llama", "qwen2", "qwen3", "gpt2"]
TOKENS = jnp.asarray(np.random.default_rng(0).integers(0, 40, (2, 9)), jnp.int32)


def _base(name):
    config = DESCRIPTIONS[name].config
    return config, random_params(config)


@pytest.mark.parametrize(
    "options", [{}, {"mask_column": True}, {"mask_id": 7}, {"multiple": 16}, {"keep_shift": False}], ids=str
)
@pytest.mark.parametrize("name", BASES)
def test_the_new_tree_is_that_of_the_new_network(name, options):
    config, params = _base(name)
    made = adapt.adapt(config, params, **options)
    wanted = jax.tree.map(lambda leaf: leaf.shape, api.abstract(made.config))
    assert wanted == jax.tree.map(lambda leaf: leaf.shape, made.params)
    assert made.mask_id == options.get("mask_id", 40)
    assert made.config.head_size == (41 if "mask_column" in options else 40)
    assert made.config.logit_shift == options.get("keep_shift", True)
    np.testing.assert_array_equal(made.params["embedding"][:40], params["embedding"])


@pytest.mark.parametrize("name", slow_unless(BASES, "llama", "gpt2"))
def test_old_weights_compute_what_they_did(name):
    """Seen causally again, the adapted network gives the base's logits for old tokens."""
    import dataclasses

    config, params = _base(name)
    made = adapt.adapt(config, params)
    closed = dataclasses.replace(made.config, attention="causal")
    ours = api.apply(closed, made.params, TOKENS).logits()
    np.testing.assert_allclose(ours, api.apply(config, params, TOKENS).logits(), atol=1e-4)


def test_the_mask_starts_at_the_mean():
    config, params = _base("llama")
    made = adapt.adapt(config, params, mask_column=True)
    np.testing.assert_allclose(made.params["embedding"][40], params["embedding"].mean(0), atol=1e-6)
    np.testing.assert_allclose(made.params["head"][:, 40], params["head"].mean(1), atol=1e-6)


def test_the_network_is_open():
    config, params = _base("llama")
    made = adapt.adapt(config, params)
    changed = TOKENS.at[:, -1].set(3)
    before, after = (api.apply(made.config, made.params, t, raw=True).logits()[:, 0] for t in (TOKENS, changed))
    assert np.abs(before - after).max() > 1e-2


@pytest.mark.parametrize("name", slow_unless(BASES, "llama", "gpt2"))
def test_gradual_opening_begins_causal_and_ends_open(name):
    config, params = _base(name)
    made = adapt.adapt(config, params, gradual=True)
    keys = jax.random.split(jax.random.key(2), 2)

    def logits(p):
        order = adapt.opening_order(keys, TOKENS.shape[1], p)
        return api.apply(made.config, made.params, TOKENS, order=order).logits()

    np.testing.assert_allclose(logits(0.0), api.apply(config, params, TOKENS).logits(), atol=1e-4)
    full = api.apply(adapt.finished(made.config), made.params, TOKENS).logits()
    np.testing.assert_allclose(logits(1.0), full, atol=1e-4)
    assert np.abs(logits(0.5) - full).max() > 1e-2


def test_what_is_visible_stays_visible():
    keys = jax.random.split(jax.random.key(0), 16)
    seen_before = np.zeros((16, 12, 12), bool)
    shares = []
    for p in (0.0, 0.2, 0.5, 0.9, 1.0):
        order = np.asarray(adapt.opening_order(keys, 12, p))
        seen = order[:, None, :] <= order[:, :, None]
        assert (seen | ~seen_before).all()
        seen_before = seen
        shares.append(seen.mean())
    assert shares == sorted(shares) and shares[0] == pytest.approx(78 / 144) and shares[-1] == 1.0


def test_openness_rises_linearly():
    assert [float(adapt.openness(step, 10)) for step in (0, 5, 10, 20)] == [0.0, 0.5, 1.0, 1.0]


def test_what_cannot_be_opened():
    config, params = _base("llama")
    with pytest.raises(ConfigError, match="bidirectional"):
        adapt.opened(DESCRIPTIONS["llada"].config)
    with pytest.raises(ConfigError, match="mask_id=40"):
        adapt.adapt(config, params, mask_id=40)
    with pytest.raises(ConfigError, match="mask_column"):
        adapt.adapt(config, params, mask_id=4, mask_column=True)
    with pytest.raises(ConfigError, match="gradual"):
        adapt.finished(config)
