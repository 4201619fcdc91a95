"""What a held-out bound is compared with: simple codes, in bits per byte of the held-out text.

Each is a proper code: its conditional laws sum to one, so its length is a fair rival of a model's bound. The counts
come from the training split only.

Unigram: p(c) = (n_c + 1/2) / (N + V/2), the Krichevsky-Trofimov estimate (1981) over all V symbols.
Bigram:  p(c | h) = (n_hc + T_h p(c)) / (n_h + T_h), Witten-Bell smoothing (Witten and Bell, 1991, method C) with the
unigram above behind it; n_h counts the training pairs that start with h, T_h the different symbols seen after h. A
context never seen uses p(c), as does the first symbol of the held-out text, which has no context.
xz:      the length of `xz -9`, container included, of the held-out text alone.
"""

import dataclasses
import lzma

import numpy as np

_CHUNK = 1 << 22  # symbols counted at once
_DENSE_PAIRS = 1 << 22  # up to this many possible pairs, a table of all of them is counted into


def unigram_bits(train: bytes, valid: bytes) -> float:
    """Bits per byte of `valid` under the byte frequencies of `train`. ValueError where either is empty."""
    return token_unigram_bits(_bytes(train), _bytes(valid), 256, len(valid))


def witten_bell_bigram_bits(train: bytes, valid: bytes) -> float:
    """Bits per byte of `valid` under the byte bigrams of `train`. ValueError where either is empty."""
    return token_bigram_bits(_bytes(train), _bytes(valid), 256, len(valid))


def xz_bits(valid: bytes) -> float:
    """Bits per byte of `valid` compressed on its own as by `xz -9`. ValueError where it is empty."""
    if not valid:
        raise ValueError("valid: is empty; give text to compress")
    return 8.0 * len(lzma.compress(valid, preset=9)) / len(valid)


def token_unigram_bits(train: np.ndarray, valid: np.ndarray, vocab_size: int, valid_bytes: int) -> float:
    """Bits per byte of the tokens `valid`, which stand for `valid_bytes` bytes, under the frequencies of `train`.

    Both are integers [num] in 0..vocab_size-1. ValueError for an empty split, a bad id or no bytes.
    """
    train, valid = _tokens("train", train, vocab_size), _tokens("valid", valid, vocab_size)
    return float(-np.log2(kt_unigram(train, vocab_size))[valid].sum()) / _positive(valid_bytes)


def token_bigram_bits(train: np.ndarray, valid: np.ndarray, vocab_size: int, valid_bytes: int) -> float:
    """As `token_unigram_bits`, under the Witten-Bell bigram."""
    model, valid = WittenBell.fit(train, vocab_size), _tokens("valid", valid, vocab_size)
    bits = -np.log2(model.unigram[valid[0]])
    for i in range(0, len(valid) - 1, _CHUNK):
        chunk = valid[i : i + _CHUNK + 1]
        bits -= np.log2(model.prob(chunk[:-1], chunk[1:])).sum()
    return float(bits) / _positive(valid_bytes)


def kt_unigram(tokens: np.ndarray, vocab_size: int) -> np.ndarray:
    """The Krichevsky-Trofimov unigram, float64 [V]."""
    counts = np.zeros(vocab_size, np.int64)
    for i in range(0, len(tokens), _CHUNK):
        counts += np.bincount(tokens[i : i + _CHUNK], minlength=vocab_size)
    return (counts + 0.5) / (len(tokens) + 0.5 * vocab_size)


@dataclasses.dataclass(frozen=True, eq=False)
class WittenBell:
    """A bigram with Witten-Bell smoothing; the seen pairs are kept sparse, sorted by key = h V + c."""

    unigram: np.ndarray  # p(c), float64 [V]
    keys: np.ndarray  # int64 [pairs]
    counts: np.ndarray  # n_hc, int64 [pairs]
    totals: np.ndarray  # n_h, int64 [V]
    types: np.ndarray  # T_h, int64 [V]

    @classmethod
    def fit(cls, tokens: np.ndarray, vocab_size: int) -> "WittenBell":
        """Counts the training tokens, integers [num] in 0..vocab_size-1."""
        tokens = _tokens("train", tokens, vocab_size)
        keys, counts = _count_pairs(tokens, vocab_size)
        contexts = keys // vocab_size
        totals = np.zeros(vocab_size, np.int64)
        np.add.at(totals, contexts, counts)
        return cls(kt_unigram(tokens, vocab_size), keys, counts, totals, np.bincount(contexts, minlength=vocab_size))

    def prob(self, previous: np.ndarray, tokens: np.ndarray) -> np.ndarray:
        """p(tokens | previous), float64, elementwise over two integer arrays [num] of one shape."""
        wanted = previous.astype(np.int64) * len(self.unigram) + tokens
        seen = np.zeros(wanted.shape, np.int64)
        if self.keys.size:
            at = np.minimum(np.searchsorted(self.keys, wanted), self.keys.size - 1)
            seen = np.where(self.keys[at] == wanted, self.counts[at], 0)
        backed_off = self.unigram[tokens]
        total, types = self.totals[previous], self.types[previous]
        return np.where(total > 0, (seen + types * backed_off) / np.maximum(total + types, 1), backed_off)


def _count_pairs(tokens: np.ndarray, vocab_size: int) -> tuple[np.ndarray, np.ndarray]:
    """The adjacent pairs that occur, as sorted keys h V + c, and how often."""
    if vocab_size**2 > _DENSE_PAIRS:
        return np.unique(tokens[:-1].astype(np.int64) * vocab_size + tokens[1:], return_counts=True)
    table = np.zeros(vocab_size**2, np.int64)
    for i in range(0, len(tokens) - 1, _CHUNK):
        chunk = tokens[i : i + _CHUNK + 1].astype(np.int64)
        table += np.bincount(chunk[:-1] * vocab_size + chunk[1:], minlength=vocab_size**2)
    keys = np.flatnonzero(table)
    return keys, table[keys]


def _bytes(text: bytes) -> np.ndarray:
    return np.frombuffer(text, np.uint8)


def _tokens(name: str, tokens: np.ndarray, vocab_size: int) -> np.ndarray:
    tokens = np.asarray(tokens)
    if tokens.ndim != 1 or not tokens.size or not np.issubdtype(tokens.dtype, np.integer):
        raise ValueError(f"{name}: must be a non-empty row of integers, not {tokens.dtype} {list(tokens.shape)}")
    if tokens.min() < 0 or tokens.max() >= vocab_size:
        raise ValueError(f"{name}: holds ids {tokens.min()}..{tokens.max()}; they must lie in 0..{vocab_size - 1}")
    return tokens


def _positive(valid_bytes: int) -> int:
    if valid_bytes <= 0:
        raise ValueError(f"valid_bytes={valid_bytes}: bits per byte need a held-out text of at least one byte")
    return valid_bytes
