"""A language with strong long-range ties: the second half of a row is a noisy, relabelled copy of the first.

With h = ceil(length / 2), positions 0..h-1 are a Markov chain, and position h + j is permutation[x_j] with probability
1 - noise, else one of the other V - 1 symbols uniformly. Given the first half, the copies are independent, each tied to
the one symbol h before it. In a row of odd length position h - 1 has no partner. Each length has its own law: a prefix
of a longer row is not a shorter row.
"""

import dataclasses

import numpy as np

from mdlm_jax.config import ConfigError
from mdlm_jax.data.languages import base, chain
from mdlm_jax.data.languages.markov import MarkovChain


@dataclasses.dataclass(frozen=True, eq=False)
class Copy:
    """p(x) = source(x_0 .. x_{h-1}) prod_j channel[x_j, x_{h+j}]; `permutation` is int64 [V]."""

    source: MarkovChain
    permutation: np.ndarray
    noise: float  # chance that a copied symbol is replaced by another

    def __post_init__(self):
        permutation = np.array(self.permutation, np.int64)
        if not np.array_equal(np.sort(permutation), np.arange(self.vocab_size)):
            raise ValueError(f"permutation: must hold each of 0..{self.vocab_size - 1} once")
        if not 0.0 <= self.noise <= 1.0:
            raise ConfigError(f"noise={self.noise}: must lie in [0, 1]")
        permutation.flags.writeable = False
        object.__setattr__(self, "permutation", permutation)

    @classmethod
    def random(cls, vocab: int = 16, noise: float = 0.05, seed: int = 0, concentration: float = 0.5) -> "Copy":
        """A chain with Dirichlet(concentration) rows and a random permutation. ConfigError if impossible."""
        source = MarkovChain.random(vocab, seed, concentration)
        return cls(source, np.random.default_rng((seed, 1)).permutation(vocab), noise)

    @classmethod
    def pairs(cls, vocab: int = 8, noise: float = 0.05) -> "Copy":
        """Uniform symbols and their noisy copies: nothing but pairs half a row apart. ConfigError if impossible."""
        if vocab < 2:
            raise ConfigError(f"vocab={vocab}: needs at least 2 symbols")
        source = MarkovChain(np.full(vocab, 1 / vocab), np.full((vocab, vocab), 1 / vocab))
        return cls(source, np.arange(vocab), noise)

    @property
    def vocab_size(self) -> int:
        return self.source.vocab_size

    @property
    def channel(self) -> np.ndarray:
        """p(copy | source symbol), float64 [V, V]."""
        table = np.full((self.vocab_size, self.vocab_size), self.noise / (self.vocab_size - 1))
        table[np.arange(self.vocab_size), self.permutation] = 1.0 - self.noise
        return table

    def sample(self, rng: np.random.Generator, num: int, length: int) -> np.ndarray:
        """`num` rows, int32 [num, length]; length >= 2."""
        base.check_shape(num, length, shortest=2)
        first = self.source.sample(rng, num, (length + 1) // 2)
        copied = self.permutation[first[:, : length // 2]]
        other = (copied + rng.integers(1, self.vocab_size, copied.shape)) % self.vocab_size
        second = np.where(rng.random(copied.shape) < self.noise, other, copied)
        return np.concatenate([first, second], axis=1).astype(np.int32)

    def log_prob(self, tokens: np.ndarray) -> np.ndarray:
        """Exact log p(row) in nats, float64 [num]."""
        tokens = base.check_tokens(tokens, self.vocab_size, shortest=2)
        first, second = self._halves(tokens)
        copied = base.safe_log(self.channel)[first[:, : second.shape[1]], second]
        return self.source.log_prob(first) + copied.sum(-1)

    def entropy(self, length: int) -> base.Entropy:
        """Exact: H(source, ceil(length/2)) + floor(length/2) H(channel row); every row has the same entropy."""
        base.check_shape(0, length, shortest=2)
        pairs = length // 2 * float(base.entropy_of(self.channel[0]))
        return base.Entropy(self.source.entropy((length + 1) // 2).value + pairs, 0.0)

    def conditional_log_probs(self, tokens: np.ndarray, visible: np.ndarray) -> np.ndarray:
        """Exact log p(x_i = v | visible), float64 [num, length, V].

        Forward-backward over the first half, where a visible copy is evidence about its source; a hidden copy is then
        its source's posterior sent through the channel.
        """
        tokens = base.check_tokens(tokens, self.vocab_size, visible, shortest=2)
        (first, second), (first_seen, second_seen) = self._halves(tokens), self._halves(visible)
        pairs = second.shape[1]
        evidence = np.where(first_seen[..., None], chain.one_hot_log(first, self.vocab_size), 0.0)
        copy_evidence = base.safe_log(self.channel).T[second]
        evidence[:, :pairs] += np.where(second_seen[..., None], copy_evidence, 0.0)
        source = base.log_normalize(chain.state_weights(self.source.initial, self.source.transition, evidence))
        copied = chain.log_matmul(source[:, :pairs].reshape(-1, self.vocab_size), self.channel)
        copied = base.log_normalize(copied.reshape(*second.shape, -1))
        copied = np.where(second_seen[..., None], chain.one_hot_log(second, self.vocab_size), copied)
        return np.concatenate([source, copied], axis=1)

    @staticmethod
    def _halves(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        middle = (x.shape[1] + 1) // 2
        return x[:, :middle], x[:, middle:]
