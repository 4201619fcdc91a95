"""Byte and language tokenizers, and telling tokenizer files apart."""

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mdlm_jax.config import ConfigError
from mdlm_jax.data.tokenizers import ByteTokenizer, LanguageTokenizer, Text8Tokenizer, load_tokenizer, make_tokenizer


@given(st.text())
def test_bytes_lose_nothing(text):
    tokenizer = ByteTokenizer()
    ids = tokenizer.encode(text)
    assert ids.dtype == np.int32
    assert tokenizer.decode(ids) == text
    assert tokenizer.token_bytes(ids).sum() == len(text.encode())


def test_byte_ids_and_sizes():
    tokenizer = ByteTokenizer()
    assert (tokenizer.mask_id, tokenizer.eos_id, tokenizer.pad_id, tokenizer.vocab_size) == (256, 257, 258, 259)
    np.testing.assert_array_equal(tokenizer.encode("aé"), [97, 0xC3, 0xA9])
    np.testing.assert_array_equal(tokenizer.token_bytes(np.array([[0, 255], [256, 258]])), [[1, 1], [0, 0]])
    assert tokenizer.lossless


def test_a_special_name_in_a_text_is_text():
    tokenizer = ByteTokenizer()
    assert tokenizer.decode(tokenizer.encode("<|mask|>")) == "<|mask|>"
    assert tokenizer.encode("<|mask|>").max() < 256


def test_decode_leaves_specials_out_or_names_them():
    tokenizer = ByteTokenizer()
    ids = [104, 256, 105, 257, 258]
    assert tokenizer.decode(ids) == "hi"
    assert tokenizer.decode(ids, show_special=True) == "h<|mask|>i<|endoftext|><|pad|>"


def test_decode_replaces_bytes_that_are_no_text():
    assert ByteTokenizer().decode([97, 255, 98]) == "a\ufffdb"
    assert ByteTokenizer().decode([]) == ""
    assert ByteTokenizer().decode_bytes([97, 255, 256, 0xC3]) == b"a\xff\xc3"


def test_token_text_is_printable():
    tokenizer = ByteTokenizer()
    shown = [tokenizer.token_text(i) for i in (97, 32, 10, 9, 13, 0, 200, 256, 257)]
    assert shown == ["a", " ", "↵", "⇥", "␍", "\\x00", "\\xc8", "<|mask|>", "<|endoftext|>"]
    assert all(tokenizer.token_text(i).isprintable() for i in range(tokenizer.vocab_size))


@pytest.mark.parametrize("ids", [[-1], [259], [0, 1000]])
def test_ids_outside_the_vocabulary_are_refused(ids):
    for method in (ByteTokenizer().decode, ByteTokenizer().token_bytes):
        with pytest.raises(ValueError, match=rf"{ids[-1]}: must lie in 0\.\.258"):
            method(ids)


def test_ids_that_are_no_integers_are_refused():
    with pytest.raises(ValueError, match="must be integers, not float64"):
        ByteTokenizer().decode(np.zeros(3))


def test_language_tokens_are_numbers():
    tokenizer = LanguageTokenizer(5)
    assert (tokenizer.mask_id, tokenizer.eos_id, tokenizer.pad_id, tokenizer.vocab_size) == (5, 6, 7, 8)
    np.testing.assert_array_equal(tokenizer.encode(" 3 1  4 "), [3, 1, 4])
    assert tokenizer.decode([3, 5, 1, 6]) == "3 1"
    assert tokenizer.decode([3, 5, 1], show_special=True) == "3 <|mask|> 1"
    assert not tokenizer.token_bytes([0, 1, 7]).any()
    assert not tokenizer.lossless


@pytest.mark.parametrize(("text", "message"), [
    ("3 x", "written as numbers"), ("3 5", r"must lie in 0\.\.4"), ("-1", r"must lie in 0\.\.4"),
    ("9" * 20, r"must lie in 0\.\.4"),
])
def test_language_text_that_names_no_token(text, message):
    with pytest.raises(ValueError, match=message):
        LanguageTokenizer(5).encode(text)


def test_text8_has_35_ids():
    tokenizer = make_tokenizer("text8", lambda: pytest.fail("the text is not needed"))
    ids = (tokenizer.vocab_size, tokenizer.bos_id, tokenizer.eos_id, tokenizer.mask_id, tokenizer.pad_id)
    assert ids == (35, 2, 3, 4, 5) and tokenizer.lossless
    assert tokenizer.encode("az b").tolist() == [8, 33, 34, 9]
    assert tokenizer.decode([2, 8, 33, 4, 34, 9, 3]) == "az b" and tokenizer.token_text(4) == "[MASK]"
    assert tokenizer.token_bytes(np.arange(35)).tolist() == [0] * 8 + [1] * 27
    assert tokenizer.encode_special("a[MASK]b").tolist() == [8, 4, 9] and tokenizer.encode("").shape == (0,)


@pytest.mark.parametrize("text", ["A", "a.b", "one\ntwo", "caf\u00e9", "[MASK]"])
def test_text8_refuses_other_characters(text):
    with pytest.raises(ConfigError, match="data.tokenizer='text8': knows a to z and the space"):
        make_tokenizer("text8", lambda: ()).encode(text)


@pytest.mark.parametrize("tokenizer", [ByteTokenizer(), Text8Tokenizer(), LanguageTokenizer(5)])
def test_saved_and_loaded(tokenizer, tmp_path):
    tokenizer.save(tmp_path / "tokenizer.json")
    loaded = load_tokenizer(tmp_path / "tokenizer.json")
    assert type(loaded) is type(tokenizer)
    assert (loaded.vocab_size, loaded.mask_id) == (tokenizer.vocab_size, tokenizer.mask_id)


@pytest.mark.parametrize(("content", "message"), [
    ("{", "is not JSON"), ("[1]", "neither a Hugging Face"), ('{"mdlm_jax_tokenizer": "mystery"}', "neither"),
    ('{"mdlm_jax_tokenizer": "language", "size": 0}', "neither"),
    (json.dumps({"model": {"type": "Nonsense"}}), "cannot be read"),
])
def test_files_that_are_no_tokenizer(content, message, tmp_path):
    path = tmp_path / "tokenizer.json"
    path.write_text(content)
    with pytest.raises(ConfigError, match=message) as error:
        load_tokenizer(path)
    assert str(path) in str(error.value)


def test_binary_file_is_no_tokenizer(tmp_path):
    (tmp_path / "tokenizer.json").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match="is not JSON"):
        load_tokenizer(tmp_path / "tokenizer.json")


def test_missing_tokenizer_file(tmp_path):
    with pytest.raises(ConfigError, match="'btye': is not a file; choose byte, text8, bpe:VOCAB_SIZE"):
        make_tokenizer("btye", lambda: pytest.fail("the text is not needed"))
    with pytest.raises(ConfigError, match="name the tokenizer.json in it"):
        load_tokenizer(tmp_path)


def test_byte_tokenizer_does_not_read_the_text():
    assert isinstance(make_tokenizer("byte", lambda: pytest.fail("the text is not needed")), ByteTokenizer)
