"""The Transformer against a float64 numpy twin, its counts against XLA's, and its options against each other."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mdlm_jax.config import ModelConfig
from mdlm_jax.models import api, flops
from mdlm_jax.models.config import RopeConfig, TransformerConfig
from mdlm_jax.planning import hlo
from tests.models import twin

PLAIN = TransformerConfig(vocab_size=23, head_size=23, layers=2, d_model=32, heads=4, kv_heads=2, d_ff=48)
TIMED = dataclasses.replace(PLAIN, conditioning="time", tied=True, head_size=22)
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

ORDER = jnp.asarray([[3, 1, 2, 0, 4, 5, 6, 7, 8], [8, 7, 6, 5, 4, 3, 2, 1, 0], [0, 0, 0, 1, 2, 5, 4, 3, 3]])
INDEX = jnp.broadcast_to(jnp.arange(LENGTH), TOKENS.shape)
CHANGES = {
    "plain": {},
    "timed": {"conditioning": "time", "tied": True, "head_size": 22},
    "constant condition": {"conditioning": "constant", "time_features": 256, "condition_dim": 16, "norm": "layer",
                           "activation": "gelu_tanh", "mlp_bias": True, "head_bias": True},
    "causal": {"attention": "causal", "qkv_bias": True, "head_dim": 12},
    "block_causal": {"attention": "block_causal", "block_length": 4, "qk_norm": True,
                     "rope": RopeConfig(theta=600000.0, fraction=0.5)},
    "two_stream": {"attention": "two_stream", "block_length": 2},
    "permutation": {"attention": "permutation", "kv_heads": 1},
    "interleaved": {"rope": RopeConfig(interleaved=True), "out_bias": True, "activation": "gelu", "mlp_bias": True},
    "learned positions": {"rope": RopeConfig(theta=0.0), "learned_positions": 16, "norm": "layer", "norm_bias": True,
                          "activation": "gelu_tanh", "kv_heads": 4, "attention": "causal", "tied": True},
}


@pytest.mark.parametrize("changes", CHANGES.values(), ids=CHANGES)
def test_matches_the_numpy_twin(changes):
    config = dataclasses.replace(PLAIN, **changes)
    tokens, segments, positions, order = TOKENS, SEGMENTS, POSITIONS, INDEX
    given = {"time": TIME} if config.time_conditioning else {}
    if config.attention == "permutation":
        given["order"] = order = ORDER
    if config.attention == "two_stream":
        tokens, segments, positions, order = (
            jnp.concatenate([x[:, :8], y[:, :8]], 1)
            for x, y in ((TOKENS, TOKENS[::-1]), (SEGMENTS, SEGMENTS), (POSITIONS, POSITIONS), (INDEX, INDEX))
        )
    params = parameters(config)
    ours = logits(config, params, tokens, attention_mask=segments, positions=positions, **given)
    theirs = twin.logits(config, params, np.asarray(tokens), time=np.asarray(TIME, np.float64),
                         positions=np.asarray(positions), segments=np.asarray(segments), order=np.asarray(order),
                         tree_map=jax.tree.map)
    assert ours.shape == (*tokens.shape, config.head_size) and ours.dtype == jnp.float32
    assert np.isfinite(np.asarray(ours)).all() and np.abs(theirs).max() > 0.2
    np.testing.assert_allclose(np.asarray(ours), theirs, rtol=1e-4, atol=2e-4)


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
    again, others = run(dataclasses.replace(TIMED, remat="full"), parameters(TIMED))
    np.testing.assert_allclose(float(again), float(loss), rtol=1e-6)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(np.asarray(a), np.asarray(b), rtol=1e-4, atol=1e-7),
                 others, grads)


def test_remat_policies_recompute_what_they_say():
    """By the matrix products that XLA compiles, three layers of feed-forward width 96 and their attention."""
    found = {}
    for name in ("none", "full", "matmuls", "context"):
        config = TransformerConfig(23, 23, layers=3, d_model=32, heads=4, kv_heads=4, d_ff=96, remat=name)
        run = jax.jit(jax.grad(lambda p, c=config: jnp.square(api.apply(c, p, TOKENS).logits()).mean()))
        compiled = run.lower(api.abstract(config)).compile()
        found[name] = sum(hlo.matmuls(hlo.parse(compiled.as_text())).values())
    products = 3 * 2 * TOKENS.size * (4 * 32 * 32 + 2 * 32 * 96)  # forward, without "down", whose result nobody needs
    attention = 3 * 2 * 2 * TOKENS.size * TOKENS.shape[1] * 32
    assert found["matmuls"] == found["none"]
    assert found["context"] - found["none"] == pytest.approx(products, rel=0.25)
    assert found["full"] - found["context"] == pytest.approx(attention, rel=0.6)


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
    expected = twin.rms(embedded, 1.0, 1e-5) @ np.asarray(params["embedding"], np.float64)[:22].T
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


def test_time_must_be_given_if_and_only_if_the_network_takes_it():
    with pytest.raises(ValueError, match="time: the network reads it; give one"):
        api.apply(TIMED, parameters(TIMED), TOKENS)
    with pytest.raises(ValueError, match="time: the network takes none; leave it out"):
        api.apply(PLAIN, parameters(PLAIN), TOKENS, time=TIME)


# Counts ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("config", [PLAIN, TIMED], ids=["plain", "timed"])
def test_number_of_parameters(config):
    c, d, f = config.condition_dim, config.d_model, config.d_ff
    layer = 2 * d * d + 2 * d * d * config.kv_heads // config.heads + 3 * d * f + 2 * d
    assert layer - 2 * d == flops.matmul_parameters(config) // config.layers
    timed = 2 * (c * c + c) + (6 * config.layers + 2) * (c + 1) * d if config.time_conditioning else 0
    head = 0 if config.tied else d * config.head_size
    assert api.num_parameters(config) == config.vocab_size * d + config.layers * layer + timed + d + head


def test_defaults_of_the_run_configuration():
    config = ModelConfig(layers=3, d_model=192, heads=4).transformer(259)
    assert (config.vocab_size, config.head_size, config.kv_heads, config.d_ff) == (259, 259, 4, 512)


@pytest.mark.parametrize("timed", [False, True])
def test_flops_agree_with_the_compiler(timed):
    """One layer, since XLA counts the body of a scan once."""
    config = TransformerConfig(512, 512, 1, 128, 4, 2, 320, conditioning="time" if timed else "none")
    tokens = jax.ShapeDtypeStruct((4, 64), jnp.int32)
    time = jax.ShapeDtypeStruct((4,), jnp.float32) if timed else None

    def forward(params, tokens, time):
        return api.apply(config, params, tokens, time=time).logits()

    counted = jax.jit(forward).lower(api.abstract(config), tokens, time).compile().cost_analysis()["flops"]
    assert flops.forward_flops(config, 256, 64, 256) == pytest.approx(counted, rel=0.1)
    assert flops.train_flops(config, 256, 64, 100) == 3 * flops.forward_flops(config, 256, 64, 100)
    assert flops.forward_flops(config, 256, 64, 256) - flops.forward_flops(config, 256, 64, 128) == 128 * 2 * 128 * 512


def test_a_network_must_be_fed_something():
    config = TransformerConfig(7, 6, 1, 8, 2, 2, 16)
    with pytest.raises(ValueError, match="tokens=None: give tokens, or embeddings"):
        api.apply(config, {}, None)
