"""Autoregressive, block and any-order objectives against brute force: tiny vocabularies, every mask and every order."""

import dataclasses
import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mdlm_jax.core.loss_parts import LossParts
from mdlm_jax.core.process import Process
from mdlm_jax.core.schedules import Linear
from mdlm_jax.evaluation.likelihood import held_out_bound, padded_batches
from mdlm_jax.models import api
from mdlm_jax.models.config import TransformerConfig
from mdlm_jax.training.build import bound_draws, build_bound, build_network, build_objective, build_process
from mdlm_jax.training.objectives.any_order import AnyOrderObjective, AnySubsetObjective
from mdlm_jax.training.objectives.autoregressive import AutoregressiveObjective
from mdlm_jax.training.objectives.block import BlockObjective
from mdlm_jax.training.objectives.count import CountObjective
from tests.marks import slow_unless
from tests.training import tiny

VOCAB, MASK, LENGTH = 4, 3, 4
PROCESS = Process(VOCAB, MASK, 0.0, Linear(1e-3))
SHAPE = TransformerConfig(VOCAB, VOCAB, layers=2, d_model=16, heads=2, kv_heads=2, d_ff=32)
CAUSAL = dataclasses.replace(SHAPE, attention="causal", logit_shift=True)
ROWS = np.array([[0, 1, 2, 0], [2, 2, 1, 0], [1, 0, 0, 2]], np.int32)
CLOSE = {"rtol": 2e-5, "atol": 2e-5}  # float32 networks run on differently shaped inputs


def streams(block_length):
    return dataclasses.replace(SHAPE, attention="two_stream", block_length=block_length)


def batch_of(tokens, noise=None, segments=None):
    tokens = np.asarray(tokens, np.int32)
    noise = np.ones(tokens.shape, bool) if noise is None else np.broadcast_to(noise, tokens.shape)
    positions = np.broadcast_to(np.arange(tokens.shape[1], dtype=np.int32), tokens.shape).copy()
    segments = np.ones(tokens.shape, np.int32) if segments is None else np.broadcast_to(segments, tokens.shape)
    return {"tokens": tokens, "attention_mask": segments, "positions": positions, "noise_mask": noise.copy(),
            "loss_mask": noise.copy()}


@functools.cache
def weights():
    return tiny.weights(CountObjective(SHAPE, PROCESS), seed=3)


@functools.partial(jax.jit, static_argnums=0)
def _logits(network, trainable, tokens, order):
    return api.apply(network, trainable["network"], tokens, order=order, raw=True).logits()


def log_probs(network, tokens, order=None):
    """[B, L, V] of a network on given rows, the mask suppressed."""
    logits = np.asarray(_logits(network, weights(), jnp.asarray(tokens, jnp.int32), order), np.float64)
    logits[..., MASK] = -np.inf
    return logits - np.logaddexp.reduce(logits, axis=-1, keepdims=True)


@functools.partial(jax.jit, static_argnums=0)
def loss_at(objective, trainable, batch, key, u):
    return objective.loss_at(trainable, batch, key, jnp.arange(len(u)), u)


def terms(objective, batch, seed=0, u=None):
    rows = len(batch["tokens"])
    u = np.full(rows, 0.5, np.float32) if u is None else u
    return np.asarray(loss_at(objective, weights(), batch, jax.random.key(seed), u).terms["diffusion"])


# Autoregressive -------------------------------------------------------------------------------------------------------


def test_autoregressive_is_the_chain_rule_prefix_by_prefix():
    """Each prefix run by itself, the mask before the first token."""
    found = terms(AutoregressiveObjective(CAUSAL, PROCESS), batch_of(ROWS))
    for i in range(LENGTH):
        prefix = np.concatenate([np.full((3, 1), MASK), ROWS[:, :i]], axis=1)
        expected = -log_probs(CAUSAL, prefix)[np.arange(3), -1, ROWS[:, i]]
        np.testing.assert_allclose(found[:, i], expected, **CLOSE)


def test_autoregressive_probabilities_of_all_rows_sum_to_one():
    every = np.array(list(itertools.product(range(3), repeat=LENGTH)))
    nats = terms(AutoregressiveObjective(CAUSAL, PROCESS), batch_of(every)).sum(1)
    assert abs(np.exp(-nats.astype(np.float64)).sum() - 1.0) < 1e-4


def test_autoregressive_documents_start_anew():
    """Two documents in a row cost what each costs alone; padding changes nothing and counts nothing."""
    objective = AutoregressiveObjective(CAUSAL, PROCESS)
    alone = terms(objective, batch_of(ROWS[:, :2]))
    packed = batch_of(np.concatenate([ROWS[:, :2], ROWS[:, :2]], axis=1), segments=[1, 1, 2, 2])
    packed["positions"] = np.broadcast_to(np.array([0, 1, 0, 1], np.int32), (3, 4)).copy()
    np.testing.assert_allclose(terms(objective, packed), np.tile(alone, (1, 2)), **CLOSE)
    for pad in (0, 2):
        padded = batch_of(np.concatenate([ROWS[:, :2], np.full((3, 2), pad)], axis=1), [True, True, False, False],
                          [1, 1, 0, 0])
        np.testing.assert_allclose(terms(objective, padded)[:, :2], alone, **CLOSE)
        assert (terms(objective, padded)[:, 2:] == 0).all()


@pytest.mark.parametrize("network", [SHAPE, dataclasses.replace(CAUSAL, logit_shift=False)])
def test_autoregressive_networks_that_see_or_miss_a_token_are_refused(network):
    with pytest.raises(ValueError, match="must be causal, with logit_shift"):
        AutoregressiveObjective(network, PROCESS)


# Block diffusion ------------------------------------------------------------------------------------------------------


def block_bound(row, size, noise):
    """The bound of one row by every mask of every block: a block-causal network on the clean past and the block."""
    causal = dataclasses.replace(SHAPE, attention="block_causal", block_length=size)
    total = np.zeros(LENGTH)
    for begin in range(0, LENGTH, size):
        where = [i for i in range(begin, begin + size) if noise[i]]
        for n in range(1, len(where) + 1):
            subsets = list(itertools.combinations(where, n))
            canvas = np.tile(row[: begin + size], (len(subsets), 1))
            for number, subset in enumerate(subsets):
                canvas[number, list(subset)] = MASK
            scores = log_probs(causal, canvas)
            for number, subset in enumerate(subsets):
                for i in subset:
                    total[i] -= scores[number, i, row[i]] / n / len(subsets)
    return total


@pytest.mark.parametrize("noise", [(True,) * 4, (False, True, True, True)], ids=["all", "prompt"])
@pytest.mark.parametrize("size", slow_unless([1, 2, 4], 1, 2))
def test_the_mean_over_noise_is_the_bound_of_every_mask(size, noise):
    """Statistics with 4 standard errors; blocks of one have no noise, and agree to rounding."""
    draws = 3000
    objective = BlockObjective(streams(size), PROCESS, coupling="stratified", half_head=False)
    batch = batch_of(np.repeat(ROWS[:1], draws, axis=0), noise)
    u = (np.arange(draws, dtype=np.float32) + 0.5) / draws
    found, expected = terms(objective, batch, u=u), block_bound(ROWS[0], size, noise)
    if size == 1:
        np.testing.assert_allclose(found, np.tile(expected, (draws, 1)), **CLOSE)
        assert objective.exact
    else:
        assert not objective.exact and found.std() > 0.1
        error = found.std(0) / draws**0.5
        assert (np.abs(found.mean(0) - expected) < 4 * error + 1e-4).all()
    assert (found[:, ~np.array(noise)] == 0).all()


def test_blocks_of_one_token_are_a_law_over_rows():
    every = np.array(list(itertools.product(range(3), repeat=LENGTH)))
    nats = terms(BlockObjective(streams(1), PROCESS, coupling="iid", half_head=False), batch_of(every)).sum(1)
    assert abs(np.exp(-nats.astype(np.float64)).sum() - 1.0) < 1e-4


@pytest.mark.parametrize("half_head", [False, True])
def test_one_block_is_the_masked_bound_draw_for_draw(half_head):
    batch = batch_of(np.tile(ROWS, (4, 1)), [False, True, True, True])
    u = np.array([0.1, 0.9, 0.4, 0.6, 0.25, 0.75] * 2, np.float32)
    whole = CountObjective(SHAPE, PROCESS, half_head=half_head)
    block = BlockObjective(streams(LENGTH), PROCESS, half_head=half_head)
    np.testing.assert_allclose(terms(block, batch, u=u), terms(whole, batch, u=u), **CLOSE)


@pytest.mark.parametrize("size", [1, 2, 4])
def test_half_and_full_head_agree_in_blocks(size):
    batch, u = batch_of(np.tile(ROWS, (4, 1))), np.array([0.1, 0.9, 0.4, 0.6, 0.25, 0.75] * 2, np.float32)
    half, full = (BlockObjective(streams(size), PROCESS, half_head=h) for h in (True, False))
    np.testing.assert_allclose(terms(half, batch, u=u), terms(full, batch, u=u), **CLOSE)
    assert half.head_positions(12, 4) == 6 * min(8, 4 // size * (size + 1)) and full.head_positions(12, 4) == 48


def test_the_noise_of_a_block_sees_no_later_token_and_no_noise_of_an_earlier_block():
    """The last block's tokens change nothing before it, and a block's loss depends on its own mask alone."""
    objective = BlockObjective(streams(2), PROCESS, coupling="stratified", half_head=False)
    u = np.full(3, 0.3, np.float32)
    other = ROWS.copy()
    other[:, 2:] = (other[:, 2:] + 1) % 3
    first, second = (terms(objective, batch_of(rows), u=u) for rows in (ROWS, other))
    np.testing.assert_array_equal(first[:, :2], second[:, :2])
    assert (first[:, 2:] != second[:, 2:]).any()
    prompt = terms(objective, batch_of(ROWS, [False, False, True, True]), u=u)  # block 0 shown clean in both streams
    np.testing.assert_allclose(prompt[:, 2:], first[:, 2:], **CLOSE)


def test_a_schedule_of_block_lengths_by_step():
    objective = BlockObjective(streams(2), PROCESS, sizes=((1, 3), (4, 2), (2, 0)))
    lengths = [objective.at(step).network.block_length for step in range(8)]
    assert lengths == [1, 1, 1, 4, 4, 2, 2, 2]
    assert objective.at(5) == objective.at(7) == BlockObjective(streams(2), PROCESS) and objective.at(0).exact
    shapes = [jax.eval_shape(objective.at(step).init, jax.random.key(0)) for step in (0, 3)]
    assert shapes[0] == shapes[1]
    flops = [objective.at(step).train_flops(2, 4) for step in (0, 3)]
    assert flops[1] < 0.7 * flops[0]  # one block needs no clean half


def test_blocks_that_do_not_divide_the_row_are_refused():
    with pytest.raises(ValueError, match="block_length=3: must divide the length 4"):
        terms(BlockObjective(streams(3), PROCESS), batch_of(ROWS))
    with pytest.raises(ValueError, match="must take two streams"):
        BlockObjective(SHAPE, PROCESS)


# Any order ------------------------------------------------------------------------------------------------------------


ANY_ORDER = AnyOrderObjective(streams(1), PROCESS)


@pytest.mark.parametrize("prompt", [0, 1])
def test_each_draw_of_any_order_is_the_exact_likelihood_of_one_order(prompt):
    """Rows are matched with the order, of all there are, whose token-by-token likelihood they give; all occur."""
    draws = 400
    noise = np.arange(LENGTH) >= prompt
    found = terms(ANY_ORDER, batch_of(np.repeat(ROWS[:1], draws, axis=0), noise))
    permuted = dataclasses.replace(SHAPE, attention="permutation")
    expected = []
    for order in itertools.permutations(range(prompt, LENGTH)):
        place = np.zeros((1, LENGTH), np.int32)
        place[0, list(order)] = 1 + np.arange(LENGTH - prompt)
        nats = np.zeros(LENGTH)
        for rank, i in enumerate(order):
            canvas = ROWS[:1].copy()
            canvas[0, list(order[rank:])] = MASK
            nats[i] = -log_probs(permuted, canvas, place)[0, i, ROWS[0, i]]
        expected.append(nats)
    distance = np.abs(found[:, None] - np.array(expected)[None]).max(-1)
    assert distance.min(1).max() < 2e-5
    seen = np.bincount(distance.argmin(1), minlength=len(expected))
    assert (np.abs(seen - draws / len(expected)) < 5 * (draws / len(expected)) ** 0.5).all()


def test_any_order_probabilities_of_all_rows_sum_to_one():
    """One key and one row index: one order, whatever the tokens."""
    every = np.array(list(itertools.product(range(3), repeat=LENGTH)))

    trainable = weights()

    @jax.jit
    def nats(row):
        batch = jax.tree.map(lambda x: jnp.asarray(x), batch_of(np.zeros((1, LENGTH)))) | {"tokens": row[None]}
        parts = ANY_ORDER.loss_at(trainable, batch, jax.random.key(5), jnp.arange(1), jnp.full(1, 0.5))
        return parts.terms["diffusion"].sum()

    total = sum(np.exp(-float(nats(jnp.asarray(row, jnp.int32)))) for row in every)
    assert abs(total - 1.0) < 1e-4


# Any subset -----------------------------------------------------------------------------------------------------------


def any_subset(low, high):
    return AnySubsetObjective(streams(1), PROCESS, low=low, high=high)


def subset_nats(row, targets):
    """[L] nats, 0 where nothing is counted: a plain forward of the permutation contract for each target."""
    permuted, order, nats = dataclasses.replace(SHAPE, attention="permutation"), np.zeros(LENGTH, np.int32), {}
    order[targets] = np.arange(1, len(targets) + 1)
    for rank, i in enumerate(targets):
        canvas = row.copy()
        canvas[targets[rank:]] = MASK
        nats[i] = -log_probs(permuted, canvas[None], order[None])[0, i, row[i]]
    return np.array([nats.get(i, 0.0) for i in range(LENGTH)])


def test_each_draw_of_any_subset_is_the_exact_likelihood_given_one_prompt():
    """Two prompt tokens of four: each of the six subsets occurs as often as the others, and is told by its zeros."""
    draws = 300
    found = terms(any_subset(0.5, 0.5), batch_of(np.repeat(ROWS[:1], draws, axis=0)))
    subsets = [np.array(targets) for targets in itertools.combinations(range(LENGTH), 2)]
    expected = np.array([subset_nats(ROWS[0], targets) for targets in subsets])
    match = ((found != 0)[:, None] == (expected != 0)).all(-1)
    assert (match.sum(1) == 1).all()
    np.testing.assert_allclose(found, expected[match.argmax(1)], **CLOSE)
    assert (np.abs(match.sum(0) - draws / 6) < 5 * (draws / 6) ** 0.5).all()


def test_the_order_is_that_of_a_plain_twin():
    rng = np.random.default_rng(2)
    noise = rng.random((500, 9)) < 0.8
    noise[:, 4] = True
    u = rng.random(500).astype(np.float32)
    keys = jax.random.split(jax.random.key(1), 500)
    order = np.asarray(any_subset(0.2, 1.0).order(keys, jnp.asarray(u), jnp.asarray(noise)))
    for ranks, touched, level in zip(order, noise, u, strict=True):
        number = touched.sum()
        prompt = min(int(np.float32(0.2) * number + 0.8 * level * number + 1e-6), number - 1)
        assert (ranks > 0).sum() == number - prompt and (ranks[~touched] == 0).all()
        assert ranks[ranks > 0].tolist() == list(range(1, number - prompt + 1))
    assert {tuple(row) for row in order[:, :3] > 0} == set(itertools.product([True, False], repeat=3))


def test_without_a_prompt_it_is_the_chain_rule_from_left_to_right():
    objective = any_subset(0.0, 0.0)
    found = terms(objective, batch_of(ROWS), u=np.array([0.1, 0.5, 0.99], np.float32))
    np.testing.assert_allclose(found, [subset_nats(row, np.arange(LENGTH)) for row in ROWS], **CLOSE)
    given = terms(objective, batch_of(ROWS, [False, True, True, True]))  # data's own prompt is given too
    np.testing.assert_allclose(given, [subset_nats(row, np.arange(1, LENGTH)) for row in ROWS], **CLOSE)
    assert objective.exact and not any_subset(0.0, 0.1).exact


def test_prompts_are_counted_neither_in_the_loss_nor_in_its_denominator():
    objective, data = any_subset(0.3, 1.0), batch_of(np.repeat(ROWS, 20, axis=0))
    u = np.linspace(0.01, 0.99, 60, dtype=np.float32)
    parts = objective.loss_at(weights(), data, jax.random.key(0), jnp.arange(60), jnp.asarray(u))
    counts = np.asarray(parts.row_counts())
    np.testing.assert_array_equal(counts, (np.asarray(parts.terms["diffusion"]) != 0).sum(1))
    assert set(counts) == {1, 2, 3}


def test_a_held_out_figure_is_a_token_that_was_counted():
    """Draws of one row may count different tokens; each costs a nat here."""
    def loss_at(params, batch, key, rows, u):
        del params, key, rows
        counted = jnp.arange(LENGTH) < jnp.ceil(u[:, None] * LENGTH)
        return LossParts.of(counted, diffusion=jnp.ones(batch["tokens"].shape))

    bound = held_out_bound(loss_at, None, padded_batches(batch_of(ROWS), 2), np.ones_like, draws=4)
    assert bound.nats_per_token == 1.0 and bound.nats_stderr == 0.0
    assert bound.tokens == bound.text_bytes == round(3 * (1 + 2 + 3 + 4) / 4)


@pytest.mark.parametrize(("low", "high"), [(-0.1, 0.5), (0.5, 0.4), (0.0, 1.1)])
def test_shares_that_cannot_be(low, high):
    with pytest.raises(ValueError, match=f"low={low}, high={high}: must be shares of a row"):
        any_subset(low, high)


# Which objective a run gets, and how it is measured -------------------------------------------------------------------


def built(train, model, devices=1, **sections):
    shape = {"layers": 1, "d_model": 16, "heads": 2, "d_ff": 32}
    config = tiny.run_config(train=train, model=shape | model, **sections)
    network, process = build_network(config, VOCAB), build_process(config, VOCAB, MASK)
    objective, notes = build_objective(config, network, process, devices)
    return config, objective, notes, build_bound(config, network, process, devices)


CAUSAL_MODEL = {"attention": "causal", "logit_shift": True, "dropout": 0.1}
BLOCK_MODEL = {"attention": "block_causal", "block_length": 4, "dropout": 0.1}


def test_an_autoregressive_run_is_measured_by_one_draw():
    config, objective, notes, bound = built({"objective": "autoregressive", "batch_size": 8}, CAUSAL_MODEL, 8)
    assert type(objective) is type(bound) is AutoregressiveObjective and notes == []
    assert bound.network.dropout == 0.0 and bound_draws(config, bound) == 1


@pytest.mark.parametrize(("train", "draws", "half", "measured_half"), [
    ({}, 4, True, True), ({}, 3, True, False), ({"batch_size": 1}, 2, False, True),
    ({"batch_size": 1, "each_twice": True}, 2, True, True),
])
def test_a_block_run(train, draws, half, measured_half):
    schedule = {"objective": "block", "block_schedule": "1:5,256:5,4"}
    config, objective, _, bound = built(schedule | train, BLOCK_MODEL, eval={"draws": draws})
    assert type(objective) is type(bound) is BlockObjective
    assert objective.sizes == ((1, 5), (256, 5), (4, 0)) and bound.sizes == ()
    assert (objective.half_head, bound.half_head) == (half, measured_half)
    assert objective.network.attention == "two_stream" and bound.network.block_length == 4
    assert bound_draws(config, bound) == draws and bound.network.dropout == 0.0


@pytest.mark.parametrize(("spec", "draws"), [("any_subset:0.1,0.6", 8), ("any_subset:0,0", 1)])
def test_an_any_subset_run_is_measured_by_its_own_prompts(spec, draws):
    model = {"attention": "permutation", "dropout": 0.1}
    config, objective, notes, bound = built({"objective": spec}, model, eval={"draws": 8})
    assert type(objective) is type(bound) is AnySubsetObjective and notes == [] and objective.coupling == "iid"
    assert (objective.low, objective.high) == (bound.low, bound.high) and bound.network.dropout == 0.0
    assert bound_draws(config, bound) == draws and objective.network.attention == "two_stream"


def test_blocks_of_one_are_measured_by_one_draw_and_edits_by_the_masked_bound():
    config, _, _, bound = built({"objective": "block"}, BLOCK_MODEL | {"block_length": 1})
    assert bound_draws(config, bound) == 1 and bound.coupling == "stratified" and not bound.half_head
    _, objective, _, bound = built({"objective": "draft_edit:0.2,0.5,3"}, {})
    assert (objective.edit_rate, objective.edit_weight, objective.turns) == (0.2, 0.5, 3)
    assert type(bound) is CountObjective


@pytest.mark.parametrize("kind", slow_unless(["autoregressive", "block_of_one"], "block_of_one"))
def test_exact_held_out_figures_are_the_likelihood_of_the_rows(kind):
    """Through `held_out_bound`, as launch.train measures: no error but that of which rows there are."""
    if kind == "autoregressive":
        bound = AutoregressiveObjective(CAUSAL, PROCESS)
    else:
        bound = BlockObjective(streams(1), PROCESS, coupling="stratified", half_head=False)
    batch = batch_of(np.tile(ROWS, (3, 1)))
    found = held_out_bound(bound.loss_at, weights(), padded_batches(batch, 4), lambda ids: np.ones_like(ids), draws=1,
                           end_terms=bound.end_terms)
    expected = terms(bound, batch_of(ROWS)).sum() / ROWS.size
    assert found.nats_per_token == pytest.approx(expected, rel=1e-5) and found.rows == 9
