"""BPE trained on the spot, and given Hugging Face tokenizer files."""

import json
import subprocess
import sys

import numpy as np
import pytest
import tokenizers as hf
from hypothesis import given, settings
from hypothesis import strategies as st

from mdlm_jax.config import ConfigError
from mdlm_jax.data import subword
from mdlm_jax.data.packing import pack
from mdlm_jax.data.tokenizers import load_tokenizer, make_tokenizer

TEXTS = ["the cat sat on the mat, the cat sat on the hat\n" * 3, "def f(x):\n    return x + 1\n" * 4,
         "naïve café 東京 <|mask|>"]


@pytest.fixture(scope="module")
def bpe():
    return subword.train_bpe(TEXTS, 285)


@settings(max_examples=200)
@given(st.text())
def test_bpe_loses_nothing(bpe, text):
    ids = bpe.encode(text)
    assert ids.dtype == np.int32
    assert bpe.decode(ids) == text
    assert bpe.token_bytes(ids).sum() == len(text.encode())
    assert b"".join(bpe.decode_bytes([i]) for i in ids) == text.encode()


@settings(max_examples=100)
@given(st.lists(st.sampled_from(["<|mask|>", "<|endoftext|>", "<|pad|>", " ", "the", "\r\n", "Ġ", "é"])).map("".join))
def test_special_names_and_byte_stand_ins_in_a_text_are_text(bpe, text):
    ids = bpe.encode(text)
    assert not np.isin(ids, [bpe.mask_id, bpe.eos_id, bpe.pad_id]).any()
    assert bpe.decode(ids) == text
    assert bpe.token_bytes(ids).sum() == len(text.encode())


def test_bpe_has_the_size_asked_for_and_specials_last(bpe):
    assert (bpe.vocab_size, bpe.mask_id, bpe.eos_id, bpe.pad_id) == (285, 282, 283, 284)
    assert bpe.lossless
    np.testing.assert_array_equal(bpe.token_bytes([282, 283, 284]), [0, 0, 0])
    assert len(bpe.encode(TEXTS[0])) < len(TEXTS[0]) / 2


def test_bpe_batch_is_one_by_one(bpe):
    for one, many in zip(map(bpe.encode, TEXTS), bpe.encode_batch(TEXTS), strict=True):
        np.testing.assert_array_equal(one, many)
    assert bpe.encode_batch([]) == []


def test_bpe_shows_specials_and_pieces(bpe):
    ids = [*bpe.encode("the"), bpe.mask_id, *bpe.encode(" cat"), bpe.eos_id]
    assert bpe.decode(ids) == "the cat"
    assert bpe.decode(ids, show_special=True) == "the<|mask|> cat<|endoftext|>"
    assert bpe.token_text(bpe.encode("\n")[0]) == "↵"
    assert bpe.token_text(bpe.mask_id) == "<|mask|>"
    assert "".join(bpe.token_text(i) for i in bpe.encode(" cat")) == " cat"


def test_bpe_survives_saving(bpe, tmp_path):
    bpe.save(tmp_path / "tokenizer.json")
    loaded = make_tokenizer(str(tmp_path / "tokenizer.json"), lambda: pytest.fail("the text is not needed"))
    text = "the cat <|mask|> é"
    np.testing.assert_array_equal(loaded.encode(text), bpe.encode(text))
    assert (loaded.vocab_size, loaded.mask_id, loaded.eos_id, loaded.pad_id) == (285, 282, 283, 284)
    loaded.save(tmp_path / "again.json")
    assert (tmp_path / "again.json").read_bytes() == (tmp_path / "tokenizer.json").read_bytes()


def test_bpe_training_is_deterministic_across_processes(bpe, tmp_path):
    code = ("import sys; from mdlm_jax.data.subword import train_bpe; "
            f"train_bpe({TEXTS!r}, 285).save(sys.argv[1])")
    subprocess.run([sys.executable, "-c", code, str(tmp_path / "other.json")], check=True)
    bpe.save(tmp_path / "own.json")
    assert (tmp_path / "other.json").read_bytes() == (tmp_path / "own.json").read_bytes()


def test_bpe_of_a_small_text_has_fewer_ids():
    whole = subword.train_bpe(TEXTS, 5000)
    assert 259 < whole.vocab_size < 5000
    assert subword.train_bpe(TEXTS, whole.vocab_size - 1).vocab_size == whole.vocab_size - 1
    with pytest.raises(ConfigError, match="data.tokenizer='bpe:300': .* no pair of bytes to merge"):
        subword.train_bpe(["abcdef"], 300)


def test_bpe_training_reads_a_bounded_amount(monkeypatch):
    monkeypatch.setattr(subword, "TRAINING_BYTES", 100)
    read = []

    def texts():
        for i in range(10):
            read.append(i)
            yield "ab" * 20

    subword.train_bpe(texts(), 262)
    assert read == [0, 1, 2]


def byte_level_file(tmp_path, **changes):
    tokenizer = hf.Tokenizer(hf.models.BPE())
    tokenizer.pre_tokenizer = hf.pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = hf.decoders.ByteLevel()
    trainer = hf.trainers.BpeTrainer(vocab_size=300, show_progress=False, special_tokens=changes.pop("special", []),
                                     initial_alphabet=hf.pre_tokenizers.ByteLevel.alphabet())
    tokenizer.train_from_iterator(TEXTS, trainer=trainer)
    spec = json.loads(tokenizer.to_str())
    for key, value in changes.items():
        spec[key] = spec[key] | value if isinstance(value, dict) and isinstance(spec[key], dict) else value
    (tmp_path / "given.json").write_text(json.dumps(spec))
    return tmp_path / "given.json"


@pytest.mark.parametrize(("names", "found"), [
    (["[MASK]", "[SEP]", "[PAD]"], ("[MASK]", "[SEP]", "[PAD]")),
    (["<mask>", "</s>", "<pad>"], ("<mask>", "</s>", "<pad>")),
    (["<|mdm_mask|>", "<|endoftext|>", "<|padding|>"], ("<|mdm_mask|>", "<|endoftext|>", "<|padding|>")),
])
def test_given_file_has_its_specials_found_by_name(names, found, tmp_path):
    tokenizer = load_tokenizer(byte_level_file(tmp_path, special=names))
    ids = [tokenizer.mask_id, tokenizer.eos_id, tokenizer.pad_id]
    assert ids == [0, 1, 2]
    assert tuple(tokenizer.token_text(i) for i in ids) == found
    assert tokenizer.vocab_size == 300
    assert tokenizer.lossless


def test_given_file_without_specials_gets_new_ids_at_the_end(tmp_path):
    tokenizer = load_tokenizer(byte_level_file(tmp_path, special=["</s>"]))
    assert (tokenizer.eos_id, tokenizer.mask_id, tokenizer.pad_id, tokenizer.vocab_size) == (0, 300, 300, 301)
    tokenizer.save(tmp_path / "saved.json")
    assert load_tokenizer(tmp_path / "saved.json").mask_id == 300


def test_gpt2_has_one_id_more_the_mask_which_is_padding_too_and_begins_with_its_end(tmp_path):
    """GPT-2's file: byte-level BPE, one special token, the last id."""
    spec = json.loads(byte_level_file(tmp_path).read_text())
    size = len(spec["model"]["vocab"])
    token = {"id": size, "content": "<|endoftext|>", "single_word": False, "lstrip": False, "rstrip": False,
             "normalized": True, "special": True}
    (tmp_path / "gpt2.json").write_text(json.dumps(spec | {"added_tokens": [token]}))
    tokenizer = load_tokenizer(tmp_path / "gpt2.json")
    ids = (tokenizer.vocab_size, tokenizer.mask_id, tokenizer.eos_id, tokenizer.bos_id, tokenizer.pad_id)
    assert ids == (size + 2, size + 1, size, size, size + 1)  # of GPT-2's 50257: 50258 ids, mask 50257, ends 50256
    assert tokenizer.lossless and tokenizer.token_bytes([size, size + 1]).tolist() == [0, 0]
    assert tokenizer.token_text(size + 1) == "<|mask|>"
    assert size not in tokenizer.encode("the <|endoftext|>") and not len(tokenizer.leading)


def bert_file(path):
    """A stand-in for bert-base-uncased: its special ids, its steps, few words."""
    special = {"[PAD]": 0, "[UNK]": 100, "[CLS]": 101, "[SEP]": 102, "[MASK]": 103}
    unused = {f"[unused{i}]": i for i in range(1, 100)}
    words = ["the", "cat", "sat", "##s", "on", "mat", ",", ".", *"abcdefghijklmnopqrstuvwxyz"]
    vocab = special | unused | {word: 104 + i for i, word in enumerate(words)}
    tokenizer = hf.Tokenizer(hf.models.WordPiece(vocab, unk_token="[UNK]"))
    tokenizer.normalizer = hf.normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = hf.pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = hf.decoders.WordPiece()
    tokenizer.post_processor = hf.processors.BertProcessing(("[SEP]", 102), ("[CLS]", 101))
    tokenizer.add_special_tokens(list(special))
    tokenizer.save(str(path))
    return len(vocab)


def test_bert_brings_all_its_special_tokens(tmp_path):
    size = bert_file(tmp_path / "bert.json")
    tokenizer = load_tokenizer(tmp_path / "bert.json")
    ids = (tokenizer.vocab_size, tokenizer.mask_id, tokenizer.bos_id, tokenizer.eos_id, tokenizer.pad_id)
    assert ids == (size, 103, 101, 102, 0)
    assert not tokenizer.lossless
    encoded = tokenizer.encode("The cats sat on the mat.")
    assert not np.isin(encoded, [0, 100, 101, 102, 103]).any()  # the post-processor's [CLS] and [SEP] stay away
    assert tokenizer.leading.tolist() == [101]
    assert tokenizer.decode(encoded) == "the cats sat on the mat."
    rows = pack(np.concatenate([encoded, [tokenizer.eos_id]] * 5), 8, "wrapped", tokenizer)
    assert (rows[:, 0] == 101).all() and (rows[:, -1] == 102).all() and rows.shape == (7, 8)


def test_given_file_with_gaps_in_its_ids_is_refused(tmp_path):
    tokenizer = hf.Tokenizer(hf.models.WordLevel({"a": 0, "b": 1, "c": 3}, unk_token="a"))
    tokenizer.save(str(tmp_path / "gaps.json"))
    with pytest.raises(ConfigError, match="ids have gaps"):
        load_tokenizer(tmp_path / "gaps.json")


def test_truncation_padding_and_dropout_of_a_given_file_are_switched_off(tmp_path):
    path = byte_level_file(
        tmp_path, model={"dropout": 0.9},
        truncation={"direction": "Right", "max_length": 2, "strategy": "LongestFirst", "stride": 0},
        padding={"strategy": {"Fixed": 50}, "direction": "Right", "pad_to_multiple_of": None, "pad_id": 0,
                 "pad_type_id": 0, "pad_token": "!"})
    tokenizer = load_tokenizer(path)
    ids = tokenizer.encode(TEXTS[0])
    assert tokenizer.decode(ids) == TEXTS[0]
    assert len(ids) < len(TEXTS[0])
    for _ in range(5):
        np.testing.assert_array_equal(tokenizer.encode_batch([TEXTS[0]])[0], ids)


@pytest.mark.parametrize("changes", [
    {"normalizer": {"type": "NFC"}}, {"normalizer": {"type": "Lowercase"}},
    {"pre_tokenizer": {"add_prefix_space": True}}, {"pre_tokenizer": {"type": "Whitespace"}}, {"decoder": None},
    {"added_tokens": [{"id": 300, "content": "!!", "single_word": False, "lstrip": True, "rstrip": False,
                       "normalized": False, "special": False}]},
])
def test_a_tokenizer_that_may_change_the_text_says_so(changes, tmp_path):
    assert not load_tokenizer(byte_level_file(tmp_path, **changes)).lossless


def test_ordinary_added_tokens_count_their_bytes(tmp_path):
    added = [{"id": 300, "content": "→→", "single_word": False, "lstrip": False, "rstrip": False, "normalized": False,
              "special": False}]
    tokenizer = load_tokenizer(byte_level_file(tmp_path, added_tokens=added))
    assert tokenizer.lossless
    text = "the →→ cat"
    ids = tokenizer.encode(text)
    assert 300 in ids
    assert tokenizer.token_bytes(ids).sum() == len(text.encode())
    assert tokenizer.decode(ids) == text


def test_word_pieces_and_byte_fallback_count_what_they_show(tmp_path):
    vocab = {"[MASK]": 0, "[SEP]": 1, "[PAD]": 2, "[UNK]": 3, "play": 4, "##ing": 5, "é": 6}
    tokenizer = hf.Tokenizer(hf.models.WordPiece(vocab, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = hf.pre_tokenizers.Whitespace()
    tokenizer.decoder = hf.decoders.WordPiece()
    tokenizer.save(str(tmp_path / "pieces.json"))
    pieces = load_tokenizer(tmp_path / "pieces.json")
    ids = pieces.encode("playing é")
    np.testing.assert_array_equal(ids, [4, 5, 6])
    np.testing.assert_array_equal(pieces.token_bytes(ids), [4, 3, 2])
    assert pieces.decode([4, 0, 5, 1]) == "playing"
    assert not pieces.lossless
    assert subword._other_piece("<0xE6>") == b"\xe6"
    assert subword._other_piece("▁the") == b" the"


def sentences(scheme=None):
    """SentencePiece as Metaspace of a scheme, or as Llama's older normaliser and decoder."""
    pieces = ["<unk>", "\u2581", *"fobar\n", "\u2581foo", "\u2581bar", "bar", "foo"]
    tokenizer = hf.Tokenizer(hf.models.Unigram([(piece, -5.0 / len(piece)) for piece in pieces], 0, False))
    if scheme:
        tokenizer.pre_tokenizer = hf.pre_tokenizers.Metaspace(prepend_scheme=scheme)
        tokenizer.decoder = hf.decoders.Metaspace(prepend_scheme=scheme)
    else:
        replace = hf.normalizers.Prepend("\u2581"), hf.normalizers.Replace(" ", "\u2581")
        tokenizer.normalizer = hf.normalizers.Sequence(list(replace))
        show = hf.decoders.Replace("\u2581", " "), hf.decoders.Fuse(), hf.decoders.Strip(" ", 1, 0)
        tokenizer.decoder = hf.decoders.Sequence(list(show))
    tokenizer.add_special_tokens(["<s>", "</s>", "<mask>", "<pad>"])
    return subword.SubwordTokenizer(tokenizer)


@pytest.mark.parametrize("scheme", ["always", "first", "never", None])
def test_what_stands_behind_another_text_gets_and_loses_no_space(scheme):
    tokenizer = sentences(scheme)
    for first in ("foo", "foo bar"):
        for second in ("bar", " bar", "\nbar foo", ""):
            ids = np.concatenate([tokenizer.encode(first), tokenizer.encode_next(second)])
            assert tokenizer.decode(ids) == first + second
            head = len(tokenizer.encode(first))
            assert tokenizer.decode_next(ids[head:], ids[:head]) == second
    answer = tokenizer.encode_next(" bar")
    assert tokenizer.decode_next(answer, np.array([tokenizer.encode("foo")[0], tokenizer.eos_id])) == tokenizer.decode(
        answer)  # a text begins after a special token
    assert tokenizer.decode_next(answer, np.zeros(0, np.int32)) == tokenizer.decode(answer)


@pytest.mark.parametrize(("scheme", "behind"), [("always", "\u2581bar"), ("first", "bar"), ("never", "bar")])
def test_special_names_are_read_as_the_library_reads_them(scheme, behind):
    tokenizer = sentences(scheme)
    ids, start = tokenizer.encode_special("foo<s>bar"), tokenizer.special["<s>"]
    assert [tokenizer._hf.id_to_token(i) for i in ids.tolist()][1:] == ["<s>", behind]
    assert start not in tokenizer.encode("foo<s>bar") and tokenizer.encode_next("foo<s>bar", special=True)[1] == start
