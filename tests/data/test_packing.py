"""Documents to rows, and the masks and positions of a batch against a slow twin."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mdlm_jax.config import ConfigError
from mdlm_jax.data import packing
from mdlm_jax.data.packing import make_batch, split_rows, tokenize
from mdlm_jax.data.sources import Document
from mdlm_jax.data.tokenizers import ByteTokenizer, LanguageTokenizer

EOS, PAD = 257, 258


def slow_rows(texts, length):
    stream = [i for text in texts for i in [*text.encode(), EOS]]
    return [stream[start : start + length] for start in range(0, len(stream) - length + 1, length)]


def slow_documents(row):
    """attention_mask and positions of one row, token by token."""
    attention, positions, document, position = [], [], 1, 0
    for token in row:
        attention.append(0 if token == PAD else document)
        positions.append(position)
        position += 1
        if token == EOS:
            document, position = document + 1, 0
    return attention, positions


@given(st.lists(st.text(max_size=12), min_size=1, max_size=12), st.integers(1, 9))
def test_rows_and_boundaries_agree_with_the_slow_twin(texts, length):
    documents = [Document(str(i), text) for i, text in enumerate(texts)]
    tokens = tokenize(documents, ByteTokenizer())
    rows = split_rows(tokens.ids, length)
    expected = slow_rows(texts, length)
    assert rows.shape == (len(expected), length)
    assert (tokens.documents, tokens.bytes) == (len(texts), sum(len(text.encode()) for text in texts))
    assert len(tokens.ids) == tokens.bytes + tokens.documents
    if expected:
        batch = make_batch(rows, "documents", EOS, PAD)
        np.testing.assert_array_equal(batch["tokens"], expected)
        attention, positions = zip(*map(slow_documents, expected), strict=True)
        np.testing.assert_array_equal(batch["attention_mask"], attention)
        np.testing.assert_array_equal(batch["positions"], positions)


def test_documents_packing_by_hand():
    rows = np.array([[5, EOS, 6, 7, EOS, EOS, 8], [9, 9, 9, EOS, 1, 2, 3]])
    batch = make_batch(rows, "documents", EOS, PAD)
    np.testing.assert_array_equal(batch["attention_mask"], [[1, 1, 2, 2, 2, 3, 4], [1, 1, 1, 1, 2, 2, 2]])
    np.testing.assert_array_equal(batch["positions"], [[0, 1, 0, 1, 2, 0, 0], [0, 1, 2, 3, 0, 1, 2]])


def test_concat_packing_crosses_documents():
    batch = make_batch(np.array([[5, EOS, 6, 7], [EOS, EOS, 8, 9]], np.uint16), "concat", EOS, PAD)
    np.testing.assert_array_equal(batch["attention_mask"], np.ones((2, 4)))
    np.testing.assert_array_equal(batch["positions"], [[0, 1, 2, 3]] * 2)
    assert batch["noise_mask"].all() and batch["loss_mask"].all()


@pytest.mark.parametrize(("packing_name", "attention"), [("concat", [1, 1, 1, 0, 0]), ("documents", [1, 1, 2, 0, 0])])
def test_padding_is_neither_seen_noised_nor_counted(packing_name, attention):
    batch = make_batch(np.array([[5, EOS, 6, PAD, PAD]]), packing_name, EOS, PAD)
    np.testing.assert_array_equal(batch["attention_mask"], [attention])
    for name in ("noise_mask", "loss_mask"):
        np.testing.assert_array_equal(batch[name], [[True, True, True, False, False]])


def test_batch_types():
    batch = make_batch(np.zeros((2, 3), np.uint16), "documents", EOS, PAD)
    assert {name: (value.dtype.name, value.shape) for name, value in batch.items()} == {
        "tokens": ("int32", (2, 3)), "attention_mask": ("int32", (2, 3)), "positions": ("int32", (2, 3)),
        "noise_mask": ("bool", (2, 3)), "loss_mask": ("bool", (2, 3))}
    batch["noise_mask"][0, 0] = False
    assert batch["loss_mask"].all()


def test_chunks_do_not_change_the_tokens(monkeypatch):
    documents = [Document(str(i), "word " * i) for i in range(20)]
    whole = tokenize(documents, ByteTokenizer())
    monkeypatch.setattr(packing, "_CHUNK_CHARS", 7)
    np.testing.assert_array_equal(tokenize(documents, ByteTokenizer()).ids, whole.ids)


def test_large_vocabularies_keep_their_ids():
    class Large(LanguageTokenizer):
        def encode(self, text):
            return np.array([70_000], np.int32)

    np.testing.assert_array_equal(tokenize([Document("a", "x")], Large(80_000)).ids, [70_000, 80_001])
    assert tokenize([Document("a", "x")], ByteTokenizer()).ids.dtype == np.uint16


def test_text_that_becomes_a_special_token_is_refused():
    class Careless(ByteTokenizer):
        def encode(self, text):
            return np.array([1, self.mask_id], np.int32)

    with pytest.raises(ConfigError, match="document 'a.txt' into one of its special tokens"):
        tokenize([Document("a.txt", "x")], Careless())
