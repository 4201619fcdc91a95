"""LLaDA2.2's decoder: a serving engine's steps, a plain Python twin of the rule, and what may move."""

import dataclasses
import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mdlm_jax.core import levenshtein as script
from mdlm_jax.core.prediction import Prediction
from mdlm_jax.core.process import Process
from mdlm_jax.errors import ConfigError
from mdlm_jax.generation import options
from mdlm_jax.language_model import LanguageModel
from mdlm_jax.models import api
from mdlm_jax.models.config import TransformerConfig
from mdlm_jax.models.denoise import Denoiser
from mdlm_jax.models.hf.rules import Description
from mdlm_jax.sampling.canvas import Canvas, canvas
from mdlm_jax.sampling.levenshtein import Levenshtein
from mdlm_jax.sampling.loop import decode
from tests.models.hf.support import GOLDEN
from tests.sampling.indel_twin import Twin
from tests.sampling.looks import look_of

STEPS = np.load(GOLDEN / "sglang_indel.npz")
SERVED = {  # threshold, edit_threshold, max_post_steps; forwards without an effect at the end, which store keys
    "basic": (0.5, 0.3, 6, 1), "mask_fallback": (0.6, 0.4, 5, 1), "antiloop": (0.5, 0.0, 8, 1),
    "converges": (0.5, 0.6, 16, 0),
}
update = jax.jit(lambda rule, logits, look, state: rule.update(Prediction.from_logits(logits), look, state))


def run(rule, block, logits, editable):
    """The block [W] after every step, and whose masks are first, until the rule is done with it; logits [S, W, V]."""
    block, editable = np.asarray(block)[None], np.asarray(editable)[None]
    look = look_of(block, rule.mask_id, steps=1, editable=editable)
    state = rule.begin(look, None)
    for step, now in enumerate(logits):
        look = look_of(block, rule.mask_id, steps=1, step=step, editable=editable)
        move, state = update(rule, jnp.asarray(now)[None], look, state)
        block = np.where(move.write & editable, move.tokens, block)
        yield block[0], np.asarray(state["first"])[0]
        if bool(rule.done(look, state)[0]):
            return


@pytest.mark.parametrize("name", SERVED)
def test_the_steps_of_a_serving_engine(name):
    """SGLang's step function on recorded logits: a prompt of 2 in a block of 8."""
    *numbers, idle = SERVED[name]
    states, first, logits = (STEPS[f"{name}_{what}"] for what in ("states", "is_orig_mask", "logits"))
    found = list(run(Levenshtein(19, 18, 17, *numbers), states[0], logits, np.arange(8) >= 2))
    assert len(found) == len(logits) - idle
    np.testing.assert_array_equal([block for block, _ in found], states[1 : len(found) + 1])
    np.testing.assert_array_equal([masks for _, masks in found], first[1 : len(found) + 1])
    assert (states[len(found) :] == states[len(found)]).all()


# The rule -------------------------------------------------------------------------------------------------------------

MASK, DELETE, INSERT, VOCAB, WIDTH, ROWS = 6, 7, 8, 9, 6, 160
RULE = Levenshtein(MASK, DELETE, INSERT, threshold=0.3, edit_threshold=0.2, max_post_steps=4)
PATTERNS = np.array([[1, 1, 1, 1, 1, 1], [0, 0, 1, 1, 1, 1], [0, 1, 1, 1, 0, 0], [1, 1, 0, 1, 1, 1],
                     [0, 1, 0, 1, 0, 1], [0, 0, 0, 0, 0, 1], [1, 1, 1, 1, 0, 0], [0, 0, 0, 0, 0, 0]], bool)
EDITABLE = PATTERNS[np.arange(ROWS) % len(PATTERNS)]
MOVES = np.isin(np.arange(ROWS) % len(PATTERNS), (0, 1, 2, 5, 6))


def blocks_and_network(seed):
    """Blocks [B, W], and logits [B, W, V] by the block alone, so that a block that comes again is a loop."""
    rng = np.random.default_rng(seed)
    own, left, place = (rng.normal(size=(n, VOCAB)) * 1.5 for n in (VOCAB, VOCAB, WIDTH))
    block = np.where(EDITABLE, MASK, rng.integers(0, VOCAB, EDITABLE.shape))
    started = rng.random(EDITABLE.shape) < 0.2
    return np.where(EDITABLE & started, rng.integers(0, MASK, EDITABLE.shape), block), lambda block: (
        own[block] + left[np.roll(block, 1, axis=1)] + place).astype(np.float32)


@pytest.fixture(scope="module")
def compared():
    """How often each branch was taken, while every step was that of the twin."""
    found = dict.fromkeys(("steps", "loops", "deletions", "insertions", "cleanups"), 0)
    for seed in range(4):
        compare(RULE, *blocks_and_network(seed), found)
    return found


def kept(rows, old, new):
    return np.where(rows.reshape(rows.shape + (1,) * (new.ndim - 1)), old, new)


def compare(rule, block, network, found):
    twins = [Twin(rule.mask_id, rule.delete_id, rule.insert_id, rule.threshold, rule.edit_threshold,
                  rule.max_post_steps, editable, bool(moves)) for editable, moves in zip(EDITABLE, MOVES, strict=True)]
    state = rule.begin(look_of(block, MASK, steps=1, editable=EDITABLE), None)
    done, start = ~EDITABLE.any(1), block
    for step in range(rule.limit(1, WIDTH)):
        logits = network(block)
        look = look_of(block, MASK, steps=1, step=step, editable=EDITABLE & ~done[:, None])
        move, new = update(rule, jnp.asarray(logits), look, state)
        state = jax.tree.map(functools.partial(kept, done), state, new)
        after = np.where(move.write & look.editable, move.tokens, block)
        for row in np.flatnonzero(~done):
            again = tuple(block[row].tolist()) in twins[row].seen
            np.testing.assert_array_equal(after[row], twins[row].step(block[row], logits[row]), f"{step} {row}")
            found["steps"] += 1
            found["loops"] += again
            given = state["given"][row, step]
            found["deletions"] += DELETE in given
            found["insertions"] += INSERT in given
            assert MOVES[row] or not np.isin(given, rule.edits).any()
            assert bool(rule.done(look, state)[row]) == twins[row].finished
            found["cleanups"] += twins[row].finished and step + 1 > rule.max_post_steps
        block, done = after, done | np.asarray(rule.done(look, state))
    assert done.all() and (block[EDITABLE] < MASK).all()
    np.testing.assert_array_equal(block[~EDITABLE], start[~EDITABLE])


def test_every_step_is_that_of_the_twin(compared):
    assert min(compared.values()) > 50, compared


def test_what_stands_between_given_tokens_is_only_replaced():
    """Where the network says nothing but delete and insert, other tokens are taken there, and stay."""
    logits = np.tile(np.arange(VOCAB, dtype=np.float32), (WIDTH, 1))
    for editable, moves in zip(PATTERNS[:7], MOVES[:7], strict=True):
        blocks = [block for block, _ in run(RULE, np.where(editable, MASK, 1), [logits] * 11, editable)]
        assert (blocks[-1][editable] == MASK - 1).all() and (blocks[-1][~editable] == 1).all()
        assert moves or all((new[old < MASK] == old[old < MASK]).all() for old, new in itertools.pairwise(blocks))


def test_edits_are_those_of_the_labels_that_train_it():
    """Every draft on its way to every target, and after any labels."""
    rng = np.random.default_rng(0)
    drafts, targets = rng.integers(0, MASK + 1, (ROWS, WIDTH)), rng.integers(0, MASK, (ROWS, WIDTH))
    drafts[: ROWS // 2] = np.where(rng.random((ROWS // 2, WIDTH)) < 0.7, targets[: ROWS // 2], drafts[: ROWS // 2])
    ids = {"mask_id": MASK, "delete_id": DELETE, "insert_id": INSERT}
    one = functools.partial(script.labels, **ids, wildcard=True)
    labels = np.asarray(jax.vmap(one)(jnp.asarray(drafts), jnp.asarray(targets)))
    for marks in (labels, rng.integers(0, VOCAB, drafts.shape)):
        look, everywhere = look_of(drafts, MASK, steps=1), jnp.ones(drafts.shape, bool)
        after, _ = RULE._rebuilt(look, everywhere, jnp.asarray(marks), everywhere)
        applied = jax.vmap(functools.partial(script.apply_labels, **ids))(jnp.asarray(drafts), jnp.asarray(marks))
        np.testing.assert_array_equal(after, applied)
        for row in range(ROWS):
            twin = Twin(MASK, DELETE, INSERT, 0, 0, 1, np.ones(WIDTH, bool))
            twin.original = [False] * WIDTH
            np.testing.assert_array_equal(after[row], twin.rebuilt(drafts[row], set(range(WIDTH)), marks[row]))


def test_a_network_that_knows_the_labels_arrives():
    """Drafts with surplus and missing tokens become their targets; round after round the labels are made anew."""
    rng = np.random.default_rng(1)
    for _ in range(20):
        target = rng.permutation(MASK)
        draft = np.insert(np.delete(target, rng.integers(WIDTH)), rng.integers(WIDTH), rng.integers(0, MASK))
        now = [draft]
        for block, _ in run(RULE, draft, (label_logits(now[-1], target) for _ in range(12)), np.ones(WIDTH, bool)):
            now.append(block)
        np.testing.assert_array_equal(now[-1], target)


def label_logits(block, target):
    ids = {"mask_id": MASK, "delete_id": DELETE, "insert_id": INSERT}
    found = find_labels(jnp.asarray(block), jnp.asarray(target), tuple(ids.items()))
    return 20.0 * np.eye(VOCAB, dtype=np.float32)[np.asarray(found)]


@functools.partial(jax.jit, static_argnums=2)
def find_labels(block, target, ids):
    return script.labels(block, target, **dict(ids), wildcard=True)


# The loop -------------------------------------------------------------------------------------------------------------

NETWORK = TransformerConfig(VOCAB - 2, VOCAB, layers=1, d_model=16, heads=2, kv_heads=2, d_ff=32,
                            attention="block_causal", block_length=4)  # two columns beyond the ids


@functools.cache
def weights(network=NETWORK):
    params = api.init(network, jax.random.key(7))
    return params | {"embedding": params["embedding"] * 20.0, "head": params["head"] * 30.0}


def prompted() -> Canvas:
    """No prompt, one of 3 (inside a block), one of 5, and one of 2 with a token given further on."""
    tokens, editable = np.full((4, 14), MASK, np.int32), np.ones((4, 14), bool)
    editable[1, :3] = editable[2, :5] = editable[3, :2] = editable[3, 6] = False
    return canvas(np.where(editable, tokens, 1), editable)


@pytest.mark.parametrize("cache", ["none", "block"])
def test_orders_traces_and_caches_follow_what_moves(cache):
    """The order of a position is the last step that changed it, whatever moved there."""
    rule = Levenshtein(MASK, DELETE, INSERT, threshold=0.2, max_post_steps=5)
    found = decode(Denoiser(NETWORK), weights(), prompted(), rule, block_length=4, cache=cache, trace=True)
    plain = decode(Denoiser(NETWORK), weights(), prompted(), rule, block_length=4)
    trace, editable = found.trace, np.asarray(prompted().editable)
    for name in ("tokens", "order", "forwards"):
        np.testing.assert_array_equal(getattr(found, name), getattr(plain, name), name)
    assert (trace[:, ~editable] == 1).all() and trace.max() == MASK and (trace[-1] < MASK).all()
    shrunk = (np.diff((trace == MASK).sum(-1), axis=0) > 0).any(0)
    assert shrunk.all()  # every row lost tokens on its way
    for row in range(4):
        one = jax.tree.map(lambda x, row=row: x[row : row + 1], prompted())
        alone = decode(Denoiser(NETWORK), weights(), one, rule, block_length=4, trace=True)
        changed = alone.trace[1:, 0] != alone.trace[:-1, 0]
        last = np.where(changed.any(0), len(changed) - 1 - changed[::-1].argmax(0), -1)
        np.testing.assert_array_equal(found.order[row], last)


def test_another_threshold_is_the_same_program():
    rules = [Levenshtein(MASK, DELETE, INSERT, threshold=threshold) for threshold in (0.2, 0.9)]
    assert jax.tree.structure(rules[0]) == jax.tree.structure(rules[1]) and len(jax.tree.leaves(rules[0])) == 3


def model_of(**fields) -> LanguageModel:
    """A head with a column between the ids and those of delete and insert."""
    network = dataclasses.replace(NETWORK, head_size=VOCAB + 1)
    described = Description(network, "", mask_id=MASK, max_length=64, **fields)
    return LanguageModel(weights(network), described, Process(VOCAB - 2, MASK))


def test_a_model_gives_its_columns():
    """The column between is never drawn, suppressed ids neither, and none but ids are written."""
    model = model_of(delete_id=VOCAB - 1, insert_id=VOCAB)
    found = model.generate([[1, 2], [3], [1, 1, 1, 1]], new_tokens=8, decoder="levenshtein", trace=True, suppress=[4])
    for one in found:
        assert one.trace.max() == MASK and one.tokens.max() < MASK and not (one.tokens == 4).any()
    sampler = options.sampler(model, *options.split({"decoder": "levenshtein"}))
    assert sampler.denoise.columns == VOCAB + 1
    np.testing.assert_array_equal(sampler.bias, [0.0] * 7 + [-np.inf, 0.0, 0.0])
    other = options.sampler(model, *options.split({"decoder": "joint_threshold"}))
    assert other.denoise.columns == VOCAB - 2 and other.bias is None
    with pytest.raises(ConfigError, match="suppress=8: must be an id of the head, 0..6"):
        model.generate([[1]], new_tokens=8, decoder="levenshtein", suppress=[8])


def test_a_model_without_them_is_refused():
    with pytest.raises(ConfigError, match="delete_id=None: Levenshtein needs a network that says delete"):
        model_of().generate([[1]], new_tokens=8, decoder="levenshtein")
    for model in (Denoiser(NETWORK, VOCAB - 2), Denoiser(dataclasses.replace(NETWORK, head_size=VOCAB - 2))):
        with pytest.raises(ValueError, match="delete_id=7, insert_id=8: the network has 7 columns"):
            decode(model, weights(), prompted(), RULE, block_length=4)


@pytest.mark.parametrize("fields, message", [
    ({"delete_id": MASK}, "mask_id=6, delete_id=6, insert_id=8: must be three columns"),
    ({"insert_id": DELETE}, "must be three columns"),
    ({"insert_id": -1}, "insert_id=-1: must be a column of the head"),
    ({"insert_id": None}, "insert_id=None: Levenshtein needs a network"),
    ({"threshold": 1.5}, r"threshold=1.5: must lie in \[0, 1\]"),
    ({"edit_threshold": -0.1}, "edit_threshold=-0.1"),
    ({"max_post_steps": -1}, "max_post_steps=-1: must be a whole number"),
    ({"max_post_steps": 1.5}, "max_post_steps=1.5: must be a whole number"),
    ({"temperature": -1.0}, "temperature=-1.0: must be 0"),
])
def test_errors(fields, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(RULE, **fields)
