"""A hidden-Markov language: dependence at every distance, yet an exact probability by the forward algorithm.

Source: Rabiner (1989), "A Tutorial on Hidden Markov Models", section III.
"""

import dataclasses

import numpy as np

from mdlm_jax.config import ConfigError
from mdlm_jax.data.languages import base, chain


@dataclasses.dataclass(frozen=True, eq=False)
class HiddenMarkov:
    """p(x) = sum over state paths of initial[s_0] prod transition[s_{i-1}, s_i] prod emission[s_i, x_i].

    initial is float64 [S], transition [S, S], emission [S, V]; each last axis sums to one.
    """

    initial: np.ndarray
    transition: np.ndarray
    emission: np.ndarray

    def __post_init__(self):
        states, symbols = len(self.initial), np.shape(self.emission)[-1]
        object.__setattr__(self, "initial", base.check_law("initial", self.initial, (states,)))
        object.__setattr__(self, "transition", base.check_law("transition", self.transition, (states, states)))
        object.__setattr__(self, "emission", base.check_law("emission", self.emission, (states, symbols)))

    @classmethod
    def random(
        cls, states: int = 16, vocab: int = 16, seed: int = 0, concentration: float = 0.1, jump: float = 0.1
    ) -> "HiddenMarkov":
        """A stationary language whose state walks round a ring and, with probability `jump`, goes elsewhere.

        The jumps and the emissions have Dirichlet(concentration) rows: the smaller, the sparser. States share symbols,
        so the place on the ring shows only from several tokens together. ConfigError for an impossible parameter.
        """
        if states < 1 or vocab < 2:
            raise ConfigError(f"states={states}, vocab={vocab}: needs at least 1 state and 2 symbols")
        if not (concentration > 0 and seed >= 0):
            raise ConfigError(f"concentration={concentration}, seed={seed}: needs concentration > 0 and seed >= 0")
        if not 0 < jump <= 1:
            raise ConfigError(f"jump={jump}: must lie in (0, 1]; at 0 a row would never leave its place on the ring")
        rng = np.random.default_rng(seed)
        ring = np.roll(np.eye(states), 1, axis=1)
        transition = (1 - jump) * ring + jump * base.random_laws(rng, states, states, concentration)
        emission = base.random_laws(rng, states, vocab, concentration)
        return cls(chain.stationary(transition), transition, emission)

    @classmethod
    def ring(cls, states: int = 4, symbols: int = 2, stay: float = 0.05) -> "HiddenMarkov":
        """States in a circle that step on with probability 1 - stay, each with ``symbols`` of its own, alike.

        Where the row stands is known from one token; when it stood still, from two. ConfigError if impossible.
        """
        if states < 2 or symbols < 1 or not 0 < stay < 1:
            raise ConfigError(f"states={states}, symbols={symbols}, stay={stay}: needs at least 2 states of at least 1 "
                              "symbol, and stay within (0, 1)")
        transition = stay * np.eye(states) + (1 - stay) * np.roll(np.eye(states), 1, axis=1)
        return cls(np.full(states, 1 / states), transition, np.repeat(np.eye(states), symbols, axis=1) / symbols)

    @property
    def vocab_size(self) -> int:
        return self.emission.shape[1]

    def sample(self, rng: np.random.Generator, num: int, length: int) -> np.ndarray:
        """`num` rows, int32 [num, length]."""
        base.check_shape(num, length)
        tokens = np.empty((num, length), np.int32)
        state = base.categorical(rng, np.broadcast_to(self.initial, (num, len(self.initial))))
        for i in range(length):
            if i:
                state = base.categorical(rng, self.transition[state])
            tokens[:, i] = base.categorical(rng, self.emission[state])
        return tokens

    def log_prob(self, tokens: np.ndarray) -> np.ndarray:
        """Exact log p(row) in nats, float64 [num], by the forward algorithm."""
        tokens = base.check_tokens(tokens, self.vocab_size)
        emitted = base.safe_log(self.emission).T  # [V, S]
        message = base.safe_log(self.initial) + emitted[tokens[:, 0]]
        for i in range(1, tokens.shape[1]):
            message = chain.log_matmul(message, self.transition) + emitted[tokens[:, i]]
        return base.log_sum_exp(message)

    def entropy(self, length: int) -> base.Entropy:
        """Monte-Carlo (no closed form is known): the mean of -log p over `base.ENTROPY_SAMPLES` rows, fixed seed."""
        return base.monte_carlo_entropy(self, length)

    def conditional_log_probs(self, tokens: np.ndarray, visible: np.ndarray) -> np.ndarray:
        """Exact log p(x_i = v | visible), float64 [num, length, V]: forward-backward, then emission."""
        tokens = base.check_tokens(tokens, self.vocab_size, visible)
        evidence = np.where(visible[..., None], base.safe_log(self.emission).T[tokens], 0.0)
        weights = base.log_normalize(chain.state_weights(self.initial, self.transition, evidence))
        hidden = chain.log_matmul(weights.reshape(-1, weights.shape[-1]), self.emission).reshape(*tokens.shape, -1)
        return np.where(visible[..., None], chain.one_hot_log(tokens, self.vocab_size), base.log_normalize(hidden))
