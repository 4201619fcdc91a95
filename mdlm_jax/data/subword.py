"""Subword tokenizers of Hugging Face's ``tokenizers``: byte-level BPE trained on the spot, or a given file."""

import functools
import json
import re
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import tokenizers as hf

from mdlm_jax.config import ConfigError
from mdlm_jax.data.tokenizers import EOS, MASK, PAD, Tokenizer

TRAINING_BYTES = 1 << 26  # how much text the merges are counted on: the first 64 MiB
_MASK_NAMES = (MASK, "<|mdm_mask|>", "[MASK]", "<mask>")
_EOS_NAMES = (EOS, "<|end_of_text|>", "</s>", "<eos>", "[EOS]", "[SEP]")
_PAD_NAMES = (PAD, "<pad>", "[PAD]", "<|padding|>")
_BOS_NAMES = ("<|startoftext|>", "<|begin_of_text|>", "<s>", "<bos>", "[BOS]", "[CLS]")
_BEFORE = ("\n", "0", ".")  # what a text may stand behind; the first that it does not merge with is taken
_CONTEXT = 8  # tokens that are decoded before others, so that these do not begin a text


class SubwordTokenizer(Tokenizer):
    """A ``tokenizers.Tokenizer`` with its mask, end-of-document and padding ids.

    They are found by name, the first that exists of: ``<|mask|>``, ``<|mdm_mask|>``, ``[MASK]``, ``<mask>``;
    ``<|endoftext|>``, ``<|end_of_text|>``, ``</s>``, ``<eos>``, ``[EOS]``, ``[SEP]``; ``<|pad|>``, ``<pad>``,
    ``[PAD]``, ``<|padding|>``. Where none exists, the first name of its list is added with a new id after the last;
    for padding none is, and the mask's id serves (GPT-2: mask 50257 of 50258 ids, as in SEDD and MDLM). What begins a
    text is a special token ``<|startoftext|>``, ``<|begin_of_text|>``, ``<s>``, ``<bos>``, ``[BOS]`` or ``[CLS]``, and
    without one the end of a document.

    No special token is ever added to a text or recognised in one; truncation, padding and BPE dropout are switched off.
    ``lossless`` holds for plain byte-level tokenizers (bpe:N, GPT-2, Llama 3). Others change the text (normalisation,
    lower case, unknown words); then ``token_bytes`` counts the bytes of the decoded pieces, which is not exact.
    """

    def __init__(self, tokenizer: hf.Tokenizer):
        self._hf = tokenizer
        self._hf.no_truncation()
        self._hf.no_padding()
        if getattr(self._hf.model, "dropout", None) is not None:
            self._hf.model.dropout = None
        self._hf.encode_special_tokens = True  # special names inside a text are text
        mask_id, eos_id = self._special_id(_MASK_NAMES), self._special_id(_EOS_NAMES)
        pad_id = self._special_id(_PAD_NAMES) if self._first(_PAD_NAMES) else mask_id
        spec = json.loads(self._hf.to_str())
        byte_level = '"ByteLevel"' in json.dumps(spec["decoder"])
        special = {t["id"]: t["content"] for t in spec["added_tokens"] if t["special"]}
        plain = {t["id"]: t["content"].encode() for t in spec["added_tokens"] if not t["special"]}
        vocab = self._hf.get_vocab(with_added_tokens=True)
        pieces = [b""] * (max(vocab.values()) + 1)  # an id that no token has stands for no text
        for token, i in vocab.items():
            if i not in special:
                pieces[i] = plain.get(i) or (_byte_level_piece(token) if byte_level else _other_piece(token))
        begins = {name: i for i, name in special.items()}
        bos_id = next((begins[name] for name in _BOS_NAMES if name in begins), None)
        super().__init__(pieces, special, mask_id, eos_id, pad_id, bos_id)
        self.lossless = _is_lossless(spec)
        self._byte_level = byte_level

    @classmethod
    def from_json(cls, text: str, label: str) -> "SubwordTokenizer":
        """From the text of a ``tokenizer.json``. ConfigError, naming ``label``, if the library cannot read it."""
        try:
            tokenizer = hf.Tokenizer.from_str(text)
        except Exception as error:  # the library raises nothing narrower for a damaged file
            raise ConfigError(f"tokenizer {label!r}: cannot be read ({error}); choose another one") from error
        return cls(tokenizer)

    def _first(self, names: tuple[str, ...]) -> str | None:
        return next((name for name in names if self._hf.token_to_id(name) is not None), None)

    def _special_id(self, names: tuple[str, ...]) -> int:
        name = self._first(names) or names[0]
        before = self._hf.get_vocab(with_added_tokens=True)
        self._hf.add_special_tokens([hf.AddedToken(name, normalized=False, special=True)])
        i = self._hf.token_to_id(name)
        assert i is not None  # it has just been added
        if name not in before and i in before.values():
            raise ConfigError(f"tokenizer.json: its ids have gaps, so {name} cannot be given the one after the last; "
                              "choose a tokenizer.json without gaps")
        return i

    def encode(self, text):
        return np.array(self._hf.encode(text, add_special_tokens=False).ids, np.int32)

    @functools.cached_property
    def leading(self) -> np.ndarray:  # type: ignore[override]  # what is cached can be set as well
        plain, whole = (self._hf.encode("0", add_special_tokens=add).ids for add in (False, True))
        return np.array(whole[: whole.index(plain[0])], np.int32)

    def encode_batch(self, texts):
        return [np.array(e.ids, np.int32) for e in self._hf.encode_batch_fast(list(texts), add_special_tokens=False)]

    def encode_special(self, text):
        return np.array(self._naming.encode(text, add_special_tokens=False).ids, np.int32)

    @functools.cached_property
    def _naming(self) -> hf.Tokenizer:
        """The same, reading the names of special tokens: it alone knows where its spaces go behind one."""
        found = hf.Tokenizer.from_str(self._hf.to_str())
        found.encode_special_tokens = False
        return found

    def encode_next(self, text, special=False):
        encode = self.encode_special if special else self.encode
        for before in () if self.lossless or not text else _BEFORE:
            head, whole = encode(before), encode(before + text)
            if (whole[: len(head)] == head).all():
                return whole[len(head) :]
        return encode(text)

    def decode_next(self, ids, before):
        """What is before the last special token does not count: after one a text begins."""
        before = np.asarray(before)
        last = np.flatnonzero(np.isin(before, list(self._special)))
        before = before[last[-1] + 1 if len(last) else 0 :][-_CONTEXT:]
        if self._byte_level or not len(before):
            return self.decode(ids)
        head, whole = self.decode(before), self.decode(np.concatenate([before, np.asarray(ids, before.dtype)]))
        return whole[len(head) :] if whole.startswith(head) else self.decode(ids)

    def decode(self, ids, show_special=False):
        if self._byte_level:
            return super().decode(ids, show_special)
        return self._hf.decode(self._checked(ids).tolist(), skip_special_tokens=not show_special)

    def save(self, path):
        Path(path).write_text(self._hf.to_str(), encoding="utf-8")


def train_bpe(texts: Iterable[str], vocab_size: int) -> SubwordTokenizer:
    """Byte-level BPE with at most ``vocab_size`` ids: 256 bytes, the merges, then mask, end of document and padding.

    The merges are counted on the first 64 MiB of the texts, and pairs met only once are not merged, so a small text
    gives fewer ids. The same texts give the same tokenizer. Any text survives: decode(encode(text)) == text.

    Raises:
      ConfigError: nothing in the texts is repeated, so there is no merge at all.
    """
    tokenizer = hf.Tokenizer(hf.models.BPE())
    tokenizer.pre_tokenizer = hf.pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = hf.decoders.ByteLevel()
    trainer = hf.trainers.BpeTrainer(vocab_size=vocab_size - 3, min_frequency=2, show_progress=False,
                                     initial_alphabet=hf.pre_tokenizers.ByteLevel.alphabet())
    tokenizer.train_from_iterator(_first_bytes(texts), trainer=trainer)
    if tokenizer.get_vocab_size() == 256:
        raise ConfigError(f"data.tokenizer='bpe:{vocab_size}': the training text has no pair of bytes to merge; use "
                          "data.tokenizer=byte, or give more text")
    tokenizer.add_special_tokens([hf.AddedToken(name, normalized=False, special=True) for name in (MASK, EOS, PAD)])
    return SubwordTokenizer(tokenizer)


def _first_bytes(texts: Iterable[str]) -> Iterator[str]:
    total = 0
    for text in texts:
        yield text
        total += len(text.encode())
        if total >= TRAINING_BYTES:
            return


def _byte_alphabet() -> dict[str, int]:
    """GPT-2's printable stand-in for each byte: itself where printable, else the next character from U+0100 on."""
    shown = [*range(33, 127), *range(161, 173), *range(174, 256)]
    hidden = [value for value in range(256) if value not in shown]
    return {chr(value): value for value in shown} | {chr(256 + n): value for n, value in enumerate(hidden)}


_BYTE_OF = _byte_alphabet()


def _byte_level_piece(token: str) -> bytes:
    if all(c in _BYTE_OF for c in token):
        return bytes(_BYTE_OF[c] for c in token)
    return token.encode()


def _other_piece(token: str) -> bytes:
    """A SentencePiece or WordPiece token: byte fall-back, the space mark, the continuation mark."""
    if match := re.fullmatch(r"<0x([0-9A-F]{2})>", token):
        return bytes.fromhex(match[1])
    return token.replace("\u2581", " ").removeprefix("##").encode()


def _is_lossless(spec: dict) -> bool:
    """Whether a tokenizer is plain byte-level BPE: every step keeps every byte. Unknown steps count as lossy."""
    split = spec["pre_tokenizer"] or {}
    steps = split.get("pretokenizers", [split])
    kept = all(step.get("type") == "ByteLevel" and not step["add_prefix_space"]
               or step.get("type") in ("Split", "Digits", "Punctuation") and step.get("behavior") != "Removed"
               for step in steps)
    model = spec["model"]
    whole = model["type"] == "BPE" and not model["continuing_subword_prefix"] and not model["end_of_word_suffix"]
    added = not any(token["lstrip"] or token["rstrip"] or token["normalized"]
                    for token in spec["added_tokens"] if not token["special"])
    return bool(spec["normalizer"] is None and kept and any(step.get("type") == "ByteLevel" for step in steps)
                and whole and all(c in model["vocab"] for c in _BYTE_OF) and added
                and (spec["decoder"] or {}).get("type") == "ByteLevel")
