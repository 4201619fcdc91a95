"""ReMDM (arXiv 2503.00307): a masked chain that takes tokens back now and then, with the same law at every time.

In a step from t to s a token is masked again with probability sigma, and a mask takes a token from the denoiser with

    (alpha_s - (1 - sigma) alpha_t) / (1 - alpha_t),     0 <= sigma <= sigma_max = min(1, (1 - alpha_s) / alpha_t).

Whatever sigma is, a position is masked with probability 1 - alpha_s afterwards if it was with 1 - alpha_t before. The
rules differ in sigma alone; none exceeds sigma_max, so both are probabilities at every step and any number of them. The
last step has alpha_s = 1 and sigma = 0: nothing is taken back and no mask stays.

Tokens that come in one step are independent given what was there, and a step exchanges the share sigma however short it
is. So the distance from the true law falls as 1 / steps if eta does too; at a constant eta it falls only as their root
(cap, rescale), or stays of order eta (loop).
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from mdlm_jax.core.process import Process, safe_ratio
from mdlm_jax.sampling import clock
from mdlm_jax.sampling.decoder import Decoder, Look, Move, check, decoder, lots, static


def most_remasked(noise_s: jax.Array, alpha_t: jax.Array) -> jax.Array:
    """sigma_max, from 1 - alpha_s and alpha_t, any shape; 1 where alpha_t = 0."""
    return jnp.where(noise_s < alpha_t, safe_ratio(noise_s, alpha_t), 1.0)


def reveals(drop: jax.Array, alpha_t: jax.Array, noise_t: jax.Array, sigma: jax.Array) -> jax.Array:
    """The probability that a mask takes a token, from alpha_s - alpha_t, alpha_t and 1 - alpha_t, any shape."""
    return jnp.clip(safe_ratio(drop + sigma * alpha_t, noise_t), 0.0, 1.0)


@decoder
class ReMDM(Decoder):
    """What the rules share: the steps on the call's grid, every one of which asks the network.

    Attributes:
      process: the masked process the network was trained with.
      temperature, top_p, top_k: of the draw; 1, 1 and 0 are the model's own law.
      keep_crossing: False: the nucleus of ``top_p`` is without the token that crosses it, as published (0.9).
      head_budget: logits alive at once; it changes memory, not results.
    """

    process: Process = static()
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = static(0)
    keep_crossing: bool = static(False)
    head_budget: int = static(1 << 22)

    reads_grid = True

    def __post_init__(self):
        self._check_law()
        if not self.process.masked_only:
            raise ValueError(f"mixing={self.process.mixing}: remasking needs the masked process; with uniform noise "
                             "Ancestral takes tokens back by itself")

    @property
    def mask_id(self) -> int | Any:
        return self.process.mask_id

    def check(self, call) -> None:
        self._check_one_schedule(call)

    def update(self, prediction, look: Look, state) -> tuple[Move, jax.Array | None]:
        moves = look.editable & lots(look.stream(1), look.place, self.chances(look, state))
        revealed = moves & look.masked
        drawn = self.draw(prediction, look, ("sample", "sample_log_prob"), where=revealed)
        return Move(revealed, drawn.sample, remask=moves & ~look.masked), self.after(revealed, drawn, state)

    def chances(self, look: Look, state) -> jax.Array:
        """[B, W]: the probability of a move: of a mask to a token, of a token to the mask (sigma)."""
        schedule, t, s = self.process.schedule, self.time(look.t), self.time(look.s)
        alpha, noise, last = schedule.alpha(t)[:, None], schedule.complement(t)[:, None], look.last[:, None]
        most = jnp.where(last, 0.0, most_remasked(schedule.complement(s)[:, None], alpha))
        sigma = self.sigma(look, state, most)
        reveal = reveals(schedule.drop(s, t)[:, None], alpha, noise, sigma)
        return jnp.where(look.masked, jnp.where(last, 1.0, reveal), sigma)

    def done(self, look: Look, state) -> jax.Array:
        """A row without masks may have some again in the next step."""
        del state
        return jnp.zeros(look.step.shape, bool)

    def time(self, t: jax.Array) -> jax.Array:
        """[B]: the process's time at the time ``t`` of the grid."""
        return t

    def sigma(self, look: Look, state, most: jax.Array) -> jax.Array:
        """[B, 1] or [B, W], between 0 and ``most`` [B, 1]."""
        raise NotImplementedError

    def after(self, revealed: jax.Array, drawn, state):
        """The state after a step."""
        del revealed, drawn
        return state


@decoder
class ReMDMCap(ReMDM):
    """Takes tokens back with probability sigma = min(eta, sigma_max).

    Attributes:
      eta: published: 0.008, and 0.04 for few steps.
    """

    eta: float = 0.008

    def __post_init__(self):
        super().__post_init__()
        _check_share("eta", self.eta)

    def sigma(self, look: Look, state, most: jax.Array) -> jax.Array:
        del look, state
        return jnp.minimum(self.eta, most)


@decoder
class ReMDMRescale(ReMDM):
    """Takes tokens back with probability sigma = eta sigma_max.

    Attributes:
      eta: published: 0.015.
    """

    eta: float = 0.015

    def __post_init__(self):
        super().__post_init__()
        _check_share("eta", self.eta)

    def sigma(self, look: Look, state, most: jax.Array) -> jax.Array:
        del look, state
        return self.eta * most


@decoder
class ReMDMConf(ReMDM):
    """Takes doubtful tokens back first: sigma = sigma_max softmax(-psi), psi the probability a token was drawn with.

    The softmax is over a row's tokens, so about sigma_max of one is taken back in a step, and masks have sigma = 0,
    as published: fewer are revealed than sigma would allow. psi is of the untempered law; tokens that were there before
    the first step have psi = 1. Since sigma depends on the tokens, the law is the process's no more.
    """

    def begin(self, look: Look, hidden) -> jax.Array:
        """psi, [B, W] float32."""
        del hidden
        return jnp.ones(look.tokens.shape, jnp.float32)

    def sigma(self, look: Look, state, most: jax.Array) -> jax.Array:
        weights = jnp.where(look.editable & ~look.masked, jnp.exp(-state), 0.0)
        return most * weights / jnp.maximum(weights.sum(1, keepdims=True), 1e-9)

    def after(self, revealed: jax.Array, drawn, state):
        return jnp.where(revealed, jnp.exp(drawn.sample_log_prob), state)


@decoder
class ReMDMLoop(ReMDM):
    """Goes forward to alpha_on, stays there for a while, exchanging tokens, then goes on to the end.

    The grid's times above ``t_on`` lead from pure noise to alpha_on without remasking; between ``t_on`` and ``t_off``
    alpha is alpha_on and sigma = min(eta, sigma_max); below ``t_off`` it goes on to 1 without. A step across ``t_on``
    ends at alpha_on (the published code goes beyond, and can reveal nearly everything in it). A network that reads the
    time is told the process's, at which alpha is what it is.

    Attributes:
      eta: published: 0.02.
      t_on, t_off: times of the grid, published: 0.55 and 0.05.
      alpha_on: published: 0.9.
    """

    eta: float = 0.02
    t_on: float = 0.55
    t_off: float = 0.05
    alpha_on: float = 0.9

    def __post_init__(self):
        super().__post_init__()
        _check_share("eta", self.eta)
        for name in ("t_on", "t_off", "alpha_on"):
            check(name, getattr(self, name), lambda x: 0 < x < 1, "must lie between 0 and 1")
        check("t_off", self.t_off, lambda t: not isinstance(self.t_on, float) or t < self.t_on,
              f"must be less than t_on={self.t_on}")

    def inputs(self, call, look: Look, state):
        del state
        time = clock.whole_time(look, self.time(look.t), self.process.schedule)
        return dataclasses.replace(call, time=time)

    def time(self, t: jax.Array) -> jax.Array:
        on = self.process.schedule.inverse(jnp.asarray(self.alpha_on, t.dtype))
        before = 1.0 - (1.0 - t) * (1.0 - on) / (1.0 - self.t_on)
        return jnp.where(t > self.t_on, before, on * jnp.minimum(t / self.t_off, 1.0))

    def sigma(self, look: Look, state, most: jax.Array) -> jax.Array:
        del state
        inside = (look.t <= self.t_on) & (look.t > self.t_off)
        return jnp.where(inside[:, None], jnp.minimum(self.eta, most), 0.0)


def _check_share(name: str, value) -> None:
    check(name, value, lambda x: 0 <= x <= 1, "must lie in [0, 1]; 0 takes nothing back")
