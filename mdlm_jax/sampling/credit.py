"""dInfer's credit rule (arXiv 2510.08666): tokens that stayed the likeliest over several steps gain on the others."""

import dataclasses
from typing import Self

import jax
import jax.numpy as jnp

from mdlm_jax.core.draws import Drawn
from mdlm_jax.sampling.confidence import opened
from mdlm_jax.sampling.decoder import Look, Move, check, decoder
from mdlm_jax.sampling.threshold import Threshold


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Credits:
    """Of each position the tokens [B, W, W] int32 that have some credit, and how much, [B, W, W] float32; 0: a free
    place. A step adds one token at most, and a block of W positions takes W steps at most."""

    tokens: jax.Array
    amounts: jax.Array


@decoder
class Credit(Threshold):
    """As `Threshold`, of logits that know the steps before.

    With p the network's law at a masked position and v its likeliest token, a step does

        M <- beta M,    M[v] <- M[v] + p(v)^gamma,    logits <- logits + alpha ln(1 + M)

    and everything else, the draw as well, goes by these logits. M begins at 0 with the block. Instead of a number for
    every id it is kept as a list of those that were ever likeliest, W^2 numbers in a block of W positions. The head is
    applied twice a step, to the masks of the block.

    Attributes:
      alpha: weight of the credit; 0: none.
      gamma: exponent of a probability; below 1 small ones gain most.
      beta: what a step leaves of the credit before; 0: that of the step alone.
    """

    threshold: float = 0.9
    alpha: float = 0.7
    gamma: float = 0.2
    beta: float = 0.8

    def __post_init__(self):
        super().__post_init__()
        check("alpha", self.alpha, lambda x: 0 <= x < float("inf"), "must be 0 or positive")
        check("gamma", self.gamma, lambda x: 0 <= x < float("inf"), "must be 0 or positive")
        check("beta", self.beta, lambda x: 0 <= x <= 1, "must lie in [0, 1]; above, credit would grow by itself")

    def one_by_one(self) -> Self:
        """Without credit: the network's own law."""
        return dataclasses.replace(super().one_by_one(), alpha=0.0)

    def begin(self, look: Look, hidden) -> Credits:
        del hidden
        shape = (*look.tokens.shape, look.tokens.shape[1])
        return Credits(jnp.zeros(shape, jnp.int32), jnp.zeros(shape, jnp.float32))

    def update(self, prediction, look: Look, state: Credits) -> tuple[Move, Credits]:
        wants = ("argmax", "top_log_prob")
        plain = self.draw(prediction, look, wants, where=look.masked, may_draw_mask=self.reference)
        state = self._credited(plain, look.masked, state)
        raised = state.tokens, self.alpha * jnp.log1p(state.amounts)
        drawn = self.drawn(prediction, look, raised=raised)
        return opened(Move(self.reveal(drawn, look), drawn.sample, log_prob=drawn.law_log_prob), look), state

    def _credited(self, plain: Drawn, masked: jax.Array, state: Credits) -> Credits:
        """In the place of the token, or in the first free one."""
        amounts = self.beta * state.amounts
        own = (state.tokens == plain.argmax[..., None]) & (amounts > 0)
        place = jnp.where(own.any(-1), own.argmax(-1), (amounts == 0).argmax(-1))
        here = (jnp.arange(amounts.shape[-1]) == place[..., None]) & masked[..., None]
        return Credits(
            jnp.where(here, plain.argmax[..., None], state.tokens),
            amounts + jnp.where(here, jnp.exp(self.gamma * plain.top_log_prob)[..., None], 0.0),
        )
