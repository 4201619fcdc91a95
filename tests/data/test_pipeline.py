"""Pipelines: batches as a pure function of the step, and building them from a configuration."""

import dataclasses
import json
import random
import subprocess
import sys

import numpy as np
import pytest

from mdlm_jax.config import ConfigError, DataConfig
from mdlm_jax.data import language_rows
from mdlm_jax.data.pipeline import Pipeline, build
from mdlm_jax.data.sources import place
from mdlm_jax.data.tokenizers import ByteTokenizer, LanguageTokenizer

NAMES = ("tokens", "attention_mask", "positions", "noise_mask", "loss_mask")


def numbered(num_rows, batch_size, seed=0, length=4):
    """A pipeline whose row r holds r in every place."""
    rows = np.repeat(np.arange(num_rows)[:, None], length, axis=1)
    return Pipeline(rows, batch_size=batch_size, seed=seed, packing="concat", tokenizer=LanguageTokenizer(10**6))


def drawn(pipeline, steps):
    return np.concatenate([pipeline.batch(step)["tokens"][:, 0] for step in steps])


@pytest.mark.parametrize(("num_rows", "batch_size"), [(12, 4), (13, 4), (3, 8), (1, 2), (100, 7)])
def test_every_epoch_shows_every_row_once(num_rows, batch_size):
    stream = drawn(numbered(num_rows, batch_size), range(3 * num_rows))
    for epoch in range(3 * batch_size):
        np.testing.assert_array_equal(np.sort(stream[epoch * num_rows : (epoch + 1) * num_rows]), np.arange(num_rows))


def test_order_differs_between_epochs_and_seeds():
    stream = drawn(numbered(40, 8), range(10)).reshape(2, 40)
    assert (stream[0] != stream[1]).any()
    assert (stream[0] != np.arange(40)).any()
    assert (drawn(numbered(40, 8, seed=1), range(5)) != stream[0]).any()
    np.testing.assert_array_equal(drawn(numbered(40, 8), range(5)), stream[0])


def test_a_step_far_away_is_reached_at_once_and_is_the_same_however_reached():
    pipeline, other = numbered(1000, 32), numbered(1000, 32)
    far = pipeline.batch(10**9)
    for step in (5, 10**9 + 1, 0, 10**9):
        last = other.batch(step)
    for name in NAMES:
        np.testing.assert_array_equal(far[name], last[name])
    assert len(np.unique(far["tokens"][:, 0])) > 1


@pytest.mark.parametrize("hosts", [1, 2, 4, 8])
def test_slices_of_hosts_make_up_the_global_batch(hosts):
    pipeline = numbered(13, 8)
    share = 8 // hosts
    for step in (0, 1, 77):
        parts = [pipeline.batch(step, slice(h * share, (h + 1) * share)) for h in range(hosts)]
        whole = pipeline.batch(step)
        for name in NAMES:
            np.testing.assert_array_equal(np.concatenate([part[name] for part in parts]), whole[name])


@pytest.mark.parametrize("rows", [slice(4, 9), slice(8, 9), slice(3, 3)])
def test_rows_outside_the_batch_are_refused(rows):
    with pytest.raises(ValueError, match="non-empty slice of the 8 rows"):
        numbered(13, 8).batch(0, rows)


def test_negative_step_is_refused():
    with pytest.raises(ValueError, match="step=-1"):
        numbered(13, 8).batch(-1)


def test_sequential_is_in_order_and_stops_at_the_last_row():
    pipeline = numbered(13, 8)
    np.testing.assert_array_equal(pipeline.sequential(2, 11)["tokens"][:, 0], np.arange(2, 13))
    for start, count in ((3, 11), (-1, 2), (0, 0)):
        with pytest.raises(ValueError, match="among the 13"):
            pipeline.sequential(start, count)


def test_a_batch_is_a_copy():
    pipeline = numbered(13, 8)
    pipeline.batch(0)["tokens"][:] = -1
    pipeline.sequential(0, 13)["tokens"][:] = -1
    assert drawn(pipeline, [0]).min() >= 0


def test_counts_and_fingerprint():
    pipeline = numbered(13, 8)
    assert (pipeline.num_rows, pipeline.length, pipeline.batch_size, pipeline.tokens_per_epoch) == (13, 4, 8, 52)
    others = [numbered(14, 8), numbered(13, 4), numbered(13, 8, seed=1), numbered(13, 8, length=5)]
    prints = {p.fingerprint for p in [pipeline, *others]}
    assert len(prints) == 5
    assert numbered(13, 8).fingerprint == pipeline.fingerprint
    changed = np.repeat(np.arange(13)[:, None], 4, axis=1)
    changed[12, 3] = 0
    assert Pipeline(changed, batch_size=8, seed=0, packing="concat",
                    tokenizer=LanguageTokenizer(10**6)).fingerprint not in prints


@pytest.fixture
def folder(tmp_path):
    for i in range(60):
        (tmp_path / f"{i:02d}.txt").write_text(f"document {i} says hello and hello again, é\n" * (1 + i % 5))
    return tmp_path


def settings(folder, **changes):
    return DataConfig(**{"source": str(folder), "length": 32, "valid_fraction": 0.2} | changes)


def test_build_accounts_for_every_byte(folder):
    built = build(settings(folder), 4)
    info = json.loads(json.dumps(built.info))
    assert (info["vocab_size"], info["lossless"], info["skipped_files"]) == (259, True, 0)
    assert info["train"]["documents"] + info["valid"]["documents"] == 60
    assert info["train"]["bytes"] + info["valid"]["bytes"] == sum(len(p.read_bytes()) for p in folder.iterdir())
    for split, pipeline in (("train", built.train), ("valid", built.valid)):
        account = info[split]
        assert account["tokens"] == account["bytes"] + account["documents"]
        assert (pipeline.num_rows, account["dropped_tokens"]) == divmod(account["tokens"], 32)
        assert account["rows"] == pipeline.num_rows
        np.testing.assert_allclose(account["bytes_per_token"], account["bytes"] / account["tokens"])
        tokens = pipeline.sequential(0, pipeline.num_rows)["tokens"]
        assert 0 <= account["bytes"] - built.tokenizer.token_bytes(tokens).sum() <= account["dropped_tokens"]


def test_build_puts_no_document_in_both_splits(folder):
    built = build(settings(folder), 4)

    def titles(pipeline):
        text = built.tokenizer.decode(pipeline.sequential(0, pipeline.num_rows)["tokens"].ravel())
        return {line.split(" says")[0] for line in text.splitlines() if line.startswith("document") and " says" in line}

    assert titles(built.train) and titles(built.valid) and not titles(built.train) & titles(built.valid)


def test_build_is_the_same_again_and_the_seed_changes_only_the_order(folder):
    one, two, other = (build(settings(folder, seed=seed), 4) for seed in (0, 0, 1))
    assert one.train.fingerprint == two.train.fingerprint != other.train.fingerprint
    assert one.valid.fingerprint != one.train.fingerprint
    rows = [b.train.sequential(0, b.train.num_rows)["tokens"] for b in (one, other)]
    np.testing.assert_array_equal(*rows)


def test_build_with_bpe_trains_on_the_training_split_alone(folder):
    built = build(settings(folder, tokenizer="bpe:280"), 4)
    assert built.tokenizer.vocab_size == built.info["vocab_size"] == 280
    assert built.info["train"]["bytes_per_token"] > 1.5
    for path in folder.iterdir():
        if place(path.name) < 0.2 * 2**64:
            path.write_text("quite another text " * 9)
    again = build(settings(folder, tokenizer="bpe:280"), 4)
    assert again.train.fingerprint == built.train.fingerprint
    assert again.valid.fingerprint != built.valid.fingerprint


def test_build_with_a_given_tokenizer_does_not_train(folder):
    config = settings(folder, tokenizer="bpe:280")
    first = build(config, 4)
    second = build(dataclasses.replace(config, tokenizer="no such file"), 4, tokenizer=first.tokenizer)
    assert second.tokenizer is first.tokenizer
    assert second.train.fingerprint == first.train.fingerprint


def test_build_with_document_packing_numbers_documents(folder):
    pipeline = build(settings(folder, packing="documents"), 4).train
    batch = pipeline.sequential(0, pipeline.num_rows)
    ends = (batch["tokens"][:, :-1] == 257).sum(1)
    assert ends.any()
    np.testing.assert_array_equal(batch["attention_mask"][:, -1], ends + 1)


def test_text_without_a_batch_and_a_held_out_row_says_so(folder):
    expected = (r"[67],\d{3} bytes of text are too few for 4 training rows .train.batch_size. and one held-out row of "
                r"100000 tokens .data.length.: there are 0 and 0; lower one of the two")
    with pytest.raises(ConfigError, match=expected):
        build(settings(folder, length=100_000), 4)
    with pytest.raises(ConfigError, match=r"too few for 300 training rows .*: there are 1\d\d and \d\d;"):
        build(settings(folder), 300)


@pytest.mark.parametrize("kind", ["paragraphs", "lines", "one line"])
@pytest.mark.parametrize("size", [20_000, 60_000, 300_000])
def test_a_small_text_file_works_as_it_is(kind, size, tmp_path):
    """With the defaults and those of quickstart: a batch to train on, some rows held out, not much of the text."""
    words = random.Random(size).choices(["mask", "noise", "token", "of"], k=size)
    end = {"paragraphs": "\n\n", "lines": "\n", "one line": " "}[kind]
    path = tmp_path / "book.txt"
    path.write_text(end.join(" ".join(words[i : i + 10]) for i in range(0, size, 10))[:size])
    for batch_size, changes in ((32, {}), (16, {"tokenizer": "bpe:2048", "length": 128})):
        built = build(DataConfig(source=str(path), **changes), batch_size)
        assert built.train.num_rows >= batch_size and built.valid.num_rows >= 2
        assert 0.02 * size < built.info["valid"]["bytes"] < 0.3 * size
        assert built.info["train"]["bytes"] + built.info["valid"]["bytes"] == size


def test_skipped_files_are_counted(folder):
    (folder / "image.png").write_bytes(b"\x89PNG\xff")
    assert build(settings(folder), 4).info["skipped_files"] == 1


@pytest.fixture
def few_tokens(monkeypatch):
    monkeypatch.setattr(language_rows, "TOKENS", 1 << 12)


@pytest.mark.parametrize("name", ["hmm", "copy", "drift"])
def test_language_rows_are_ready_tokens(name, few_tokens):
    config = DataConfig(source=f"language:{name}", length=16, valid_fraction=0.25)
    built = build(config, 4)
    assert (built.train.num_rows, built.valid.num_rows) == (192, 64)
    assert built.info["train"]["bytes_per_token"] is None and not built.info["lossless"]
    tokens = built.train.sequential(0, 192)["tokens"]
    assert 0 <= tokens.min() <= tokens.max() < built.tokenizer.mask_id == built.tokenizer.vocab_size - 3
    assert (built.train.batch(0)["attention_mask"] == 1).all()
    assert not np.array_equal(tokens[:64], built.valid.sequential(0, 64)["tokens"])
    again = build(dataclasses.replace(config, seed=0 if name == "drift" else 9), 4, tokenizer=built.tokenizer)
    np.testing.assert_array_equal(again.train.sequential(0, 192)["tokens"], tokens)


@pytest.mark.parametrize(("changes", "message"), [
    ({"source": "language:klingon"}, "klingon"), ({"tokenizer": "bpe:300"}, "data.tokenizer='bpe:300': has no meaning"),
    ({"packing": "documents"}, "data.packing='documents': has no meaning"),
    ({"source": "language:drift", "seed": 3}, "data.seed=3: has no meaning .* in the order of time; leave it out"),
    ({"source": "language:drift:rows=99999999"}, "99999999 rows of data.length=16 are more than"),
])
def test_language_settings_that_cannot_be(changes, message, few_tokens):
    with pytest.raises(ConfigError, match=message):
        build(DataConfig(**{"source": "language:hmm", "length": 16} | changes), 4)


def test_language_with_the_tokenizer_of_another_run(few_tokens):
    config = DataConfig(source="language:hmm", length=16)
    for other in (ByteTokenizer(), LanguageTokenizer(3)):
        with pytest.raises(ConfigError, match="use the source it was made for"):
            build(config, 4, tokenizer=other)


def test_data_imports_no_jax_and_no_tensorflow(folder, tmp_path_factory):
    code = f"""
import sys
from mdlm_jax.config import DataConfig
from mdlm_jax.data import language_rows, pipeline, prefetch
language_rows.TOKENS = 4096
for source, tokenizer in (({str(folder)!r}, "bpe:280"), ("language:hmm", "byte")):
    built = pipeline.build(DataConfig(source=source, tokenizer=tokenizer, length=16, valid_fraction=0.2), 4)
    with prefetch.prefetch(built.train, 3) as batches:
        assert next(batches)[0] == 3
loaded = [name for name in ("jax", "jaxlib", "flax", "orbax", "grain", "tensorflow", "tensorflow_datasets", "torch")
          if name in sys.modules]
assert not loaded, loaded
"""
    subprocess.run([sys.executable, "-c", code], check=True)
