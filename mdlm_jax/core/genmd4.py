"""GenMD4: the masked process with one learned schedule a token id (arXiv 2406.04329, section 6).

alpha_i(t) = 1 - (1 - eps) t^{w_i} with w = softplus(raw) > 0, so that rare or uninformative ids may be masked earlier.
With x the clean token and mu the denoiser's law at a masked position, the continuous-time NELBO integrand is

    L(t) = -(1/t) sum_{masked} [ w_x (1 + log mu_x) - sum_v w_v mu_v ].

The generating chain is p(x_s | x_t) = sum_v mu_v q(x_s | x_t, x = v). With (alpha_v(s) - alpha_v(t)) / (1 - alpha_v(t))
= 1 - (s/t)^{w_v}, whatever eps is, a masked position becomes v or stays masked with

    p(v) = mu_v (1 - (s/t)^{w_v}),   p(mask) = sum_v mu_v (s/t)^{w_v},

which factorises: draw v from mu, then show it with chance 1 - (s/t)^{w_v} (`reverse_step`). At s = 0 that chance is
one, so the last step gives every position that is still masked its draw from mu. L(t) is the rate, for s -> t, of
KL(q(x_s | x_t, x) || p(x_s | x_t)): between a jump to x at rate w_x / t and jumps to v at rates mu_v w_v / t.

The held-out bound is the integral of L over [time_min, 1], plus the price -log mu_x of the tokens masked at time_min,
plus the prior KL(q(x_1 | x) || all masked), which is zero where eps = 0 and infinite otherwise: a bound takes eps = 0.

The masks depend on w, so the gradient needs a score-function term. Two masks z1, z2 at one time give the leave-one-out
(RLOO) estimate: differentiate (L1 + L2)/2 + stop(L1 - L2) (log q(z1|x) - log q(z2|x)) / 2; its second term has zero
mean and belongs to no reported value.
"""

import dataclasses
import math

import jax
import jax.numpy as jnp

from mdlm_jax.core import categorical
from mdlm_jax.core.prediction import Prediction
from mdlm_jax.core.process import per_position
from mdlm_jax.core.reduction import Reduced


@dataclasses.dataclass(frozen=True)
class VectorSchedule:
    """alpha_i(t) = 1 - (1 - eps) t^{w_i} for t in [time_min, 1]. The weights are parameters, given to every method."""

    eps: float = 1e-4
    time_min: float = 1e-3

    def init(self, vocab_size: int, power: float = 1.0) -> jax.Array:
        """Raw parameters [V] float32 with softplus(raw) = power; power 1 starts at the linear schedule."""
        return jnp.full((vocab_size,), math.log(math.expm1(power)), jnp.float32)

    def powers(self, raw: jax.Array) -> jax.Array:
        """w = softplus(raw), [V]."""
        return jax.nn.softplus(raw)

    def masked_share(self, powers: jax.Array, tokens: jax.Array, t: jax.Array) -> jax.Array:
        """1 - alpha of each token at time t [B]: (1 - eps) t^{w_x}. [B, L]."""
        return (1.0 - self.eps) * t[:, None] ** powers[tokens]

    def corrupt(self, keys, powers, tokens, t, mask_id: int, noise_mask=None) -> jax.Array:
        """A draw from q(x_t | x), [B, L]; ``keys`` one a row."""
        masked = jax.vmap(categorical.bernoulli)(keys, self.masked_share(powers, tokens, t))
        if noise_mask is not None:
            masked = masked & noise_mask
        return jnp.where(masked, jnp.asarray(mask_id, tokens.dtype), tokens)

    def log_prob(self, powers, tokens, masked, t, noise_mask=None) -> jax.Array:
        """log q(x_t | x) of the whole row, [B] nats; ``masked`` [B, L] says which positions are masked."""
        log_share = math.log1p(-self.eps) + powers[tokens] * jnp.log(t)[:, None]
        log_prob = jnp.where(masked, log_share, jnp.log1p(-jnp.exp(log_share)))
        if noise_mask is not None:
            log_prob = jnp.where(noise_mask, log_prob, 0.0)
        return log_prob.sum(-1)

    def nelbo_rate(self, powers, reduced: Reduced, tokens, masked, t) -> jax.Array:
        """L(t) per token, [B, L] nats.

        Args:
          reduced: with ``target`` = log mu(tokens) and ``mean_value`` for ``values = powers``.
        """
        value = powers[tokens] * (1.0 + reduced.target) - reduced.mean_value
        return jnp.where(masked, -value / t[:, None], 0.0)

    def reconstruction(self, powers, tokens) -> jax.Array:
        """Price of the tokens still masked at time_min when each is guessed from the schedule alone, [B, L] nats.

        -(1 - eps) t1^{w_x} (w_x log t1 - logsumexp_i w_i log t1): a decoder that knows which ids are masked late. It is
        what the paper trains with; the held-out bound has the denoiser guess (above).
        """
        log_t = math.log(self.time_min)
        log_guess = powers[tokens] * log_t - jax.nn.logsumexp(powers * log_t)
        return -(1.0 - self.eps) * jnp.exp(powers[tokens] * log_t) * log_guess


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class ScheduledPrediction(Prediction):
    """A prediction together with the schedule that was learned with it: ``powers`` [V], softplus(raw)."""

    powers: jax.Array


def unmask_probability(powers: jax.Array, ids: jax.Array, s: jax.Array, t: jax.Array) -> jax.Array:
    """1 - (s/t)^w, the chance that a masked position which will be ``ids`` [B, L] shows itself between t and s <= t.

    Accurate in float32 for steps of any length: -expm1(w log1p(-(t - s) / t)), and exactly 1 at s = 0.
    """
    s, t = per_position(s), per_position(t)
    log_ratio = jnp.log1p(-(t - s) / t)
    return jnp.where(s > 0, -jnp.expm1(powers[ids] * jnp.where(s > 0, log_ratio, 0.0)), 1.0)


def reverse_step(
    keys: jax.Array,
    powers: jax.Array,
    tokens: jax.Array,
    s: jax.Array,
    t: jax.Array,
    *,
    sample: jax.Array,
    mask_id: int,
    noise_mask: jax.Array | None = None,
) -> jax.Array:
    """An exact draw from p(x_s | x_t), [B, L] int32; see the top of the file. s = 0 leaves no mask.

    Args:
      keys: [B] keys, one a row.
      powers: [V].
      tokens: [B, L] int32 at time t.
      s, t: [B] or [B, L], 0 <= s <= t.
      sample: [B, L] int32, one draw from mu at each position.
      noise_mask: [B, L] bool, the positions that may change; None: all.
    """
    shown = jax.vmap(categorical.bernoulli)(keys, unmask_probability(powers, sample, s, t)) & (tokens == mask_id)
    if noise_mask is not None:
        shown = shown & noise_mask
    return jnp.where(shown, sample, tokens)


def rloo_surrogate(loss_first, loss_second, log_q_first, log_q_second) -> jax.Array:
    """stop(L1 - L2) (log q1 - log q2) / 2 per row, [B]; add it to (L1 + L2) / 2 before differentiating."""
    return 0.5 * jax.lax.stop_gradient(loss_first - loss_second) * (log_q_first - log_q_second)
