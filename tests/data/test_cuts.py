"""Rows of random and rising length: how many, how long, the same for every host, and masked to the very end."""

import dataclasses

import numpy as np
import pytest
from scipy import stats

from mdlm_jax.config import ConfigError, DataConfig
from mdlm_jax.data.cuts import Cut
from mdlm_jax.data.pipeline import Pipeline, build
from mdlm_jax.data.tokenizers import ByteTokenizer

POSITIONS = np.arange(200_000)


def pipeline(cut, rows=None, packing="concat", length=16):
    rows = np.arange(40 * length).reshape(40, length) % 250 if rows is None else rows
    return Pipeline(rows, batch_size=8, seed=1, packing=packing, tokenizer=ByteTokenizer(), cut=cut)


def test_the_share_and_the_law_of_the_lengths():
    lengths = Cut(64, 0.01, 64, 0, 5).lengths(0, POSITIONS)
    short = lengths[lengths < 64]
    expected = 0.01 * 63 / 64 * len(POSITIONS)  # a random length may be the whole one
    assert abs(len(short) - expected) < 5 * expected**0.5
    assert lengths.min() == 1 and lengths.max() == 64
    counts = np.bincount(Cut(64, 1.0, 64, 0, 5).lengths(0, POSITIONS), minlength=65)
    assert counts[0] == 0 and stats.chisquare(counts[1:]).pvalue > 1e-4


def test_ends_of_the_range():
    assert (Cut(64, 0.0, 64, 0, 5).lengths(3, POSITIONS) == 64).all()
    assert not Cut(64, 0.0, 64, 0, 5).cuts
    assert (Cut(64, 1.0, 1, 10, 5).lengths(0, POSITIONS) == 1).all()


def test_the_warm_up_is_linear_and_ends():
    cut = Cut(64, 0.0, 4, 60, 0)
    assert [cut.limit(step) for step in (0, 1, 30, 59, 60, 10**9)] == [4, 5, 34, 63, 64, 64]
    assert (cut.lengths(30, POSITIONS[:10]) == 34).all()
    assert Cut(64, 1.0, 4, 60, 0).lengths(30, POSITIONS).max() == 34


def test_what_is_cut_is_padding_in_every_mask():
    whole, cut = pipeline(None), pipeline(Cut(16, 1.0, 16, 0, 9))
    lengths = Cut(16, 1.0, 16, 0, 9).lengths(3, 3 * 8 + np.arange(8))
    batch, plain = cut.batch(3), whole.batch(3)
    behind = np.arange(16) >= lengths[:, None]
    np.testing.assert_array_equal(batch["tokens"], np.where(behind, 258, plain["tokens"]))
    np.testing.assert_array_equal(batch["attention_mask"], np.where(behind, 0, 1))
    np.testing.assert_array_equal(batch["noise_mask"], ~behind)
    np.testing.assert_array_equal(batch["loss_mask"], ~behind)
    np.testing.assert_array_equal(batch["positions"], plain["positions"])
    np.testing.assert_array_equal(cut.sequential(0, 40)["tokens"], whole.sequential(0, 40)["tokens"])


def test_documents_before_the_cut_keep_their_numbers():
    rows = np.full((40, 16), 65)
    rows[:, 3] = ByteTokenizer().eos_id
    batch = pipeline(Cut(16, 0.0, 6, 100, 0), rows, "documents").batch(0)
    np.testing.assert_array_equal(batch["attention_mask"], [[1] * 4 + [2] * 2 + [0] * 10] * 8)


@pytest.mark.parametrize("hosts", [2, 4])
def test_hosts_and_restarts_agree(hosts):
    source, again = (pipeline(Cut(16, 0.5, 3, 9, 7)) for _ in range(2))
    share = 8 // hosts
    for step in (5, 0, 8):
        parts = [again.batch(step, slice(h * share, (h + 1) * share))["tokens"] for h in range(hosts)]
        np.testing.assert_array_equal(np.concatenate(parts), source.batch(step)["tokens"])


def test_the_fingerprint_knows_them():
    cuts = [None, Cut(16, 0.0, 16, 0, 1), Cut(16, 0.1, 16, 0, 1), Cut(16, 0.1, 2, 9, 1)]
    prints = [pipeline(cut).fingerprint for cut in cuts]
    assert prints[0] == prints[1] and len(set(prints)) == 3


def test_from_the_configuration_and_for_training_only(tmp_path):
    (tmp_path / "book.txt").write_text("many words of a book\n\n" * 3000)
    config = DataConfig(source=str(tmp_path / "book.txt"), length=32, random_length=1.0)
    built, plain = (build(c, 8) for c in (config, dataclasses.replace(config, random_length=0.0)))
    assert built.train.fingerprint != plain.train.fingerprint
    assert built.valid.fingerprint == plain.valid.fingerprint
    assert not built.train.batch(0)["loss_mask"].all() and built.valid.batch(0)["loss_mask"].all()


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"random_length": -0.1}, "data.random_length=-0.1"),
        ({"random_length": 1.1}, "data.random_length=1.1"),
        ({"length_warmup": "8"}, "write FROM:STEPS"),
        ({"length_warmup": "0:10"}, "1 <= FROM < data.length=32"),
        ({"length_warmup": "32:10"}, "data.length_warmup='32:10'"),
        ({"length_warmup": "8:0"}, "STEPS >= 1"),
        ({"length_warmup": "8:ten"}, "write FROM:STEPS"),
    ],
)
def test_impossible_values_are_refused(fields, said):
    with pytest.raises(ConfigError, match=said):
        DataConfig(length=32, **fields)
