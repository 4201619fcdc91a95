"""A language whose parameters drift with time: a Markov chain moving in a straight line between two others.

A row is drawn at a time tau in [0, 1], and its law given tau is exact. A model trained on rows from early times and
scored on later ones shows what a temporal shift costs; `kl` is what it must cost a model that knows only the early law.
"""

import dataclasses
import functools

import numpy as np

from mdlm_jax.config import ConfigError
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
            raise ValueError(f"start has {self.start.vocab_size} symbols and end {self.end.vocab_size}; need the same")
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
