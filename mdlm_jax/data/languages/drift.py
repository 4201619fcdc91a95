"""A language whose parameters drift with time: a Markov chain moving in a straight line between two others.

A row is drawn at a time tau in [0, 1], and its law given tau is exact. `Drift` is the law at one tau, `DriftStream` the
language of a run: rows in the order of time, with tau running along them. A model trained on earlier rows and scored on
later ones shows what a temporal shift costs; `Drift.kl` is what it must cost a model that knows an early law only.
"""

import dataclasses
import functools
import math

import numpy as np

from mdlm_jax.config import ConfigError
from mdlm_jax.data.languages import base
from mdlm_jax.data.languages.base import Entropy
from mdlm_jax.data.languages.markov import MarkovChain


@dataclasses.dataclass(frozen=True, eq=False)
class Drift:
    """At time tau: initial and transition are (1 - tau) of `start`'s plus tau of `end`'s."""

    start: MarkovChain
    end: MarkovChain
    tau: float

    def __post_init__(self):
        if self.start.vocab_size != self.end.vocab_size:
            raise ValueError(f"start, end: have {self.start.vocab_size} and {self.end.vocab_size} symbols; give them "
                             "the same")
        if not 0.0 <= self.tau <= 1.0:
            raise ConfigError(f"tau={self.tau}: must lie in [0, 1]")

    @classmethod
    def random(cls, tau: float = 0.0, vocab: int = 16, seed: int = 0, concentration: float = 0.2) -> "Drift":
        """Two independent random chains as the ends. ConfigError for an impossible parameter."""
        start = MarkovChain.random(vocab, 2 * seed, concentration)
        return cls(start, MarkovChain.random(vocab, 2 * seed + 1, concentration), tau)

    def at(self, tau: float) -> "Drift":
        """The same language at another time. ConfigError outside [0, 1]."""
        return dataclasses.replace(self, tau=tau)

    @functools.cached_property
    def chain(self) -> MarkovChain:
        """The Markov chain that holds at `tau`."""
        initial = (1.0 - self.tau) * self.start.initial + self.tau * self.end.initial
        return MarkovChain(initial, (1.0 - self.tau) * self.start.transition + self.tau * self.end.transition)

    @property
    def vocab_size(self) -> int:
        return self.start.vocab_size

    def sample(self, rng: np.random.Generator, num: int, length: int) -> np.ndarray:
        """`num` rows drawn at `tau`, int32 [num, length]."""
        return self.chain.sample(rng, num, length)

    def log_prob(self, tokens: np.ndarray) -> np.ndarray:
        """Exact log p(row | tau) in nats, float64 [num]."""
        return self.chain.log_prob(tokens)

    def entropy(self, length: int) -> Entropy:
        """Exact entropy of a row at `tau`."""
        return self.chain.entropy(length)

    def kl(self, other: "Drift", length: int) -> float:
        """Exact KL(self || other) of a row in nats, each at its own tau."""
        return self.chain.kl(other.chain, length)

    def conditional_log_probs(self, tokens: np.ndarray, visible: np.ndarray) -> np.ndarray:
        """Exact log p(x_i = v | visible, tau), float64 [num, length, V]."""
        return self.chain.conditional_log_probs(tokens, visible)


_ROWS_STREAM = 0x6D646C6D  # the second word of the key of the rows' random numbers; the first is the seed
_BLOCK = 4096  # rows drawn together
_GOLDEN = (math.sqrt(5) - 1) / 2
_NUMBERS = 1 << 22  # alive at once in an entropy


@dataclasses.dataclass(frozen=True, eq=False)
class DriftStream:
    """R rows in the order of time. Row i is drawn at tau_i = first + (last - first) i / R, whatever was drawn before.

    Deterministic, and seekable in O(1): the random numbers of a row are a function of (seed, i), by a counter-based
    generator (Philox; Salmon et al. 2011), so any stretch of the stream costs its own rows and no more.

    Attributes:
      start, end: the chains at tau 0 and tau 1.
      first, last: tau of row 0, and the one that row R would have; equal for a language that stands still.
      num_rows: R, or 0 to leave it to whoever draws.
      seed: of the rows' random numbers.
      mixed: times are spread evenly over the period instead, the same everywhere in the stream: those of a golden-ratio
        sequence, first + (last - first) frac(i (sqrt(5) - 1) / 2). A text of one period, to be measured on others.
    """

    start: MarkovChain
    end: MarkovChain
    first: float = 0.0
    last: float = 1.0
    num_rows: int = 0
    seed: int = 0
    mixed: bool = False

    def __post_init__(self):
        for name in ("first", "last"):
            if not 0.0 <= getattr(self, name) <= 1.0:
                raise ConfigError(f"{name}={getattr(self, name)}: is a time and must lie in [0, 1]")
        if self.num_rows < 0 or self.num_rows == 1:
            raise ConfigError(f"rows={self.num_rows}: must be at least 2, or 0 for as many as fill a run")

    @classmethod
    def random(
        cls, first: float = 0.0, last: float = 1.0, rows: int = 0, vocab: int = 16, seed: int = 0,
        concentration: float = 0.2, mixed: int = 0,
    ) -> "DriftStream":
        """Between the two chains of `Drift.random`. ConfigError for an impossible parameter."""
        if mixed not in (0, 1):
            raise ConfigError(f"mixed={mixed}: must be 0, rows in the order of time, or 1, all times everywhere")
        ends = Drift.random(0.0, vocab, seed, concentration)
        return cls(ends.start, ends.end, first, last, rows, seed, bool(mixed))

    @property
    def vocab_size(self) -> int:
        return self.start.vocab_size

    def at(self, tau: float) -> Drift:
        """The law of a row at one time."""
        return Drift(self.start, self.end, tau)

    def times(self, index: np.ndarray, num_rows: int) -> np.ndarray:
        """tau of the rows ``index`` of a stream of ``num_rows``, float64 [num]. ValueError beyond its ends."""
        index = np.asarray(index, np.int64)
        outside = (index < 0) | (index >= num_rows)
        if outside.any():
            raise ValueError(f"index: holds row {index[outside][0]}; rows must lie in 0..{num_rows - 1}")
        share = index * _GOLDEN % 1.0 if self.mixed else index / num_rows
        return self.first + (self.last - self.first) * share

    def rows(self, start: int, count: int, num_rows: int, length: int) -> np.ndarray:
        """Rows start .. start + count - 1 of a stream of ``num_rows``, int32 [count, length]."""
        base.check_shape(count, length)
        times = self.times(np.arange(start, start + count), num_rows)
        pieces = [self._draw(start + i, times[i : i + _BLOCK], length) for i in range(0, count, _BLOCK)]
        return np.concatenate(pieces) if pieces else np.empty((0, length), np.int32)

    def _draw(self, start: int, tau: np.ndarray, length: int) -> np.ndarray:
        counters = -(-length // 4)  # each gives four numbers
        key = np.array([self.seed % 2**64, _ROWS_STREAM], np.uint64)
        generator = np.random.Generator(np.random.Philox(key=key, counter=start * counters))
        uniform = generator.random((len(tau), 4 * counters))
        tokens = np.empty((len(tau), length), np.int32)
        tokens[:, 0] = base.invert(uniform[:, 0], _between(self.start.initial, self.end.initial, tau[:, None]))
        for i in range(1, length):
            now = tokens[:, i - 1]
            laws = _between(self.start.transition[now], self.end.transition[now], tau[:, None])
            tokens[:, i] = base.invert(uniform[:, i], laws)
        return tokens

    def log_prob(self, tokens: np.ndarray, tau: np.ndarray) -> np.ndarray:
        """Exact log p(row | its own time) in nats, float64 [num]; ``tau`` is [num]."""
        tokens, tau = base.check_tokens(tokens, self.vocab_size), self._check_times(tau, len(tokens))
        first = _between(self.start.initial[tokens[:, 0]], self.end.initial[tokens[:, 0]], tau)
        pair = tokens[:, :-1], tokens[:, 1:]
        steps = _between(self.start.transition[pair], self.end.transition[pair], tau[:, None])
        return base.safe_log(first) + base.safe_log(steps).sum(-1)

    def entropy(self, tau: np.ndarray, length: int) -> Entropy:
        """The mean over ``tau`` [num] of the exact entropy of a row at that time, in nats.

        It is what rows of these times cost one who knows the language and their times, and so a floor for everybody.
        """
        base.check_shape(0, length)
        tau = self._check_times(tau, len(tau))
        block = max(1, _NUMBERS // self.vocab_size**2)
        total = sum(self._entropies(tau[i : i + block], length).sum() for i in range(0, len(tau), block))
        return Entropy(float(total / len(tau)), 0.0)

    def _entropies(self, tau: np.ndarray, length: int) -> np.ndarray:
        """[num]: H(x_0) + sum_i sum_s p(x_{i-1} = s) H(transition[s]), all at tau."""
        transition = _between(self.start.transition, self.end.transition, tau[:, None, None])
        marginal = _between(self.start.initial, self.end.initial, tau[:, None])
        total, each = base.entropy_of(marginal), base.entropy_of(transition)
        for _ in range(1, length):
            total = total + (marginal * each).sum(-1)
            marginal = np.einsum("ns,nst->nt", marginal, transition)
        return total

    def _check_times(self, tau: np.ndarray, num: int) -> np.ndarray:
        tau = np.asarray(tau, np.float64)
        if tau.shape != (num,) or not ((tau >= 0) & (tau <= 1)).all():
            raise ValueError(f"tau of shape {list(tau.shape)}: must be one time in [0, 1] for each of {num} rows")
        return tau


def _between(start: np.ndarray, end: np.ndarray, tau: np.ndarray) -> np.ndarray:
    return (1.0 - tau) * start + tau * end
