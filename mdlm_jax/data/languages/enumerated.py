"""Languages of one length whose rows can all be written down: everything about them is exact by enumeration.

Tokens that belong together, which parallel decoding pulls apart (ParallelBench, arXiv 2510.04767): drawn at once from
their own laws, rows cost the total correlation C = sum_i H(x_i) - H(x).

    shuffle    all orders of n symbols                            C = n ln n - ln n!
    replace    one 1 among n - 1 zeros                            C = (n - 1) ln(n / (n - 1))
    parity     n bits with an even sum                            C = ln 2
    latin      squares of 4 x 4 with every symbol once in each row and column: 576, C = 16 ln 4 - ln 576
    sudoku     those with every symbol once in each 2 x 2 box too: 288, C = 16 ln 4 - ln 288
"""

import dataclasses
import itertools

import numpy as np

from mdlm_jax.config import ConfigError
from mdlm_jax.data.languages import base
from mdlm_jax.tasks.squares import squares

MOST_ROWS = 1 << 17
_BLOCK = 1 << 24  # comparisons alive at once


@dataclasses.dataclass(frozen=True, eq=False)
class Enumerated:
    """p(rows[r]) = law[r].

    Attributes:
      rows: int64 [R, L], each once, of symbols 0..vocab_size-1. ``law``: float64 [R].
      given: tokens at the beginning of a row that are a prompt for the others; 0: none.
    """

    rows: np.ndarray
    law: np.ndarray
    vocab_size: int
    given: int = 0

    def __post_init__(self):
        rows = np.array(base.check_tokens(self.rows, self.vocab_size))
        if len(rows) > MOST_ROWS or len(np.unique(rows, axis=0)) < len(rows):
            raise ValueError(f"rows: {len(rows)}, which must be distinct and at most {MOST_ROWS}")
        rows.flags.writeable = False
        object.__setattr__(self, "rows", rows)
        object.__setattr__(self, "law", base.check_law("law", self.law, (len(rows),)))

    @classmethod
    def uniform(cls, rows, vocab_size: int, given: int = 0) -> "Enumerated":
        """All rows alike."""
        rows = np.array(list(rows))
        return cls(rows, np.full(len(rows), 1 / len(rows)), vocab_size, given)

    @classmethod
    def shuffle(cls, size: int = 6) -> "Enumerated":
        """Rows of one length: all orders of 0..size-1."""
        _in_range("size", size, 2, 8)
        return cls.uniform(itertools.permutations(range(size)), size)

    @classmethod
    def replace(cls, size: int = 8) -> "Enumerated":
        """Rows of one length: a 1 anywhere among zeros."""
        _in_range("size", size, 2, 512)
        return cls.uniform(np.eye(size, dtype=np.int64), 2)

    @classmethod
    def parity(cls, size: int = 6) -> "Enumerated":
        """Rows of one length: bits with an even sum."""
        _in_range("size", size, 2, 16)
        bits = np.array(list(itertools.product(range(2), repeat=size)))
        return cls.uniform(bits[bits.sum(1) % 2 == 0], 2)

    @classmethod
    def latin(cls) -> "Enumerated":
        """Rows of 16: the 576 Latin squares of order 4, row by row."""
        return cls.uniform(_cells(boxes=False), 4)

    @classmethod
    def sudoku(cls) -> "Enumerated":
        """Rows of 16: the 288 Sudokus of order 4, row by row."""
        return cls.uniform(_cells(boxes=True), 4)

    @property
    def length(self) -> int:
        return self.rows.shape[1]

    def sample(self, rng: np.random.Generator, num: int, length: int) -> np.ndarray:
        """`num` rows, int32 [num, length]. ConfigError for another length than the language's."""
        base.check_shape(num, length)
        if length != self.length:
            raise ConfigError(f"length={length}: rows of this language have {self.length} tokens; set data.length so")
        return self.rows[rng.choice(len(self.rows), num, p=self.law)].astype(np.int32)

    def log_prob(self, tokens: np.ndarray) -> np.ndarray:
        """Exact log p(row) in nats, float64 [num]."""
        tokens = base.check_tokens(tokens, self.vocab_size)
        agrees = self._agrees(tokens, np.ones(tokens.shape, bool))
        return base.safe_log(agrees @ self.law)

    def entropy(self, length: int) -> base.Entropy:
        """Exact."""
        base.check_shape(0, length)
        return base.Entropy(float(base.entropy_of(self.law)), 0.0)

    def correlation(self) -> float:
        """C = sum_i H(x_i | prompt) - H(x | prompt) in nats, exact: what a network without a mistake loses in KL by
        writing all that follows the prompt from one forward."""
        prompts = np.unique(self.rows[:, : self.given], axis=0, return_inverse=True)[1].reshape(-1)
        law = np.bincount(prompts, self.law)
        single = 0.0
        for i in range(self.given, self.length):
            pairs = np.bincount(prompts * self.vocab_size + self.rows[:, i], self.law)
            single += base.entropy_of(pairs) - base.entropy_of(law)
        return float(single - (base.entropy_of(self.law) - base.entropy_of(law)))

    def conditional_log_probs(self, tokens: np.ndarray, visible: np.ndarray) -> np.ndarray:
        """Exact log p(x_i = v | visible), float64 [num, length, V]."""
        tokens = base.check_tokens(tokens, self.vocab_size, visible)
        shares = self._agrees(tokens, visible) * self.law
        weights = np.stack([shares @ (self.rows == v) for v in range(self.vocab_size)], axis=-1)
        return base.log_normalize(base.safe_log(weights))

    def _agrees(self, tokens: np.ndarray, visible: np.ndarray) -> np.ndarray:
        """Whether the visible tokens are those of rows[r], bool [num, R]."""
        if tokens.shape[1] != self.length:
            raise ValueError(f"tokens: are rows of {tokens.shape[1]}; those of this language must have {self.length}")
        step = max(1, _BLOCK // self.rows.size)
        return np.concatenate([
            ((tokens[i : i + step, None] == self.rows) | ~visible[i : i + step, None]).all(-1)
            for i in range(0, max(len(tokens), 1), step)])


def _in_range(name: str, value: int, low: int, high: int) -> None:
    if not low <= value <= high:
        raise ConfigError(f"{name}={value}: must lie in [{low}, {high}]")


def _cells(boxes: bool) -> list[list[int]]:
    """The squares of `tasks.squares`, row by row."""
    return [[int(cell) for line in square for cell in line] for square in squares("0123", boxes)]
