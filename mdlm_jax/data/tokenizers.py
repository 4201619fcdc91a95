"""Text to token ids and back: bytes, text8's characters, byte-pair encoding, a given ``tokenizer.json``, or the bare
ids of a language.

Every tokenizer knows its special ids, which stand for no text: ``mask_id``, ``eos_id`` (end of a document), ``pad_id``
and ``bos_id``. Codes of images have the mask alone, and None for the others. Text never produces them: a literal
``<|mask|>`` in a document is encoded like any other characters.
"""

import abc
import json
import re
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mdlm_jax.config import ConfigError

MASK, EOS, PAD = "<|mask|>", "<|endoftext|>", "<|pad|>"
_KIND = "mdlm_jax_tokenizer"  # the key that tells our own small JSON from a Hugging Face one
_VISIBLE = {"\n": "↵", "\r": "␍", "\t": "⇥"}


class Tokenizer(abc.ABC):
    """Ids 0..vocab_size-1 and what each stands for.

    Attributes:
      vocab_size: number of ids, the special ones included.
      mask_id, eos_id: two different ids.
      pad_id: another, or ``mask_id`` itself in a vocabulary without padding: clean rows hold no mask.
      bos_id: what a wrapped row begins with; ``eos_id`` in a vocabulary without one.
      lossless: whether decode(encode(text)) == text for every text, which makes ``token_bytes`` exact:
        token_bytes(encode(text)).sum() == len(text.encode()). Only then are bits per byte a true figure.
      leading: ids that the tokenizer's own template puts before a text, int32 [n]; `encode` does not.
      separator: what stands between two tokens where they are shown.
    """

    lossless = True
    separator = ""
    leading: np.ndarray = np.zeros(0, np.int32)
    eos_id: int | Any  # None where it has none, here and below
    pad_id: int | Any
    bos_id: int | Any

    def __init__(self, pieces: Sequence[bytes], special: dict[int, str], mask_id: int, eos_id: int | None,
                 pad_id: int | None, bos_id: int | None = None):
        """``pieces``: the UTF-8 bytes of each id, b"" for special ones. ``special``: the names of those."""
        self.vocab_size, self.mask_id, self.eos_id, self.pad_id = len(pieces), mask_id, eos_id, pad_id
        self.bos_id = eos_id if bos_id is None else bos_id
        self._pieces, self._special = list(pieces), dict(special)
        self._num_bytes = np.array([len(piece) for piece in self._pieces], np.int32)

    def __repr__(self) -> str:
        ids = ", ".join(f"{name}={getattr(self, name)}" for name in ("vocab_size", "mask_id", "eos_id", "pad_id"))
        return f"{type(self).__name__}({ids})"

    @property
    def special(self) -> dict[str, int]:
        """Ids of the special tokens by their names."""
        return {name: i for i, name in self._special.items()}

    @abc.abstractmethod
    def encode(self, text: str) -> np.ndarray:
        """Token ids of the text, int32 [n], no special ones among them."""

    @abc.abstractmethod
    def save(self, path: str | Path) -> None:
        """Writes the JSON file that ``load_tokenizer`` reads."""

    def encode_batch(self, texts: Sequence[str]) -> list[np.ndarray]:
        """``encode`` of each text."""
        return [self.encode(text) for text in texts]

    def encode_special(self, text: str) -> np.ndarray:
        """``encode``, but the names of special ids in the text stand for those ids, as chat templates want it."""
        ids = self.special
        parts = re.split(f"({'|'.join(map(re.escape, sorted(ids, key=len, reverse=True)))})", text)
        pieces = [np.array([ids[part]], np.int32) if part in ids else self.encode(part) for part in parts if part]
        return np.concatenate([np.zeros(0, np.int32), *pieces])

    def encode_next(self, text: str, special: bool = False) -> np.ndarray:
        """``encode`` (or ``encode_special``) of a text that stands behind others, and is given no space before it."""
        return self.encode_special(text) if special else self.encode(text)

    def decode_next(self, ids, before) -> str:
        """``decode`` of ids [n] that stand behind the ids ``before`` [m], with the space that is between them."""
        del before
        return self.decode(ids)

    def decode(self, ids, show_special: bool = False) -> str:
        """Text of integer ids [n]; bytes that are not UTF-8 become U+FFFD. Special ids are left out or named."""
        if not show_special:
            return self.decode_bytes(ids).decode(errors="replace")
        names = {i: name.encode() for i, name in self._special.items()}
        return b"".join(names.get(i, self._pieces[i]) for i in self._checked(ids).tolist()).decode(errors="replace")

    def decode_bytes(self, ids) -> bytes:
        """The bytes that ids [n] stand for, cut characters included: as many as token_bytes(ids).sum()."""
        return b"".join([self._pieces[i] for i in self._checked(ids).tolist()])

    def token_text(self, token_id: int) -> str:
        """A printable form of one token for pictures: line end as ``↵``, stray byte as ``\\xff``, specials by name."""
        (token_id,) = self._checked([token_id]).tolist()
        return self._special.get(token_id) or _printable(self._pieces[token_id])

    def same_as(self, other: "Tokenizer") -> bool:
        """Whether every id stands for the same in both."""
        return (type(self), self._pieces, self._special) == (type(other), other._pieces, other._special)

    def token_bytes(self, ids) -> np.ndarray:
        """How many UTF-8 bytes of text each id stands for, int32 in the shape of ``ids``; 0 for special ids."""
        return self._num_bytes[self._checked(ids)]

    def _checked(self, ids) -> np.ndarray:
        ids = np.asarray(ids, dtype=np.int64) if np.size(ids) == 0 else np.asarray(ids)
        if not np.issubdtype(ids.dtype, np.integer):
            raise ValueError(f"token ids: must be integers, not {ids.dtype}")
        outside = (ids < 0) | (ids >= self.vocab_size)
        if outside.any():
            raise ValueError(f"token id {ids[outside].flat[0]}: must lie in 0..{self.vocab_size - 1}")
        return ids


class ByteTokenizer(Tokenizer):
    """UTF-8 bytes as ids 0..255, then mask 256, end of document 257, padding 258."""

    def __init__(self):
        pieces = [bytes([value]) for value in range(256)] + [b""] * 3
        super().__init__(pieces, {256: MASK, 257: EOS, 258: PAD}, 256, 257, 258)

    def encode(self, text):
        return np.frombuffer(text.encode(), np.uint8).astype(np.int32)

    def save(self, path):
        Path(path).write_text(json.dumps({_KIND: "byte"}))


class Text8Tokenizer(Tokenizer):
    """[CLS], [SEP], [BOS], [EOS], [MASK], [PAD], [RESERVED], [UNK] as ids 0..7, then a..z and the space: 35 ids.

    The ids are MDLM's (arXiv 2406.07524). It makes capitals small and everything else [UNK]; here a character that
    text8 does not have is refused, so that decode(encode(text)) == text and bits per character stay true.
    """

    _ALPHABET = "abcdefghijklmnopqrstuvwxyz "
    _SPECIAL = ("[CLS]", "[SEP]", "[BOS]", "[EOS]", "[MASK]", "[PAD]", "[RESERVED]", "[UNK]")

    def __init__(self):
        pieces = [b""] * len(self._SPECIAL) + [c.encode() for c in self._ALPHABET]
        super().__init__(pieces, dict(enumerate(self._SPECIAL)), mask_id=4, eos_id=3, pad_id=5, bos_id=2)
        self._id_of_byte = np.full(256, -1, np.int32)
        self._id_of_byte[[ord(c) for c in self._ALPHABET]] = np.arange(len(self._SPECIAL), self.vocab_size)

    def encode(self, text):
        ids = self._id_of_byte[np.frombuffer(text.encode(), np.uint8)]
        if (ids < 0).any():
            odd = next(c for c in text if c not in self._ALPHABET)
            raise ConfigError(f"data.tokenizer='text8': knows a to z and the space, and a text holds {odd!r}; clean "
                              "the text as text8 is, or choose another tokenizer")
        return ids

    def save(self, path):
        Path(path).write_text(json.dumps({_KIND: "text8"}))


class LanguageTokenizer(Tokenizer):
    """The ids of an oracle language, written as numbers ("3 1 4"), then mask, end of document and padding.

    Its tokens stand for no text, so ``token_bytes`` is 0 and bits per byte do not exist.
    """

    lossless = False
    separator = " "
    _what = "a language's tokens"

    def __init__(self, size: int):
        names = {size: MASK, size + 1: EOS, size + 2: PAD}
        super().__init__([b""] * (size + 3), names, size, size + 1, size + 2)

    def encode(self, text):
        try:
            ids = [int(word) for word in text.split()]
        except ValueError:
            raise ValueError(f"{text!r}: {self._what} are written as numbers, as in '3 1 4'") from None
        if not all(0 <= i < self.mask_id for i in ids):
            raise ValueError(f"{text!r}: {self._what} must lie in 0..{self.mask_id - 1}")
        return np.array(ids, np.int32)

    def decode(self, ids, show_special=False):
        ids = self._checked(ids).tolist()
        return self.separator.join(self.token_text(i) for i in ids if show_special or i not in self._special)

    def token_text(self, token_id):
        (token_id,) = self._checked([token_id]).tolist()
        return self._special.get(token_id, str(token_id))

    def save(self, path):
        Path(path).write_text(json.dumps({_KIND: "language", "size": self.mask_id}))


class CodeTokenizer(LanguageTokenizer):
    """The codes of images, written as numbers, then the mask and nothing else: images neither end nor are padded."""

    _what = "codes"

    def __init__(self, size: int):
        Tokenizer.__init__(self, [b""] * (size + 1), {size: MASK}, size, None, None)

    def save(self, path):
        Path(path).write_text(json.dumps({_KIND: "codes", "size": self.mask_id}))


def load_tokenizer(path: str | Path) -> Tokenizer:
    """Reads what ``save`` wrote, or the ``tokenizer.json`` of a Hugging Face fast tokenizer (see ``SubwordTokenizer``).

    Raises:
      ConfigError: there is no such file, or it is not a tokenizer.
    """
    path = Path(path).expanduser() if isinstance(path, str) else path
    if not path.is_file():
        others = "choose byte, text8, bpe:VOCAB_SIZE or a tokenizer.json"
        hint = "name the tokenizer.json in it" if path.is_dir() else others
        raise ConfigError(f"tokenizer {str(path)!r}: is not a file; {hint}")
    try:
        text = path.read_text(encoding="utf-8")
        spec = json.loads(text)
    except ValueError as error:
        raise ConfigError(f"tokenizer {str(path)!r}: is not JSON ({error}); choose a tokenizer.json") from None
    match spec:
        case {"model": dict()}:
            from mdlm_jax.data.subword import SubwordTokenizer

            return SubwordTokenizer.from_json(text, str(path))
        case {"mdlm_jax_tokenizer": "byte"}:
            return ByteTokenizer()
        case {"mdlm_jax_tokenizer": "text8"}:
            return Text8Tokenizer()
        case {"mdlm_jax_tokenizer": "language", "size": int(size)} if size > 0:
            return LanguageTokenizer(size)
        case {"mdlm_jax_tokenizer": "codes", "size": int(size)} if size > 0:
            return CodeTokenizer(size)
    raise ConfigError(f"tokenizer {str(path)!r}: is neither a Hugging Face tokenizer.json nor one of ours; "
                      "choose another file")


_BUILT_IN = {"byte": ByteTokenizer, "text8": Text8Tokenizer}


def is_file(spec: str) -> bool:
    """Whether ``data.tokenizer`` names a file, neither built in nor trained on the text."""
    return spec not in _BUILT_IN and not spec.startswith("bpe:")


def make_tokenizer(spec: str, texts: Callable[[], Iterable[str]]) -> Tokenizer:
    """The tokenizer that ``data.tokenizer`` names; ``texts`` gives the training split, read only to train one.

    Raises:
      ConfigError: there is no such file, or the text is too small for that vocabulary.
    """
    if spec in _BUILT_IN:
        return _BUILT_IN[spec]()
    if spec.startswith("bpe:"):
        from mdlm_jax.data.subword import train_bpe

        return train_bpe(texts(), int(spec.removeprefix("bpe:")))
    return load_tokenizer(spec)


def _printable(piece: bytes) -> str:
    try:
        text = piece.decode()
    except UnicodeDecodeError:
        return "".join(chr(value) if 32 <= value < 127 else f"\\x{value:02x}" for value in piece)
    return "".join(_VISIBLE.get(c) or (c if c.isprintable() else c.encode("unicode_escape").decode()) for c in text)
