"""Approximate caches and their refreshes: exact where nothing is left out, rows on their own, and what is refused."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mdlm_jax.models import api
from mdlm_jax.models.config import TransformerConfig
from mdlm_jax.models.denoise import Denoiser
from mdlm_jax.sampling import caching
from mdlm_jax.sampling.caching import Caching
from mdlm_jax.sampling.canvas import Canvas, canvas
from mdlm_jax.sampling.decoder import best_first
from mdlm_jax.sampling.draft_edit import DraftEdit
from mdlm_jax.sampling.fed import wanted
from mdlm_jax.sampling.joint_threshold import JointThreshold
from mdlm_jax.sampling.loop import decode
from mdlm_jax.sampling.low_confidence import LowConfidence
from mdlm_jax.sampling.smoothing import Smoothed
from mdlm_jax.sampling.state import Scattered
from mdlm_jax.sampling.threshold import Threshold
from mdlm_jax.sampling.windows import lay_out
from tests.marks import slow_unless
from tests.sampling.looks import look_of
from tests.sampling.recorder import Recorder

VOCAB, MASK, ROWS, LENGTH, BLOCK, STEPS = 13, 11, 4, 20, 8, 10
NETWORK = TransformerConfig(VOCAB, VOCAB, layers=2, d_model=16, heads=2, kv_heads=2, d_ff=32, learned_positions=256)
# By its positions no two masks look alike; of one layer what is stored would not depend on the other tokens.
MODEL = Denoiser(NETWORK)
SURE = LowConfidence(MASK, temperature=0.7)
RANDOM = LowConfidence(MASK, temperature=0.7, remasking="random")


@functools.cache
def params() -> dict:
    found = api.init(NETWORK, jax.random.key(3))
    return found | {"head": found["head"] * 25}


def smoothed(**fields) -> Smoothed:
    return Smoothed(MASK, embedding=params()["embedding"], **fields)


def given() -> Canvas:
    """Prompts of 4, 2, 0 and 1 tokens, something given further on, padding behind: two blocks in every row."""
    editable, segment = np.ones((ROWS, LENGTH), bool), np.ones((ROWS, LENGTH), np.int32)
    start = np.array([4, 2, 0, 1])
    editable[np.arange(LENGTH) < start[:, None]] = editable[1, 7] = False
    end = start + 2 * BLOCK - np.array([0, 0, 0, 3])
    outside = np.arange(LENGTH) >= end[:, None]
    editable[outside], segment[outside] = False, 0
    tokens = np.random.default_rng(0).integers(0, MASK, editable.shape)
    return canvas(np.where(editable, MASK, tokens), editable, segment=segment, start=start)


def run(decoder, cache: str, rows: Canvas | None = None, model=MODEL, **options):
    told = {"steps": STEPS, "block_length": BLOCK, "seed": 5} | options
    return decode(model, params(), given() if rows is None else rows, decoder, cache=cache, **told)


def assert_same(found, expected, index=slice(None)) -> None:
    for field in ("tokens", "order", "forwards"):
        np.testing.assert_array_equal(getattr(found, field), np.asarray(getattr(expected, field))[index], field)


# Names ----------------------------------------------------------------------------------------------------------------


def test_names_and_numbers():
    assert caching.parse("none") == Caching("none") and caching.parse("dual:3") == Caching("dual", refresh=3)
    assert caching.parse("vicinity:1,2") == Caching("vicinity", back=1, ahead=2, warmup=4)
    assert caching.parse("vicinity:1,2,3,5") == Caching("vicinity", back=1, ahead=2, warmup=3, refresh=5)
    assert caching.parse("dkv_decode:4") == Caching("dkv_decode", first=2, refresh=4)
    assert caching.parse("dkv_greedy:4") == Caching("dkv_greedy", refresh=4, window=4)
    assert [form.partition("[")[0] for form in caching.FORMS] == list(caching.CACHES)
    assert "vicinity[:BACK,AHEAD,WARMUP,REFRESH]" in caching.FORMS


@pytest.mark.parametrize(("spec", "said"), [
    ("kv", "cache='kv': choose one of none, prefix"),
    ("block:4", "cache='block:4': block takes no numbers"),
    ("dual:1,2", "cache='dual:1,2': dual takes refresh"),
    ("dual:-1", "'-1' must be a whole number of at least 0, as in 'dual:0'"),
    ("vicinity:1.5", "'1.5' must be a whole number"),
    ("vicinity:", "'' must be a whole number"),
])
def test_wrong_names_and_numbers(spec, said):
    with pytest.raises(ValueError, match=said):
        run(SURE, spec)


# Nothing left out -----------------------------------------------------------------------------------------------------


EXACT = [("dual:1", SURE), ("prefix:1", SURE), ("vicinity:99,99,0", SURE), ("vicinity:0,0,9,1", SURE),
         ("dkv_decode:1", SURE), ("dkv_greedy:1,0", RANDOM), ("vicinity:99,99,0", "smoothed"), ("dual:1", "smoothed")]


@functools.cache
def exact(decoder):
    return run(smoothed() if decoder == "smoothed" else decoder, "none")


@pytest.mark.parametrize(("cache", "decoder"), slow_unless(EXACT, *EXACT[2:6:3]))
def test_exact_where_nothing_is_left_out(cache, decoder):
    found = run(smoothed() if decoder == "smoothed" else decoder, cache)
    assert_same(found, exact(decoder))
    assert found.calls == exact(decoder).calls


def test_what_is_left_out_is_missed():
    """The network of these tests is no network for which every cache is exact."""
    found = [[np.asarray(run(SURE, cache, seed=seed).order) for seed in range(3)]
             for cache in ("none", "vicinity:1,1,0")]
    assert (np.stack(found[0]) != np.stack(found[1])).any()


@pytest.mark.slow
def test_the_vicinity_of_nothing_is_the_dual_cache():
    assert_same(run(SURE, "vicinity:0,0,0"), run(SURE, "dual"))


# What is run ----------------------------------------------------------------------------------------------------------


def twin(cache: str, rows: Canvas, trace: np.ndarray) -> list[list[list[int]]]:
    """The positions that every forward runs on, [forwards][rows], from the rule and the canvases before each."""
    told, start, real = caching.parse(cache), np.asarray(rows.start), np.asarray(rows.segment) > 0
    found, number, step = [], 0, 0
    for before, last in zip(trace[:-1], [trace[0], *trace], strict=False):
        low = start + number * BLOCK
        inside = (np.arange(LENGTH) >= low[:, None]) & (np.arange(LENGTH) < (low + BLOCK)[:, None])
        if not (inside & (before == MASK) & np.asarray(rows.editable)).any():
            number, step = number + 1, 0
            low = low + BLOCK
        first = told.first + told.warmup * (number == 0)
        if step < first or told.refresh and step % told.refresh == 0:
            run_on = np.ones((ROWS, LENGTH), bool)
        elif told.name == "dkv_decode":
            run_on = (last == MASK) & np.asarray(rows.editable)
        else:
            begin = np.maximum(low - told.back, 0)[:, None]
            run_on = (np.arange(LENGTH) >= begin) & (np.arange(LENGTH) < begin + BLOCK + told.back + told.ahead)
        found.append([np.flatnonzero(row).tolist() for row in run_on & real])
        step += 1
    return found


@pytest.mark.parametrize("cache", slow_unless(
    ["vicinity:2,1,1,3", "vicinity:0,3,0", "dkv_decode:3", "dkv_decode:0", "dual:2"], "vicinity:2,1,1,3",
    "dkv_decode:3"))
def test_what_every_forward_runs_on(cache):
    """Rows in step, so that the last canvas of each is its own."""
    seen = Recorder(MODEL)
    found = run(SURE, cache, model=seen, trace=True)
    expected = twin(cache, given(), found.trace)
    assert len(seen.forwards) == len(expected) == found.calls
    for forward, rows in zip(seen.forwards, expected, strict=True):
        going = [row for row, places in enumerate(rows) if places]
        assert [forward.positions[row].tolist() for row in going] == [rows[row] for row in going]


def test_the_masks_around_what_is_to_be_written():
    """By a walk: left, right, further left, ... from one target after the other."""
    rng = np.random.default_rng(4)
    for seed in range(40):
        masked = rng.random((1, LENGTH)) < 0.6
        masked[:, 5] = True
        block, count, window = slice(4, 12), int(rng.integers(1, 4)), int(rng.integers(0, 4))
        rows = canvas(np.where(masked, MASK, 0), np.ones((1, LENGTH), bool), start=np.array([0]))
        inside = look_of(np.where(masked, MASK, 0)[:, block], MASK, steps=1, seed=seed, canvas=rows)
        look = dataclasses.replace(inside, index=inside.index + 4)
        rule = _Counted(MASK, remasking="random", count=count)
        order = np.full((1, LENGTH), -1)
        order[0, 13] = 6
        now = _Now(rows, jnp.asarray(order), jnp.array([7]))
        found = np.asarray(wanted(rule, now, look, Scattered(LENGTH, 3, window)))[0]
        scores = best_first(rule.lots(look), look.masked)[0]
        targets = [int(x) + 4 for x in scores[: min(count, int(masked[0, block].sum()))]]
        taken = {13, *targets}
        for at in targets:
            taken |= set(walk(at, window, masked[0], taken))
        assert np.flatnonzero(found).tolist() == sorted(taken)


def walk(at: int, window: int, masked: np.ndarray, taken: set[int]) -> list[int]:
    found = []
    for away in range(1, LENGTH):
        for place in (at - away, at + away):
            if len(found) < window and 0 <= place < LENGTH and masked[place] and place not in taken:
                found.append(place)
    return found


@dataclasses.dataclass(frozen=True)
class _Counted(LowConfidence):
    count: int = 1

    def foreseen(self, look):
        return self.lots(look), jnp.array([self.count])


@dataclasses.dataclass(frozen=True)
class _Now:
    canvas: Canvas
    order: jax.Array
    updates: jax.Array


# Rows -----------------------------------------------------------------------------------------------------------------


ALONE = [("vicinity:2,1,1,3", SURE), ("dual:2", SURE), ("prefix:2", SURE), ("dkv_decode:3", SURE),
         ("dkv_greedy:3,2", RANDOM), ("dkv_decode:3", Threshold(MASK, threshold=0.5)), ("none", "smoothed"),
         ("vicinity:2,1,1,3", "smoothed")]


@pytest.mark.parametrize(("cache", "decoder"), slow_unless(ALONE, ("dkv_greedy:3,2", RANDOM),
                                                           ("vicinity:2,1,1,3", "smoothed")))
def test_rows_alone_driven_by_python_are_those_of_a_compiled_batch(cache, decoder):
    rule = smoothed(threshold=0.5) if decoder == "smoothed" else decoder
    rows, steps = given(), 16
    whole = run(rule, cache, steps=steps)
    for row in range(ROWS):
        index = slice(row, row + 1)
        alone = jax.tree.map(lambda x, index=index: x[index], rows)
        assert_same(run(rule, cache, alone, steps=steps, trace=True), whole, index)
    fixed, tokens = ~np.asarray(rows.editable), np.asarray(whole.tokens)
    np.testing.assert_array_equal(tokens[fixed], np.asarray(rows.tokens)[fixed])
    assert (tokens[~fixed] != MASK).all()


def test_a_block_as_long_as_the_canvas_begins_behind_the_prompt():
    tokens = np.where(np.arange(12) < 5, 3, MASK)[None]
    rows = canvas(tokens, tokens == MASK, start=np.array([5]))
    found = [run(LowConfidence(MASK), "none", rows, block_length=length, steps=7).tokens for length in (7, 12)]
    np.testing.assert_array_equal(*found)


# Refused --------------------------------------------------------------------------------------------------------------


SHIFTED = Denoiser(dataclasses.replace(NETWORK, logit_shift=True))
BLOCKS = Denoiser(dataclasses.replace(NETWORK, attention="block_causal", block_length=BLOCK))


@pytest.mark.parametrize(("decoder", "cache", "model", "said"), [
    (SURE, "vicinity", BLOCKS, "cache='vicinity': is for bidirectional networks, and this one is block_causal"),
    (SURE, "dkv_decode:4", BLOCKS, "cache='dkv_decode:4': is for bidirectional networks"),
    (SURE, "vicinity", SHIFTED, "cache='vicinity': is for networks whose row i scores token i"),
    (RANDOM, "dkv_greedy", SHIFTED, "cache='dkv_greedy': is for networks whose row i scores token i"),
    (SURE, "dkv_greedy", MODEL, "LowConfidence tells that only after the forward; use low_confidence with remasking"),
    (JointThreshold(MASK), "dkv_decode", MODEL, "JointThreshold reads, or writes, tokens that are no masks"),
    (DraftEdit(MASK, 0.4), "dkv_decode", MODEL, "DraftEdit reads, or writes, tokens that are no masks"),
    (LowConfidence(MASK, reference=True), "vicinity", MODEL, "LowConfidence looks beyond the block"),
    ("smoothed", "block", BLOCKS, "cache='block': the masks of later blocks are made softer"),
    ("smoothed", "dual", SHIFTED, "cache='dual': a window of a shifted network does not score its first token"),
])
def test_refusals(decoder, cache, model, said):
    rule = smoothed() if decoder == "smoothed" else decoder
    with pytest.raises(ValueError, match=said):
        run(rule, cache, model=model, steps=12 if rule.reads_steps else None)


def test_refusals_of_smoothing():
    with pytest.raises(ValueError, match="guidance=1.0: masks are made softer by one law"):
        run(smoothed(), "none", guidance=1.0)
    with pytest.raises(ValueError, match="embedding=None: Smoothed needs the network's table"):
        Smoothed(MASK)
    for field, value in (("weight", 1.5), ("weight_start", -0.1), ("weight_growth", -1.0), ("threshold_decay", -1.0)):
        with pytest.raises(ValueError, match=f"{field}={value}: must"):
            smoothed(**{field: value})
    with pytest.raises(ValueError, match="embedding: has 9 rows, and the head scores 13 ids"):
        run(Smoothed(MASK, embedding=params()["embedding"][:9]), "none")


def test_windows_of_few_lengths():
    """Places of the scattered tokens: no more lengths than prefix windows have, and never more than the canvas."""
    rows = canvas(np.full((1, 96), MASK), np.ones((1, 96), bool))
    layout = lay_out(MODEL, rows, SURE, block_length=4, cache="dkv_decode", guided=False)
    lengths = [layout.program(number).inner.length for number in range(layout.blocks)]
    assert len(set(lengths)) <= 8 and all(96 - 4 * n <= size <= 96 for n, size in enumerate(lengths))
    greedy = dataclasses.replace(layout, cache="dkv_greedy:2,3", quota=2)
    assert greedy.program(3).inner == Scattered(10, 2, 3)
