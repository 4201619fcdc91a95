"""What an oracle language is, and the few helpers that all of them share.

An oracle language draws rows of tokens from a law whose exact log-probability is known for any row, so a model's bound
can be compared with the true entropy and its predictions with the true conditionals. Everything is numpy float64.
"""

import dataclasses
from typing import Protocol

import numpy as np

ENTROPY_SAMPLES = 4096  # rows in a Monte-Carlo entropy
_ENTROPY_SEED = 20_240_607
_SUM_TOLERANCE = 1e-9
_FLOOR = 0.01  # uniform share of every random law


@dataclasses.dataclass(frozen=True)
class Entropy:
    """Entropy of one row: `value` in nats per sequence, and its standard error (0 where the value is exact)."""

    value: float
    stderr: float


class Language(Protocol):
    """A law over rows of `length` tokens with ids 0..vocab_size-1."""

    @property
    def vocab_size(self) -> int: ...

    def sample(self, rng: np.random.Generator, num: int, length: int) -> np.ndarray:
        """`num` independent rows, int32 [num, length]."""

    def log_prob(self, tokens: np.ndarray) -> np.ndarray:
        """Exact log p(row) in nats, float64 [num], -inf where impossible. ValueError for ids outside the vocabulary."""

    def entropy(self, length: int) -> Entropy:
        """Entropy of a row of `length` tokens, in nats."""

    def conditional_log_probs(self, tokens: np.ndarray, visible: np.ndarray) -> np.ndarray:
        """Exact log p(x_i = v | the visible tokens of the row) in nats, float64 [num, length, V].

        This is the Bayes-optimal denoiser of masked diffusion. `visible` is bool [num, length]; ids at hidden positions
        are ignored (they may be a mask id). At a visible position the answer is 0 for its token and -inf elsewhere.
        ValueError where the visible tokens of a row have probability zero.
        """


def check_shape(num: int, length: int, shortest: int = 1) -> None:
    """Refuses a shape that no row can have."""
    if num < 0 or length < shortest:
        raise ValueError(f"num={num}, length={length}: needs num >= 0 and length >= {shortest}")


def check_tokens(
    tokens: np.ndarray, vocab_size: int, visible: np.ndarray | None = None, shortest: int = 1
) -> np.ndarray:
    """`tokens` as int64 [num, length]; ids at hidden positions become 0. ValueError for a bad shape, dtype or id."""
    tokens = np.asarray(tokens)
    if tokens.ndim != 2 or not np.issubdtype(tokens.dtype, np.integer):
        raise ValueError(f"tokens: are {tokens.dtype} {list(tokens.shape)}; they must be integers [num, length]")
    num, length = tokens.shape
    check_shape(num, length, shortest)
    tokens = tokens.astype(np.int64)
    if visible is not None:
        if visible.shape != tokens.shape or visible.dtype != np.bool_:
            raise ValueError(f"visible: is {visible.dtype} {list(visible.shape)}; it must be bool {list(tokens.shape)}")
        tokens = np.where(visible, tokens, 0)
    outside = (tokens < 0) | (tokens >= vocab_size)
    if outside.any():
        raise ValueError(f"tokens: hold the id {tokens[outside][0]}; ids must lie in 0..{vocab_size - 1}")
    return tokens


def check_law(name: str, table: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """A read-only float64 copy of a table whose last axis is a probability distribution. ValueError if it is not."""
    table = np.array(table, np.float64)
    if table.shape != shape:
        raise ValueError(f"{name}: has shape {list(table.shape)}; it must be {list(shape)}")
    if not (np.all(table >= 0) and np.all(np.abs(table.sum(-1) - 1) <= _SUM_TOLERANCE)):
        raise ValueError(f"{name}: must hold probabilities that sum to one along its last axis")
    table.flags.writeable = False
    return table


def safe_log(x: np.ndarray) -> np.ndarray:
    """log x with log 0 = -inf and no warning."""
    with np.errstate(divide="ignore"):
        return np.log(x)


def log_sum_exp(x: np.ndarray, axis: int = -1) -> np.ndarray:
    """log of the sum of exp(x) over an axis; -inf where every term is -inf."""
    top = np.max(x, axis=axis, keepdims=True)
    top = np.where(np.isfinite(top), top, 0.0)
    return safe_log(np.sum(np.exp(x - top), axis=axis)) + np.squeeze(top, axis)


def log_normalize(x: np.ndarray) -> np.ndarray:
    """Log-weights as log-probabilities along the last axis. ValueError where no weight is positive."""
    total = log_sum_exp(x)
    if not np.isfinite(total).all():
        raise ValueError("visible: its tokens have probability zero in this language; show possible ones")
    return x - total[..., None]


def categorical(rng: np.random.Generator, laws: np.ndarray) -> np.ndarray:
    """One draw from each law, int64 [num]. `laws` is [num, V]; probability 0 is never drawn."""
    return invert(rng.random(len(laws)), laws)


def invert(uniform: np.ndarray, laws: np.ndarray) -> np.ndarray:
    """The symbols, int64 [num], at which the cumulative laws [num, V] pass the numbers ``uniform`` [num] in [0, 1)."""
    cumulative = np.cumsum(laws, axis=-1)
    cumulative /= cumulative[:, -1:]  # exactly 1 from the last possible symbol on
    return np.sum(uniform[:, None] >= cumulative[:, :-1], axis=-1)


def random_laws(rng: np.random.Generator, rows: int, size: int, concentration: float) -> np.ndarray:
    """[rows, size]: Dirichlet(concentration) rows, one hundredth of each made uniform so that nothing is impossible."""
    return (1.0 - _FLOOR) * rng.dirichlet(np.full(size, concentration), size=rows) + _FLOOR / size


def entropy_of(laws: np.ndarray) -> np.ndarray:
    """Entropy in nats of each law along the last axis, with 0 log 0 = 0."""
    return -np.sum(laws * np.log(np.where(laws > 0, laws, 1.0)), axis=-1)


def monte_carlo_entropy(language: Language, length: int, num: int = ENTROPY_SAMPLES) -> Entropy:
    """Mean of -log p over `num` rows drawn with a fixed seed of its own, and the standard error of that mean."""
    nats = -language.log_prob(language.sample(np.random.default_rng(_ENTROPY_SEED), num, length))
    return Entropy(float(nats.mean()), float(nats.std(ddof=1) / np.sqrt(num)))
