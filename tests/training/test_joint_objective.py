"""ADJUST's objective against plain Python, and what of it trains."""

import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mdlm_jax.core.prediction import Head, Prediction
from mdlm_jax.core.process import Process
from mdlm_jax.data.trajectories import GIVEN, NEVER, PADDING
from mdlm_jax.models import api, joint
from mdlm_jax.models.config import TransformerConfig
from mdlm_jax.training.objectives.joint import JointObjective
from tests.marks import slow_unless

V, MASK, LENGTH = 5, 5, 8
NETWORK = TransformerConfig(V + 1, V + 1, layers=1, d_model=16, heads=2, kv_heads=2, d_ff=24)
OBJECTIVE = JointObjective(NETWORK, Process(V + 1, MASK), passes=3)
KEY = jax.random.key(3)


def weights(tree, seed):
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda leaf: jnp.asarray(0.5 * rng.standard_normal(leaf.shape), jnp.float32), tree)


TRAINED = {"network": weights(api.abstract(NETWORK), 0), "joint": weights(joint.abstract(NETWORK), 1)}


def batch(rank):
    rank = np.array(rank, np.int32)
    written = (rank >= 0) & (rank < NEVER)
    tokens = np.random.default_rng(5).integers(0, V, rank.shape).astype(np.int32)
    return {name: jnp.asarray(value) for name, value in {
        "tokens": tokens, "rank": rank, "attention_mask": (rank != PADDING).astype(np.int32),
        "positions": np.broadcast_to(np.arange(rank.shape[1]), rank.shape), "noise_mask": written,
        "loss_mask": written}.items()}


RANKS = [[3, 1, 0, 2, 7, 5, 6, 4], [GIVEN, GIVEN, 0, 2, 1, 3, PADDING, PADDING], [GIVEN, 1, 0, 2, NEVER, 3, NEVER, 4]]


def log_probs(hidden):
    logits = np.array(hidden @ TRAINED["network"]["head"], np.float64)
    logits[..., MASK] = -np.inf
    return logits - np.logaddexp.reduce(logits, -1, keepdims=True)


def plain(data, row, first, depth, draw=None):
    """sum over the masks left of KL(network || layer), for one row. draw: (j, hidden) -> tokens [1, L] that are written
    at the mask of least entropy, in place of the trajectory's."""
    one = {name: np.asarray(value[row : row + 1]) for name, value in data.items()}
    rank = one["rank"]
    tokens, left = np.where(rank >= first, MASK, one["tokens"]), (rank >= first) & (rank < NEVER)

    def base():
        return api.apply(NETWORK, TRAINED["network"], jnp.array(tokens), attention_mask=one["attention_mask"]).hidden

    hidden = base()
    for j in range(1, depth + 1):
        place = np.nonzero(rank[0] == first + j - 1)[0][0]
        if draw is not None:
            law = log_probs(hidden)[0, :, :V]
            place = min(np.nonzero(left[0])[0], key=lambda i: -(np.exp(law[i]) * law[i]).sum())
        tokens[0, place] = (one["tokens"] if draw is None else draw(j, hidden))[0, place]
        left[0, place] = False
        hidden = joint.step(NETWORK, TRAINED["joint"], TRAINED["network"]["embedding"], jnp.array(tokens), hidden,
                            attention_mask=one["attention_mask"])
    p, q = (log_probs(x)[..., :V] for x in (base(), hidden))
    return (np.exp(p) * (p - q)).sum(-1)[left].sum()


@pytest.mark.parametrize("seed", slow_unless(range(4), 0, 3))
def test_the_loss_is_the_divergence_from_what_the_network_says(seed):
    data, rows, key = batch(RANKS), jnp.arange(3), jax.random.key(seed)
    first, depth = OBJECTIVE.window(data["rank"], key, rows)
    with jax.default_matmul_precision("highest"):
        parts = jax.jit(lambda key: OBJECTIVE.loss(TRAINED, data, key, rows, 3))(key)
        expected = [plain(data, row, int(first[row]), int(depth[row])) if depth[row] else 0.0 for row in range(3)]
    np.testing.assert_allclose(parts.per_row(), expected, rtol=2e-4, atol=1e-5)
    np.testing.assert_array_equal(parts.row_counts(), [8, 4, 5])


@pytest.mark.parametrize("seed", range(3))
def test_on_policy_the_layer_writes_what_it_draws_where_it_is_surest(seed):
    objective = dataclasses.replace(OBJECTIVE, on_policy=1.0)
    data, rows, key = batch(RANKS), jnp.arange(3), jax.random.key(seed)
    first, depth = objective.window(data["rank"], key, rows)
    assert depth.max() > 0
    with jax.default_matmul_precision("highest"):
        parts = objective.loss(TRAINED, data, key, rows, 3)
        for row in range(3):
            def draw(j, hidden, row=row):
                prediction = Prediction(hidden, Head(TRAINED["network"]["head"]))
                return np.asarray(objective.own_draws(prediction, key, rows[row : row + 1], j))
            expected = plain(data, row, int(first[row]), int(depth[row]), draw) if depth[row] else 0.0
            np.testing.assert_allclose(parts.per_row()[row], expected, rtol=2e-4, atol=1e-5)


def test_any_order_shows_what_was_written_in_every_order_alike():
    objective, many = dataclasses.replace(OBJECTIVE, any_order=1.0), 6000
    rank = np.array([2, GIVEN, 0, NEVER, 1, PADDING])
    found = np.asarray(objective.ranks(jnp.asarray(np.tile(rank, (many, 1))), KEY, jnp.arange(many)))
    assert (found[:, [1, 3, 5]] == rank[[1, 3, 5]]).all()
    shown = found[:, [0, 2, 4]]
    counts = [(shown == order).all(1).sum() for order in itertools.permutations(range(3))]
    assert sum(counts) == many and max(abs(count - 1000) for count in counts) < 130  # 4.5 standard deviations
    half = np.asarray(dataclasses.replace(OBJECTIVE, any_order=0.5).ranks(
        jnp.asarray(np.tile(rank, (many, 1))), KEY, jnp.arange(many)))
    assert abs((half == rank).all(1).mean() - 7 / 12) < 0.03  # a random order may be the same
    blocks = np.asarray(dataclasses.replace(objective, block_length=4).ranks(
        jnp.asarray(np.tile([3, 1, 0, 2, 7, 5, 6, 4], (50, 1))), KEY, jnp.arange(50)))
    assert (np.sort(blocks[:, :4]) == range(4)).all() and (np.sort(blocks[:, 4:]) == range(4, 8)).all()
    assert len(np.unique(blocks[:, :4], axis=0)) > 10


def test_any_order_is_the_loss_of_other_trajectories():
    objective, data, rows = dataclasses.replace(OBJECTIVE, any_order=1.0), batch(RANKS), jnp.arange(3)
    found = objective.loss(TRAINED, data, KEY, rows, 3).per_row()
    shown = data | {"rank": objective.ranks(data["rank"], KEY, rows)}
    np.testing.assert_array_equal(found, OBJECTIVE.loss(TRAINED, shown, KEY, rows, 3).per_row())
    assert not np.array_equal(found, OBJECTIVE.loss(TRAINED, data, KEY, rows, 3).per_row())


def test_a_share_of_the_windows_is_on_policy():
    data = batch([RANKS[0]] * 400)
    never, always, half = (np.asarray(dataclasses.replace(OBJECTIVE, on_policy=share).loss(
        TRAINED, data, KEY, jnp.arange(400), 400).per_row()) for share in (0.0, 1.0, 0.5))
    apart = ~np.isclose(never, always, rtol=1e-3)
    assert apart.sum() > 200
    own = np.isclose(half, always, rtol=1e-4)
    assert (own | np.isclose(half, never, rtol=1e-4)).all() and abs(own[apart].mean() - 0.5) < 0.1


def test_windows_begin_anywhere_and_leave_a_mask():
    """Depths 1..3 have the probabilities softmax(1, 1/2, 1/4), cut where the row ends."""
    rank = jnp.asarray(np.tile(RANKS[0], (20_000, 1)), jnp.int32)
    first, depth = (np.asarray(x) for x in OBJECTIVE.window(rank, KEY, jnp.arange(len(rank))))
    assert set(first) == set(range(8)) and (first + depth <= 7).all()
    np.testing.assert_allclose(np.bincount(first) / len(first), 1 / 8, atol=0.01)
    shares = np.bincount(depth[first < 4], minlength=4)[1:] / (first < 4).sum()
    np.testing.assert_allclose(shares, np.exp([1, 0.5, 0.25]) / np.exp([1, 0.5, 0.25]).sum(), atol=0.02)
    np.testing.assert_allclose(OBJECTIVE.depths(), [0.481, 0.292, 0.227], atol=5e-4)


def test_blocks_are_windows_of_their_own():
    network = TransformerConfig(V + 1, V + 1, layers=1, d_model=16, heads=2, kv_heads=2, d_ff=24,
                                attention="block_causal", block_length=4)
    objective = JointObjective(network, Process(V + 1, MASK), passes=3, block_length=4)
    rank = jnp.asarray(np.tile([3, 1, 0, 2, 7, 5, 6, 4], (2000, 1)), jnp.int32)
    first, depth = (np.asarray(x) for x in objective.window(rank, KEY, jnp.arange(len(rank))))
    assert (first + depth <= np.where(first < 4, 3, 7)).all() and set(depth) == {0, 1, 2, 3}
    data, rows = batch([[3, 1, 0, 2, 7, 5, 6, 4]] * 64), jnp.arange(64)
    first, _ = objective.window(data["rank"], KEY, rows)
    params = {"network": weights(api.abstract(network), 0), "joint": TRAINED["joint"]}
    parts = jax.jit(lambda w: objective.loss(w, data, KEY, rows, 64))(params)
    counted = np.asarray(parts.terms["joint"]) > 1e-6
    outside = np.arange(8) // 4 != (np.asarray(first) >= 4)[:, None]
    assert counted.any() and not counted[outside].any()


def test_only_the_layer_trains_and_at_first_only_its_gain():
    data, rows = batch(RANKS), jnp.arange(3)

    @jax.jit
    def gradient(params):
        return jax.grad(lambda w: OBJECTIVE.loss(w, data, KEY, rows, 3).objective())(params)

    found = gradient(TRAINED)
    assert not any(np.any(leaf) for leaf in jax.tree.leaves(found["network"]))
    assert all(np.any(leaf) for leaf in jax.tree.leaves(found["joint"]))
    fresh = gradient(TRAINED | {"joint": joint.init(NETWORK, KEY)})
    assert [name for name, tree in fresh["joint"].items() if any(np.any(x) for x in jax.tree.leaves(tree))] == ["gain"]
    begun = jax.tree.map(lambda w, g: w - 0.1 * g, joint.init(NETWORK, KEY), fresh["joint"])
    assert all(np.any(leaf) for leaf in jax.tree.leaves(gradient(TRAINED | {"joint": begun})["joint"]))


@pytest.mark.parametrize(("fields", "said"), [
    ({"any_order": -0.1}, "any_order=-0.1: must lie in"),
    ({"on_policy": 1.5}, "on_policy=1.5: must lie in \\[0, 1\\]"),
    ({"passes": 0}, "passes=0: must be at least 1"),
    ({"network": TransformerConfig(6, 6, 1, 16, 2, 2, 24, attention="causal")}, "network.attention='causal'"),
])
def test_mistakes_are_named(fields, said):
    with pytest.raises(ValueError, match=said):
        JointObjective(**({"network": NETWORK, "process": Process(V + 1, MASK)} | fields))


def test_flops_of_drawing_are_the_heads():
    """2 D V a token and pass."""
    own = dataclasses.replace(OBJECTIVE, on_policy=0.3)
    assert own.train_flops(4, LENGTH) - OBJECTIVE.train_flops(4, LENGTH) == 2 * 16 * (V + 1) * 4 * LENGTH * 3


def test_the_layer_of_a_block_sees_that_block_alone():
    network = dataclasses.replace(NETWORK, attention="block_causal", block_length=4)
    objective = JointObjective(network, Process(V + 1, MASK), block_length=4)
    data = batch([[3, 1, 0, 2, 7, 5, 6, 4], [GIVEN, 1, 0, 2, 5, 3, 4, PADDING]])
    np.testing.assert_array_equal(objective.seen(data, jnp.array([2, 4])),
                                  [[1, 1, 1, 1, 0, 0, 0, 0], [0, 0, 0, 0, 1, 1, 1, 0]])
    np.testing.assert_array_equal(OBJECTIVE.seen(data, jnp.array([2, 4])), data["attention_mask"])
