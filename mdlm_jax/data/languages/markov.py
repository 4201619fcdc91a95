"""A first-order Markov chain over the symbols themselves: everything about it has a closed form."""

import dataclasses

import numpy as np

from mdlm_jax.config import ConfigError
from mdlm_jax.data.languages import base, chain


@dataclasses.dataclass(frozen=True, eq=False)
class MarkovChain:
    """p(x) = initial[x_0] prod_i transition[x_{i-1}, x_i]; initial is float64 [V], transition [V, V]."""

    initial: np.ndarray
    transition: np.ndarray

    def __post_init__(self):
        size = len(self.initial)
        object.__setattr__(self, "initial", base.check_law("initial", self.initial, (size,)))
        object.__setattr__(self, "transition", base.check_law("transition", self.transition, (size, size)))

    @classmethod
    def random(cls, vocab: int, seed: int, concentration: float = 0.2) -> "MarkovChain":
        """A stationary chain with Dirichlet(concentration) rows. ConfigError for an impossible parameter."""
        if vocab < 2:
            raise ConfigError(f"vocab={vocab}: a language needs at least 2 symbols")
        if not (concentration > 0 and seed >= 0):
            raise ConfigError(f"concentration={concentration}, seed={seed}: needs concentration > 0 and seed >= 0")
        transition = base.random_laws(np.random.default_rng(seed), vocab, vocab, concentration)
        return cls(chain.stationary(transition), transition)

    @property
    def vocab_size(self) -> int:
        return len(self.initial)

    def sample(self, rng: np.random.Generator, num: int, length: int) -> np.ndarray:
        """`num` rows, int32 [num, length]."""
        base.check_shape(num, length)
        tokens = np.empty((num, length), np.int32)
        tokens[:, 0] = base.categorical(rng, np.broadcast_to(self.initial, (num, self.vocab_size)))
        for i in range(1, length):
            tokens[:, i] = base.categorical(rng, self.transition[tokens[:, i - 1]])
        return tokens

    def log_prob(self, tokens: np.ndarray) -> np.ndarray:
        """Exact log p(row) in nats, float64 [num]."""
        tokens = base.check_tokens(tokens, self.vocab_size)
        steps = base.safe_log(self.transition)[tokens[:, :-1], tokens[:, 1:]]
        return base.safe_log(self.initial)[tokens[:, 0]] + steps.sum(-1)

    def marginals(self, length: int) -> np.ndarray:
        """The law of each position, float64 [length, V]."""
        base.check_shape(0, length)
        laws = np.empty((length, self.vocab_size))
        laws[0] = self.initial
        for i in range(1, length):
            laws[i] = laws[i - 1] @ self.transition
        return laws

    def entropy(self, length: int) -> base.Entropy:
        """Exact: H(x_0) + sum_i sum_s p(x_{i-1} = s) H(transition[s])."""
        visits = self.marginals(length)[:-1].sum(0)
        return base.Entropy(float(base.entropy_of(self.initial) + visits @ base.entropy_of(self.transition)), 0.0)

    def kl(self, other: "MarkovChain", length: int) -> float:
        """Exact KL(self || other) of a row in nats; inf where `other` cannot make what `self` makes."""
        visits = self.marginals(length)[:-1].sum(0)
        rows = _kl_of(self.transition, other.transition)
        return float(_kl_of(self.initial, other.initial) + np.sum(visits[visits > 0] * rows[visits > 0]))

    def conditional_log_probs(self, tokens: np.ndarray, visible: np.ndarray) -> np.ndarray:
        """Exact log p(x_i = v | visible), float64 [num, length, V], by forward-backward."""
        tokens = base.check_tokens(tokens, self.vocab_size, visible)
        evidence = np.where(visible[..., None], chain.one_hot_log(tokens, self.vocab_size), 0.0)
        return base.log_normalize(chain.state_weights(self.initial, self.transition, evidence))


def _kl_of(p: np.ndarray, q: np.ndarray) -> np.ndarray:
    """KL(p || q) in nats along the last axis."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.sum(np.where(p > 0, p * (np.log(p) - np.log(q)), 0.0), axis=-1)
