"""Losses per token, in nats, for the three-scalar process: what a denoiser pays at one noise level.

Every function takes the per-position results of the vocabulary reduction and returns [B, L]; nothing here sees a
vocabulary-sized array. With v = u / N (uniform mass of one id), c = log(a / v), l_e = log p(e), A = softplus(c),
A_e = softplus(l_e + c) and S = sum_e A_e,

    KL(f(x, .) || f(theta, .)) = a (A - A_x) + v (A - S)
    R = f(x, z) / f(theta, z):  log R = 0 at the mask, A - A_x at z = x, -A_z at any other z,

from which both the continuous-time and the discrete-time loss follow, for every mixing and also where the ratio of
uniform to mask changes with time (XDLM, arXiv 2602.01362, lemma 3.4; GIDD, 2503.04482). Mixing 0 is a static special
case: MDLM's weighted cross-entropy (2406.07524). Diffusion, reconstruction and prior are kept apart (`LossParts`): only
their sum is a bound.
"""

import jax
import jax.numpy as jnp
from jax.scipy.special import xlogy

from mdlm_jax.core import weights
from mdlm_jax.core.process import Masses, Process, safe_ratio
from mdlm_jax.core.reduction import Reduced

_SMALLEST_KEEP = 1e-20  # alpha(1) = 0 is taken for it: small enough to lose nothing, large enough to divide by


def softplus_offset(process: Process, t: jax.Array, shape: tuple[int, int]) -> jax.Array | None:
    """c = log(a / v) at time t, broadcast to [B, L]: what `reduce` needs as ``offset``. None where mixing is 0."""
    if process.masked_only:
        return None
    return jnp.broadcast_to(_offset(process, process.masses(t)), shape)


def nelbo_rate(process: Process, reduced: Reduced, tokens: jax.Array, noisy: jax.Array, t: jax.Array) -> jax.Array:
    """The integrand L(t) of the continuous-time NELBO: its integral over t in [0, 1] is the diffusion term.

    L = h(z) / f(x, z) * [ KL(f(x,.) || f(theta,.)) / a + (R - log R - 1) / a ],  h the `Process.inflow` into z.

    Args:
      reduced: with ``target`` = log p(tokens); for mixing > 0 also ``current`` = log p(noisy) and ``softplus_sum`` with
        ``offset = softplus_offset(process, t, tokens.shape)``.
      tokens, noisy: [B, L] clean and corrupted ids.
      t: [B] or [B, L].
    Returns:
      [B, L] nats, >= 0 up to rounding; 0 at clean positions where mixing is 0.
    """
    masses, inflow = process.masses(t), process.inflow(t)
    if process.masked_only:
        return jnp.where(process.is_mask(noisy), -safe_ratio(inflow.mask, masses.mask) * reduced.target, 0.0)
    clean = noisy == tokens
    weight = safe_ratio(process.noise_mass(inflow, noisy), process.noise_mass(masses, noisy) + masses.keep * clean)
    return weight * _divergence(process, reduced, tokens, noisy, masses)


def divergence(process: Process, reduced: Reduced, tokens: jax.Array, noisy: jax.Array, t: jax.Array) -> jax.Array:
    """KL(f(x,.) || f(theta,.)) + R - log R - 1, what `elbo_weight` times it is `nelbo_rate`. Not for mixing 0. [B, L].

    Args: as for `nelbo_rate`.
    """
    masses = process.masses(t)
    return masses.keep * _divergence(process, reduced, tokens, noisy, masses)


def elbo_weight(process: Process, tokens: jax.Array, noisy: jax.Array, t: jax.Array) -> jax.Array:
    """h(z) / (a f(x, z)), the weight of `divergence` in the bound, [B, L]; infinite where nothing is kept."""
    masses, clean = process.masses(t), noisy == tokens
    seen = process.noise_mass(masses, noisy) + masses.keep * clean
    return process.noise_mass(process.inflow(t), noisy) / (masses.keep * seen)


def _divergence(process: Process, reduced: Reduced, tokens, noisy, masses: Masses) -> jax.Array:
    """`divergence` / a."""
    at_mask = process.is_mask(noisy)
    c, v = _offset(process, masses), masses.uniform / process.uniform_size
    keep = jnp.maximum(masses.keep, _SMALLEST_KEEP)  # all three parts below are of order a: nothing is lost
    clean = noisy == tokens
    clean_gap = _softplus_drop(reduced.target, c)  # A - A_x = log R at z = x
    kl = clean_gap + v / keep * (jax.nn.softplus(c) - reduced.softplus_sum)  # KL / a
    at_clean = _excess(clean_gap) / keep
    at_other = _excess_of_log_odds(jnp.where(at_mask, -jnp.inf, reduced.current) + c) / keep
    return kl + jnp.where(at_mask, 0.0, jnp.where(clean, at_clean, at_other))


def kl_step(
    process: Process, reduced: Reduced, tokens: jax.Array, noisy: jax.Array, s: jax.Array, t: jax.Array
) -> jax.Array:
    """KL(q(x_s | x_t, x) || p_theta(x_s | x_t)) for any s < t; s = 0 of a schedule with alpha(0) = 1 included.

    With J = pi_{t|s}(z) / f_t(x, z) the chance that z is noise of the last step,
    KL = J (KL_s - log R_s) + log R_s - log R_t, where KL_s and R_s belong to time s and R_t to time t.

    Args:
      reduced: as for `nelbo_rate`, but with ``offset = softplus_offset(process, s, ...)``: the time is s.
    Returns:
      [B, L] nats.
    """
    masses_s, masses_t, step = process.masses(s), process.masses(t), process.transition(s, t)
    at_mask, clean = process.is_mask(noisy), noisy == tokens
    if process.masked_only:
        return jnp.where(at_mask, -masses_s.keep * safe_ratio(step.mask, masses_t.mask) * reduced.target, 0.0)
    some_noise = masses_s.uniform > 0
    v_s = jnp.where(some_noise, masses_s.uniform, 1.0) / process.uniform_size
    v_t, v_step = masses_t.uniform / process.uniform_size, step.uniform / process.uniform_size
    c = jnp.log(masses_s.keep / v_s)

    def fall(log_prob):
        """softplus(log_prob + c_s) - softplus(log_prob + c_t), without cancellation for short and for long steps."""
        prob = jnp.exp(log_prob)
        return jnp.log1p(v_step / v_s * safe_ratio(masses_s.keep * prob, v_t + masses_t.keep * prob))

    current = jnp.where(at_mask, -jnp.inf, reduced.current)
    clean_gap = _softplus_drop(reduced.target, c)
    kl_s = masses_s.keep * clean_gap + v_s * (jax.nn.softplus(c) - reduced.softplus_sum)
    log_r_s = jnp.where(clean, clean_gap, -jax.nn.softplus(current + c))
    change = jnp.where(clean, fall(jnp.zeros_like(c)) - fall(reduced.target), -fall(current))  # log R_s - log R_t
    jump = safe_ratio(process.noise_mass(step, noisy), process.noise_mass(masses_t, noisy) + masses_t.keep * clean)
    noisy_s = jnp.where(at_mask, jump * kl_s, jump * (kl_s - log_r_s) + change)
    return jnp.where(some_noise, noisy_s, reconstruction(process, reduced, tokens, noisy, t))


def reconstruction(process: Process, reduced: Reduced, tokens: jax.Array, noisy: jax.Array, t: jax.Array) -> jax.Array:
    """-log p_theta(x | x_t): the price of the clean token when everything left as noise is denoised at once. [B, L].

    -log p(x) at the mask; otherwise Bayes' rule also weighs that z may be clean:
    p_theta(x | z) = p(x) (a [z = x] + v) / (a p(z) + v). Evaluated at the smallest time of the diffusion term it closes
    the bound. Needs ``reduced.target``, and ``current`` where mixing > 0; no softplus sum.
    """
    at_mask, clean = process.is_mask(noisy), noisy == tokens
    if process.masked_only:
        return jnp.where(at_mask, -reduced.target, 0.0)
    masses = process.masses(t)
    c = _offset(process, masses)
    current = jnp.where(at_mask, -jnp.inf, reduced.current)
    evidence = jax.nn.softplus(current + c) - jnp.where(clean, jax.nn.softplus(c), 0.0)
    return -reduced.target + evidence


def prior(process: Process, tokens: jax.Array) -> jax.Array:
    """KL(q(x_1 | x) || pure noise), closed form. [B, L] nats.

    (a + b r(x)) log((a + b r(x)) / r(x)) + b (1 - r(x)) log b with a = alpha(1), b = 1 - a, r the noise law. Infinite
    where mixing is 0 and alpha(1) > 0, since pure mask never gives a clean token: use eps 0 or the count bound there.
    """
    masses = process.masses(jnp.ones((tokens.shape[0],), jnp.float32))
    noise = masses.noise
    r = process.noise_mass(masses, tokens) / noise
    alive = masses.keep + noise * r
    ratio = jnp.where(alive > 0, alive / r, 1.0)
    return jnp.where(alive > 0, alive * jnp.log(ratio), 0.0) + xlogy(noise * (1.0 - r), noise)


def level_weight(process: Process, t: jax.Array, weighting: weights.Multiplier) -> jax.Array:
    """What to multiply `nelbo_rate` by for a ``weighting`` that is a function of the level, [B, 1] or [B, L].

    w(1 - alpha) (1 - alpha) / rate: the bound's own weight of a corrupted token, rate / (1 - alpha), is taken out and
    w put in. Where mixing is 0 a masked token then counts w times its cross-entropy. Where mixing is positive a token
    that shows noise counts w times its own loss, KL / a + (R - log R - 1) / a, of which the cross-entropy is the limit
    for mixing -> 0, and one that shows its clean id counts as much as it is likely to be noise (rho in `Process`).
    """
    masses, inflow = process.masses(t), process.inflow(t)
    rate = inflow.uniform + inflow.mask
    return weighting(masses.noise) * safe_ratio(masses.noise, rate)


def _offset(process: Process, masses: Masses) -> jax.Array:
    """c = log(a / v), finite also where no noise or nothing but noise is left."""
    v = masses.uniform / process.uniform_size
    return jnp.log(jnp.maximum(masses.keep, _SMALLEST_KEEP)) - jnp.log(jnp.maximum(v, jnp.finfo(v.dtype).tiny))


def _softplus_drop(log_prob: jax.Array, c: jax.Array) -> jax.Array:
    """softplus(c) - softplus(log_prob + c) >= 0. For sure predictions not as a difference, whose error is that of c."""
    sure = log_prob > -0.5
    near = -jnp.log1p(jnp.expm1(jnp.where(sure, log_prob, -0.5)) * jax.nn.sigmoid(c))
    return jnp.where(sure, near, jax.nn.softplus(c) - jax.nn.softplus(log_prob + c))


def _excess(log_r: jax.Array) -> jax.Array:
    """R - log R - 1 from log R >= 0: exp(d) - 1 - d, by its series where the difference would cancel."""
    small = log_r < 0.5
    series: float | jax.Array = 1.0
    for n in range(12, 2, -1):
        series = 1.0 + log_r / n * series
    large = jnp.where(small, 1.0, log_r)
    return jnp.where(small, 0.5 * log_r**2 * series, jnp.expm1(large) - large)


def _excess_of_log_odds(y: jax.Array) -> jax.Array:
    """R - log R - 1 for R = sigmoid(-y): softplus(y) - sigmoid(y) = -log(1 - p) - p with p = sigmoid(y), by series."""
    p = jax.nn.sigmoid(y)
    small = p < 0.2
    series: float | jax.Array = 0.0
    for n in range(18, 1, -1):
        series = 1.0 / n + p * series
    large = jnp.where(small, 0.0, y)
    return jnp.where(small, p**2 * series, jax.nn.softplus(large) - jax.nn.sigmoid(large))
