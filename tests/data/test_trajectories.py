"""Trajectories on disk and as batches."""

import dataclasses
import json

import numpy as np
import pytest

from mdlm_jax.config import ConfigError, DataConfig
from mdlm_jax.data import pipeline
from mdlm_jax.data.tokenizers import LanguageTokenizer
from mdlm_jax.data.trajectories import GIVEN, NEVER, PADDING, read, write_shard

ROWS, LENGTH = 20, 6


def folder(path, rows=ROWS):
    """Two shards; row i is i everywhere, written from the right behind a prompt of one token, its last one padding."""
    path.mkdir(exist_ok=True)
    tokens = np.repeat(np.arange(rows)[:, None] % 7, LENGTH, axis=1)
    rank = np.tile([GIVEN, 3, 2, 1, 0, PADDING], (rows, 1))
    rank[1, 1] = NEVER
    for number, part in enumerate(np.array_split(np.arange(rows), 2)):
        write_shard(path / f"{number:05d}.npz", tokens[part], rank[part])
    (path / "meta.json").write_text(json.dumps({"shards": 2, "length": LENGTH}))
    LanguageTokenizer(7).save(path / "tokenizer.json")
    return path, tokens, rank


def config(path, **fields):
    return dataclasses.replace(DataConfig(source=f"trajectories:{path}", length=LENGTH, valid_fraction=0.2), **fields)


def test_what_is_written_is_read(tmp_path):
    path, tokens, rank = folder(tmp_path / "t")
    for found, expected in zip(read(path), (tokens, rank), strict=True):
        assert found.dtype == np.int32
        np.testing.assert_array_equal(found, expected)
    assert not list(path.glob("*.tmp"))


def test_batches_say_what_was_written_and_what_is_seen(tmp_path):
    path, tokens, rank = folder(tmp_path / "t")
    built = pipeline.build(config(path), 4)
    assert (built.train.num_rows, built.valid.num_rows) == (16, 4)
    seen, tokens = [], np.where(rank == NEVER, LanguageTokenizer(7).mask_id, tokens)
    for step in range(4):  # an epoch
        batch = built.train.batch(step)
        assert set(batch) == {"tokens", "rank", "attention_mask", "positions", "noise_mask", "loss_mask"}
        for row in range(4):
            which = next(i for i in range(ROWS) if (tokens[i] == batch["tokens"][row]).all()
                         and (rank[i] == batch["rank"][row]).all() and i not in seen)
            seen.append(which)
        np.testing.assert_array_equal(batch["attention_mask"], batch["rank"] != PADDING)
        np.testing.assert_array_equal(batch["noise_mask"], (batch["rank"] >= 0) & (batch["rank"] < NEVER))
        np.testing.assert_array_equal(batch["positions"], np.tile(np.arange(LENGTH), (4, 1)))
    assert len(set(seen)) == 16 and built.valid.sequential(0, 4)["rank"].shape == (4, LENGTH)
    assert built.train.length == LENGTH and built.train.tokens_per_epoch == 16 * LENGTH


def test_another_order_of_writing_is_other_data(tmp_path):
    path, _, _ = folder(tmp_path / "t")
    before = pipeline.build(config(path), 4).train.fingerprint
    tokens, rank = read(path)
    write_shard(path / "00000.npz", tokens[:10], rank[:10, ::-1])
    assert pipeline.build(config(path), 4).train.fingerprint != before


@pytest.mark.parametrize(("break_it", "fields", "said"), [
    (lambda p: (p / "meta.json").unlink(), {}, "there are no trajectories; make some with launch.trajectories"),
    (lambda p: (p / "00001.npz").unlink(), {}, "00001.npz cannot be read .*it goes on where it stopped"),
    (lambda p: (p / "00001.npz").write_bytes(b"PK"), {}, "00001.npz cannot be read"),
    (lambda p: None, {"length": 8}, "data.length=8: the trajectories have rows of 6; set it so"),
    (lambda p: None, {"random_length": 0.5}, "data.random_length=0.5: has no meaning for trajectories"),
])
def test_mistakes_are_named(tmp_path, break_it, fields, said):
    path, _, _ = folder(tmp_path / "t")
    break_it(path)
    with pytest.raises(ConfigError, match=said):
        pipeline.build(config(path, **fields), 4)


def test_too_few_rows_and_another_tokenizer(tmp_path):
    path, _, _ = folder(tmp_path / "t")
    with pytest.raises(ConfigError, match="16 training rows are fewer than train.batch_size=17"):
        pipeline.build(config(path), 17)
    with pytest.raises(ConfigError, match="written by a network with another tokenizer"):
        pipeline.build(config(path), 4, LanguageTokenizer(8))
