"""The Transformer against a float64 numpy twin, its counts against XLA's, and its options against each other."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mdlm_jax.config import ModelConfig
from mdlm_jax.models import api
from mdlm_jax.models.config import TransformerConfig, from_run

PLAIN = TransformerConfig(vocab_size=23, head_size=23, layers=2, d_model=32, heads=4, kv_heads=2, d_ff=48)
TIMED = dataclasses.replace(PLAIN, time_conditioning=True, tied=True, head_size=22)
LENGTH = 9
SEGMENTS = jnp.asarray([[1, 1, 1, 1, 2, 2, 2, 0, 0], [1] * 9, [1, 2, 2, 2, 2, 2, 3, 3, 3]])
POSITIONS = jnp.asarray([[0, 1, 2, 3, 0, 1, 2, 0, 1], list(range(9)), [0, 0, 1, 2, 3, 4, 0, 1, 2]])
TOKENS = jax.random.randint(jax.random.key(0), (3, LENGTH), 0, 23)
TIME = jnp.asarray([0.0, 0.31, 1.0])


@functools.cache
def parameters(config):
    """Random ones of about the usual size, none at zero: AdaLN gates are open and norms have scales of their own."""
    rng = np.random.default_rng(0)

    def random(path, leaf):
        values = 0.2 * rng.standard_normal(leaf.shape, np.float32)
        return jnp.asarray(values + ("scale" in jax.tree_util.keystr(path)))

    return jax.tree.map_with_path(random, api.abstract(config))


@functools.partial(jax.jit, static_argnums=0)
def logits(config, params, tokens=TOKENS, time=None, **options):
    return api.apply(config, params, tokens, time=time, **options).logits()


# The twin -------------------------------------------------------------------------------------------------------------


def silu(x):
    return x / (1 + np.exp(-x))


def norm(x, scale, eps=1e-5):
    return x / np.sqrt((x**2).mean(-1, keepdims=True) + eps) * scale


def rotate(x, positions, theta=10000.0):
    """Pairs (i, i + H/2) turn by position * theta^(-2i/H); x [B, L, N, H]."""
    half = x.shape[-1] // 2
    angle = positions[:, :, None, None] * theta ** (-np.arange(half) / half)
    turned = (x[..., :half] + 1j * x[..., half:]) * np.exp(1j * angle)
    return np.concatenate([turned.real, turned.imag], -1)


def attention(w, x, positions, segments):
    """Query head n uses key/value head n // (heads / kv_heads)."""
    q, k, v = (np.einsum("bld,dnh->blnh", x, w[name]) for name in ("query", "key", "value"))
    q, k = rotate(q, positions), rotate(k, positions)
    out = np.zeros_like(x)
    for head in range(q.shape[2]):
        shared = head // (q.shape[2] // k.shape[2])
        score = np.einsum("blh,bmh->blm", q[:, :, head], k[:, :, shared]) / np.sqrt(q.shape[-1])
        seen = (segments[:, :, None] == segments[:, None, :]) & (segments[:, None, :] != 0)
        score = np.where(seen, score, -1e30)
        weight = np.exp(score - score.max(-1, keepdims=True))
        weight /= weight.sum(-1, keepdims=True)
        out += np.einsum("blm,bmh,hd->bld", weight, v[:, :, shared], w["out"][head])
    return out


def twin(config, params, tokens, time, positions, segments):
    p = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), params)
    x = p["embedding"][tokens]
    if config.time_conditioning:
        half = min(128, config.d_model) // 2
        angle = time[:, None] * 1000.0 * 10000.0 ** (-np.arange(half) / half)
        features = np.concatenate([np.cos(angle), np.sin(angle)], -1)
        condition = silu(silu(features @ p["time"]["first"]) @ p["time"]["second"])
    for layer in range(config.layers):
        w = jax.tree.map(lambda leaf, layer=layer: leaf[layer], p["layers"])
        shift = scale = [0.0, 0.0]
        gate = [1.0, 1.0]
        if config.time_conditioning:
            parts = np.einsum("bc,csd->sbd", condition, w["modulation"]["kernel"])[:, :, None]
            shift, scale, gate = parts[[0, 3]], parts[[1, 4]], parts[[2, 5]]
        y = norm(x, w["attention_norm"]["scale"]) * (1 + scale[0]) + shift[0]
        x = x + gate[0] * attention(w["attention"], y, positions, segments)
        y = norm(x, w["mlp_norm"]["scale"]) * (1 + scale[1]) + shift[1]
        mlp = w["mlp"]
        x = x + gate[1] * ((silu(y @ mlp["gate"]) * (y @ mlp["up"])) @ mlp["down"])
    x = norm(x, p["final_norm"]["scale"])
    return x @ (p["embedding"][: config.head_size].T if config.tied else p["head"])


@pytest.mark.parametrize("config", [PLAIN, TIMED], ids=["plain", "timed"])
def test_matches_the_numpy_twin(config):
    time = TIME if config.time_conditioning else None
    params = parameters(config)
    ours = logits(config, params, TOKENS, time, attention_mask=SEGMENTS, positions=POSITIONS)
    theirs = twin(config, params, np.asarray(TOKENS), None if time is None else np.asarray(time, np.float64),
                  np.asarray(POSITIONS), np.asarray(SEGMENTS))
    assert ours.shape == (3, LENGTH, config.head_size) and ours.dtype == jnp.float32
    valid = np.asarray(SEGMENTS) != 0
    assert np.isfinite(np.asarray(ours)).all() and np.abs(theirs).max() > 0.2
    np.testing.assert_allclose(np.asarray(ours)[valid], theirs[valid], rtol=1e-4, atol=1e-4)


def test_defaults_are_one_segment_and_counting_positions():
    plain = logits(PLAIN, parameters(PLAIN))
    spelled = logits(PLAIN, parameters(PLAIN), attention_mask=jnp.ones_like(TOKENS),
                     positions=jnp.broadcast_to(jnp.arange(LENGTH), TOKENS.shape))
    np.testing.assert_allclose(np.asarray(spelled), np.asarray(plain), rtol=1e-5, atol=1e-6)


def test_rotary_positions_matter_only_by_their_differences():
    plain = logits(PLAIN, parameters(PLAIN))
    moved = logits(PLAIN, parameters(PLAIN), positions=jnp.broadcast_to(jnp.arange(LENGTH) + 5, TOKENS.shape))
    spread = logits(PLAIN, parameters(PLAIN), positions=jnp.broadcast_to(2 * jnp.arange(LENGTH), TOKENS.shape))
    np.testing.assert_allclose(np.asarray(moved), np.asarray(plain), rtol=1e-4, atol=1e-5)
    assert np.abs(np.asarray(spread) - np.asarray(plain)).max() > 1e-3


@pytest.mark.parametrize(("row", "place"), [(0, 1), (0, 5), (0, 7), (1, 8), (2, 0), (2, 3)])
def test_a_token_reaches_its_own_document_and_no_other(row, place):
    """Bidirectional inside a document, nothing across documents or rows; padding reaches none of the others."""
    params = parameters(PLAIN)
    before = np.asarray(logits(PLAIN, params, attention_mask=SEGMENTS, positions=POSITIONS))
    changed = TOKENS.at[row, place].set((TOKENS[row, place] + 1) % 23)
    after = np.asarray(logits(PLAIN, params, changed, attention_mask=SEGMENTS, positions=POSITIONS))
    segments = np.asarray(SEGMENTS)
    moved = (before != after).any(-1) & (segments != 0)
    expected = np.zeros_like(moved)
    expected[row] = (segments[row] == segments[row, place]) & (segments[row] != 0)
    np.testing.assert_array_equal(moved, expected)


# Options --------------------------------------------------------------------------------------------------------------


def test_dropout_is_on_with_a_key_only():
    config = dataclasses.replace(PLAIN, dropout=0.3)
    params = parameters(PLAIN)
    plain = np.asarray(logits(PLAIN, params))
    np.testing.assert_array_equal(np.asarray(logits(config, params)), plain)
    np.testing.assert_array_equal(np.asarray(logits(PLAIN, params, dropout_key=jax.random.key(0))), plain)
    drawn = [np.asarray(logits(config, params, dropout_key=jax.random.key(seed))) for seed in (0, 0, 1)]
    np.testing.assert_array_equal(drawn[0], drawn[1])
    assert (drawn[0] != plain).mean() > 0.9 and (drawn[0] != drawn[2]).mean() > 0.9


def test_remat_changes_nothing():
    @functools.partial(jax.jit, static_argnums=0)
    def run(config, params):
        return jax.value_and_grad(lambda p: jnp.square(api.apply(config, p, TOKENS, time=TIME).logits()).mean())(params)

    loss, grads = run(TIMED, parameters(TIMED))
    again, others = run(dataclasses.replace(TIMED, remat=True), parameters(TIMED))
    np.testing.assert_allclose(float(again), float(loss), rtol=1e-6)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(np.asarray(a), np.asarray(b), rtol=1e-4, atol=1e-7),
                 others, grads)


def test_bfloat16_is_close_and_keeps_float32_logits_and_weights():
    narrow = dataclasses.replace(TIMED, dtype="bfloat16")
    assert {leaf.dtype for leaf in jax.tree.leaves(api.abstract(narrow))} == {jnp.dtype("float32")}
    prediction = jax.eval_shape(lambda p: api.apply(narrow, p, TOKENS, time=TIME), api.abstract(narrow))
    assert prediction.hidden.dtype == jnp.bfloat16
    wide, found = (np.asarray(logits(c, parameters(TIMED), TOKENS, TIME)) for c in (TIMED, narrow))
    assert found.dtype == np.float32
    assert np.sqrt(((found - wide) ** 2).mean() / (wide**2).mean()) < 0.02


def test_fresh_time_conditioning_is_the_identity():
    """AdaLN-zero: at the start every branch has gate 0, so time and layers change nothing."""
    params = jax.jit(api.init, static_argnums=0)(TIMED, jax.random.key(1))
    found = np.asarray(logits(TIMED, params, TOKENS, TIME))
    embedded = np.asarray(params["embedding"], np.float64)[np.asarray(TOKENS)]
    expected = norm(embedded, 1.0) @ np.asarray(params["embedding"], np.float64)[:22].T
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


def test_time_must_be_given_if_and_only_if_the_network_takes_it():
    with pytest.raises(ValueError, match="is conditioned on time and got none"):
        api.apply(TIMED, parameters(TIMED), TOKENS)
    with pytest.raises(ValueError, match="takes no time and got one"):
        api.apply(PLAIN, parameters(PLAIN), TOKENS, time=TIME)


# Counts ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("config", [PLAIN, TIMED], ids=["plain", "timed"])
def test_number_of_parameters(config):
    c, d, f = min(128, config.d_model), config.d_model, config.d_ff
    layer = 2 * d * d + 2 * d * d * config.kv_heads // config.heads + 3 * d * f + 2 * d
    assert layer - 2 * d == config.matmul_parameters() // config.layers
    timed = c * c * 2 + config.layers * c * 6 * d if config.time_conditioning else 0
    head = 0 if config.tied else d * config.head_size
    assert api.num_parameters(config) == config.vocab_size * d + config.layers * layer + timed + d + head


def test_defaults_of_the_run_configuration():
    config = from_run(ModelConfig(layers=3, d_model=192, heads=4), 259)
    assert (config.vocab_size, config.head_size, config.kv_heads, config.d_ff) == (259, 259, 4, 512)


@pytest.mark.parametrize("timed", [False, True])
def test_flops_agree_with_the_compiler(timed):
    """One layer, since XLA counts the body of a scan once."""
    config = TransformerConfig(512, 512, 1, 128, 4, 2, 320, time_conditioning=timed)
    tokens = jax.ShapeDtypeStruct((4, 64), jnp.int32)
    time = jax.ShapeDtypeStruct((4,), jnp.float32) if timed else None

    def forward(params, tokens, time):
        return api.apply(config, params, tokens, time=time).logits()

    counted = jax.jit(forward).lower(api.abstract(config), tokens, time).compile().cost_analysis()["flops"]
    assert config.forward_flops(256, 64, 256) == pytest.approx(counted, rel=0.1)
    assert config.train_flops(256, 64, 100) == 3 * config.forward_flops(256, 64, 100)
    assert config.forward_flops(256, 64, 256) - config.forward_flops(256, 64, 128) == 128 * 2 * 128 * 512
