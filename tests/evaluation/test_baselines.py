"""The baseline codes against slow plain-Python twins, and as proper codes."""

import collections
import itertools
import math
import shutil
import subprocess

import numpy as np
import pytest

from mdlm_jax.evaluation import baselines
from mdlm_jax.evaluation.baselines import (
    WittenBell,
    kt_unigram,
    token_bigram_bits,
    token_unigram_bits,
    unigram_bits,
    witten_bell_bigram_bits,
    xz_bits,
)

TRAIN = b"the cat sat on the mat; the bat sat on the cat. " * 3 + bytes(range(0, 256, 7))
VALID = b"a bat, the cat and the rat sat on \xff\xfe that mat" + b"\x00\x01zz"


def slow_unigram(train, vocab_size):
    return {c: (train.count(c) + 0.5) / (len(train) + 0.5 * vocab_size) for c in range(vocab_size)}


def slow_bigram_bits(train, valid, vocab_size):
    """Bits of `valid`, one symbol at a time from dictionaries, by the equation of the module."""
    train, valid = list(train), list(valid)
    unigram, following = slow_unigram(train, vocab_size), collections.defaultdict(collections.Counter)
    for h, c in itertools.pairwise(train):
        following[h][c] += 1
    bits = -math.log2(unigram[valid[0]])
    for h, c in itertools.pairwise(valid):
        p = unigram[c]
        if h in following:
            types = len(following[h])
            p = (following[h][c] + types * p) / (following[h].total() + types)
        bits -= math.log2(p)
    return bits


def test_byte_codes_match_their_slow_twins():
    unigram = slow_unigram(TRAIN, 256)
    expected = -sum(math.log2(unigram[c]) for c in VALID) / len(VALID)
    np.testing.assert_allclose(unigram_bits(TRAIN, VALID), expected, rtol=1e-12)
    expected = slow_bigram_bits(TRAIN, VALID, 256) / len(VALID)
    np.testing.assert_allclose(witten_bell_bigram_bits(TRAIN, VALID), expected, rtol=1e-12)
    assert witten_bell_bigram_bits(TRAIN, VALID) < unigram_bits(TRAIN, VALID) < 8.5


@pytest.mark.parametrize("vocab_size", [40, 5000])  # pairs counted in a table, and by sorting
@pytest.mark.parametrize("chunk", [7, 1 << 22])
def test_token_codes_match_their_slow_twins(vocab_size, chunk, monkeypatch):
    monkeypatch.setattr(baselines, "_CHUNK", chunk)
    assert (vocab_size**2 > baselines._DENSE_PAIRS) == (vocab_size == 5000)
    rng = np.random.default_rng(0)
    train = (rng.zipf(1.5, 700) % vocab_size).astype(np.int32)
    valid = (rng.zipf(1.5, 300) % vocab_size).astype(np.uint16)
    unigram = slow_unigram(train.tolist(), vocab_size)
    expected = -sum(math.log2(unigram[c]) for c in valid.tolist()) / 999
    np.testing.assert_allclose(token_unigram_bits(train, valid, vocab_size, 999), expected, rtol=1e-12)
    expected = slow_bigram_bits(train.tolist(), valid.tolist(), vocab_size) / 999
    np.testing.assert_allclose(token_bigram_bits(train, valid, vocab_size, 999), expected, rtol=1e-12)


def test_bytes_as_tokens_cost_the_same():
    train, valid = np.frombuffer(TRAIN, np.uint8), np.frombuffer(VALID, np.uint8)
    assert token_unigram_bits(train, valid, 256, len(VALID)) == unigram_bits(TRAIN, VALID)
    assert token_bigram_bits(train, valid, 256, len(VALID)) == witten_bell_bigram_bits(TRAIN, VALID)
    np.testing.assert_allclose(
        token_bigram_bits(train, valid, 256, 1), len(VALID) * witten_bell_bigram_bits(TRAIN, VALID)
    )


@pytest.mark.parametrize("train", [TRAIN, b"a", b"ab", b"\xff\xff\x00"])
def test_conditional_laws_sum_to_one(train):
    model = WittenBell.fit(np.frombuffer(train, np.uint8), 256)
    previous, following = np.divmod(np.arange(256 * 256), 256)
    laws = model.prob(previous, following).reshape(256, 256)
    assert (laws > 0).all()
    np.testing.assert_allclose(laws.sum(-1), 1.0, rtol=0, atol=1e-12)
    np.testing.assert_allclose(kt_unigram(np.frombuffer(train, np.uint8), 256).sum(), 1.0, rtol=0, atol=1e-12)


@pytest.mark.parametrize("code", [token_unigram_bits, token_bigram_bits])
def test_code_lengths_of_all_texts_fill_the_kraft_inequality(code):
    train = np.array([0, 1, 1, 2, 0, 1])
    total = sum(2 ** -code(train, np.array(text), 4, 1) for text in itertools.product(range(4), repeat=4))
    np.testing.assert_allclose(total, 1.0, rtol=1e-12)


def test_bigram_of_a_bigram_source_nears_its_entropy():
    """200,000 tokens of a known chain: the code costs its entropy rate within one percent, the unigram far more."""
    rng = np.random.default_rng(0)
    transition = rng.dirichlet(np.full(8, 0.3), size=8)
    edges, tokens, state = np.cumsum(transition, 1), np.empty(250_000, np.int64), 0
    for i, u in enumerate(rng.random(len(tokens))):
        state = tokens[i] = min(int(np.searchsorted(edges[state], u, "right")), 7)
    train, valid = tokens[:200_000], tokens[200_000:]
    visits = np.bincount(valid[:-1], minlength=8) / (len(valid) - 1)
    rate = -visits @ np.sum(transition * np.log2(transition), -1)
    np.testing.assert_allclose(token_bigram_bits(train, valid, 8, len(valid)), rate, rtol=0.01)
    assert token_unigram_bits(train, valid, 8, len(valid)) > 1.2 * rate


def test_xz_orders_texts_as_it_should():
    noise = np.random.default_rng(0).integers(0, 256, 50_000, np.uint8).tobytes()
    assert 8.0 < xz_bits(noise) < 8.1
    assert xz_bits(b"a" * 50_000) < 0.05
    assert xz_bits(noise + noise) < 4.1


def test_xz_looks_back_as_far_as_preset_9():
    """A repeat 9 MB behind is found with the 64 MiB window of -9, and not with the 8 MiB window of the default."""
    noise = np.random.default_rng(0).integers(0, 256, 50_000, np.uint8).tobytes()
    text = noise + bytes(9_000_000) + noise
    assert xz_bits(text) * len(text) / 8 < 1.1 * len(noise)


def test_xz_is_what_the_command_line_makes():
    xz = shutil.which("xz")
    if xz is None:
        pytest.skip("no xz on this machine")
    text = (TRAIN + VALID) * 20
    size = len(subprocess.run([xz, "-9", "-c"], input=text, capture_output=True, check=True, timeout=60).stdout)
    assert abs(xz_bits(text) * len(text) / 8 - size) <= 32  # the container's own fields differ between versions


def test_impossible_inputs_are_refused():
    tokens = np.array([0, 1])
    for train, valid in ((b"", b"a"), (b"a", b"")):
        with pytest.raises(ValueError, match="must be a non-empty row of integers"):
            unigram_bits(train, valid)
        with pytest.raises(ValueError, match="must be a non-empty row of integers"):
            witten_bell_bigram_bits(train, valid)
    with pytest.raises(ValueError, match="valid: is empty"):
        xz_bits(b"")
    with pytest.raises(ValueError, match=r"train: holds ids 0..2; they must lie in 0..1"):
        token_bigram_bits(np.array([0, 2]), tokens, 2, 2)
    with pytest.raises(ValueError, match=r"valid: holds ids -1..0; they must lie in 0..1"):
        token_unigram_bits(tokens, np.array([0, -1]), 2, 2)
    with pytest.raises(ValueError, match="valid_bytes=0"):
        token_bigram_bits(tokens, tokens, 2, 0)
