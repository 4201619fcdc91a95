"""The noise process: at time t a token is kept, a uniformly random token, or the mask.

Three scalars describe it: keep a(t), uniform u(t), mask m(t), with a + u + m = 1. The marginal is

    f_t(x, e) = a [e = x] + u U(e) + m [e = mask],        U uniform over the ids a uniform draw may hit,

the transition from s < t has the same form with a/a_s, u - (a/a_s) u_s and m - (a/a_s) m_s. `Process` is the stationary
case u : m = mixing : 1 - mixing: 0 masked (MDLM, arXiv 2406.07524), 1 uniform (UDLM, 2412.10193), between them XDLM
(2602.01362). Because noise forgets the token it replaced, posteriors need no V x V object and the reverse step needs
one draw from the denoiser and two scalars per position.

Times are [B] (one a row) or [B, L] (one a position).
"""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from mdlm_jax.core import categorical
from mdlm_jax.core.prediction import Asked
from mdlm_jax.core.schedules import Linear, Schedule


class Masses(NamedTuple):
    """Shares of the tokens at one time, each [B, 1] or [B, L]: keep + uniform + mask = 1."""

    keep: jax.Array
    uniform: jax.Array
    mask: jax.Array

    @property
    def noise(self) -> jax.Array:
        """1 - keep, without cancellation."""
        return self.uniform + self.mask


class Inflow(NamedTuple):
    """Rates a u' - a' u and a m' - a' m of noise flowing in, each [B, 1] or [B, L]; see `Process.inflow`."""

    uniform: jax.Array
    mask: jax.Array


@dataclasses.dataclass(frozen=True)
class Process:
    """The stationary process. Frozen and hashable; holds scalars only, whatever the vocabulary.

    Attributes:
      vocab_size: V, number of token ids the canvas can hold, the mask included.
      mask_id: the mask, or None for a process without one (mixing must then be 1).
      mixing: share of uniform noise, k in XDLM.
      schedule: alpha(t).
      uniform_hits_mask: whether a uniform draw may give the mask id (XDLM: yes, GIDD: no).
      head_size: number of columns of the head when it differs from vocab_size (SMDM's head cannot emit the mask, which
        is the row after its last column). None: vocab_size.

    Raises:
      ValueError: mixing outside [0, 1], a mask id outside the vocabulary, or no mask with mixing < 1.
    """

    vocab_size: int
    mask_id: int | Any
    mixing: float = 0.0
    schedule: Schedule = Linear()
    uniform_hits_mask: bool = True
    head_size: int | None = None

    def __post_init__(self):
        if not 0.0 <= self.mixing <= 1.0:
            raise ValueError(f"mixing={self.mixing}: must lie in [0, 1]")
        if self.vocab_size < 2:
            raise ValueError(f"vocab_size={self.vocab_size}: must be at least 2")
        if self.mask_id is None and self.mixing != 1.0:
            raise ValueError(f"mixing={self.mixing} without a mask: give mask_id, or use mixing=1")
        if self.mask_id is not None and not 0 <= self.mask_id < self.vocab_size:
            raise ValueError(f"mask_id={self.mask_id}: must lie in [0, vocab_size={self.vocab_size})")
        if self.head_size is not None and not 1 <= self.head_size <= self.vocab_size:
            raise ValueError(f"head_size={self.head_size}: must lie in [1, vocab_size={self.vocab_size}]")

    @property
    def masked_only(self) -> bool:
        """True where every corrupted token is the mask: the special case mixing = 0."""
        return self.mixing == 0.0

    @property
    def uniform_size(self) -> int:
        """Number of ids a uniform draw can hit."""
        spared = self.mask_id is not None and not self.uniform_hits_mask
        return self.vocab_size - int(spared)

    @property
    def num_columns(self) -> int:
        """Number of columns of the head."""
        return self.vocab_size if self.head_size is None else self.head_size

    # The three scalars -----------------------------------------------------------------------------------------------

    def masses(self, t: jax.Array) -> Masses:
        """Shares kept, uniform and masked at time ``t`` [B] or [B, L]."""
        t = per_position(t)
        noise = self.schedule.complement(t)
        return Masses(self.schedule.alpha(t), self.mixing * noise, (1.0 - self.mixing) * noise)

    def transition(self, s: jax.Array, t: jax.Array) -> Masses:
        """Shares between ``s`` and ``t`` (s <= t) for a token that is given at time s."""
        s, t = per_position(s), per_position(t)
        alpha_s = self.schedule.alpha(s)
        noise = safe_ratio(self.schedule.drop(s, t), alpha_s)
        keep = jnp.where(alpha_s > 0, safe_ratio(self.schedule.alpha(t), alpha_s), 1.0)  # alpha(s) = 0: s = t = 1
        return Masses(keep, self.mixing * noise, (1.0 - self.mixing) * noise)

    def inflow(self, t: jax.Array) -> Inflow:
        """keep(t) times the rates at which a token jumps to uniform noise and to the mask.

        The jump rates are lim transition(t - dt, t) / dt = u' - (a'/a) u and likewise for m. Times a they stay finite
        where a vanishes; in the stationary case they are mixing * rate(t) and (1 - mixing) * rate(t).
        """
        rate = self.schedule.rate(per_position(t))
        return Inflow(self.mixing * rate, (1.0 - self.mixing) * rate)

    def noise_mass(self, masses: Masses | Inflow, tokens: jax.Array) -> jax.Array:
        """What ``masses`` puts on each of ``tokens`` [B, L] as noise: u U(token) + m [token = mask]. [B, L]."""
        is_mask = self.is_mask(tokens)
        uniform = jnp.broadcast_to(masses.uniform / self.uniform_size, tokens.shape)
        on_mask = masses.mask + (uniform if self.uniform_hits_mask else 0.0)
        return jnp.where(is_mask, on_mask, uniform)

    def masked_time(self, share: jax.Array) -> jax.Array:
        """The time at which this share of all tokens is the mask, any shape; 1 where the share never gets so large.

        Raises:
          ValueError: there are no masks.
        """
        if self.mask_id is None or self.mixing == 1.0:
            raise ValueError(f"mixing={self.mixing}: uniform noise alone makes no masks, whose share would tell the "
                             "time; give the time itself")
        of_noise = 1.0 - self.mixing + (self.mixing / self.uniform_size if self.uniform_hits_mask else 0.0)
        return self.schedule.inverse_complement(share / of_noise)

    def is_mask(self, tokens: jax.Array) -> jax.Array:
        """[B, L] bool; all False in a process without a mask."""
        if self.mask_id is None:
            return jnp.zeros(tokens.shape, bool)
        return tokens == self.mask_id

    # Forward ---------------------------------------------------------------------------------------------------------

    def corrupt(
        self, keys: jax.Array, tokens: jax.Array, t: jax.Array, noise_mask: jax.Array | None = None
    ) -> jax.Array:
        """A draw from q(x_t | x) at every position.

        Args:
          keys: [B] keys, one a row (`core.keys.row_keys`), so that a row's noise does not depend on its batch.
          tokens: [B, L] int32, clean.
          t: [B] or [B, L].
          noise_mask: [B, L] bool, the positions noise may touch; None: all.
        Returns:
          [B, L] int32.
        Examples:
          >>> from mdlm_jax.core.keys import row_keys
          >>> process = Process(vocab_size=12, mask_id=11)
          >>> keys = row_keys(jax.random.key(0), jnp.arange(3))
          >>> tokens = jnp.tile(jnp.arange(6), (3, 1))
          >>> process.corrupt(keys, tokens, jnp.array([0.0, 0.5, 1.0]))
          Array([[ 0,  1,  2,  3,  4,  5],
                 [ 0, 11, 11, 11, 11,  5],
                 [11, 11, 11, 11, 11, 11]], dtype=int32)
        """
        replaced_key, kind_key, id_key = _split_rows(keys, 3)
        masses = self.masses(t)
        shape = tokens.shape[1:]
        replace = _rows(categorical.bernoulli, replaced_key, jnp.broadcast_to(masses.noise, tokens.shape))
        noise = self._noise_tokens(kind_key, id_key, tokens.shape[0], shape, masses.uniform, masses.noise, tokens.dtype)
        if noise_mask is not None:
            replace = replace & noise_mask
        return jnp.where(replace, noise, tokens)

    def prior(self, keys: jax.Array, length: int) -> jax.Array:
        """[B, length] int32 from the law of pure noise, u : m at t = 1."""
        _, kind_key, id_key = _split_rows(keys, 3)
        masses = self.masses(jnp.ones((keys.shape[0],), jnp.float32))
        return self._noise_tokens(kind_key, id_key, keys.shape[0], (length,), masses.uniform, masses.noise, jnp.int32)

    def _noise_tokens(self, kind_keys, id_keys, rows, shape, uniform, noise, dtype):
        """Noise given that there is some: a uniform id with chance uniform / noise, else the mask. [B, *shape]."""
        if self.masked_only:
            assert self.mask_id is not None  # or there would be no such process
            return jnp.full((rows, *shape), self.mask_id, dtype)
        ids = jax.vmap(lambda key: jax.random.randint(key, shape, 0, self.uniform_size, dtype))(id_keys)
        if self.mask_id is not None and self.uniform_size < self.vocab_size:
            ids = ids + (ids >= self.mask_id).astype(dtype)
        if self.mixing == 1.0:
            return ids
        share = jnp.broadcast_to(safe_ratio(uniform, noise), (rows, *shape))
        return jnp.where(_rows(categorical.bernoulli, kind_keys, share), ids, jnp.asarray(self.mask_id, dtype))

    # Reverse ---------------------------------------------------------------------------------------------------------

    def jump_probability(self, tokens: jax.Array, s: jax.Array, t: jax.Array, current_log_prob: Asked) -> jax.Array:
        """P(the token became noise between s and t | its value z now), under the denoiser. [B, L].

        pi_{t|s}(z) / f_t(theta, z) with f_t(theta, z) = a p(z) + pi_t(z); the mask has p = 0.

        Args:
          tokens: [B, L] now, at time t.
          current_log_prob: [B, L] log p(z), what the denoiser thinks of each current token as the clean one.
        """
        masses, step = self.masses(t), self.transition(s, t)
        if self.masked_only:
            jump = jnp.broadcast_to(safe_ratio(step.mask, masses.mask), tokens.shape)
            return jnp.where(self.is_mask(tokens), jump, 0.0)
        now, between = self.noise_mass(masses, tokens), self.noise_mass(step, tokens)
        clean_mass = jnp.where(self.is_mask(tokens), 0.0, masses.keep * jnp.exp(current_log_prob))
        return safe_ratio(between, clean_mass + now)

    def reverse_step(
        self,
        keys: jax.Array,
        tokens: jax.Array,
        s: jax.Array,
        t: jax.Array,
        *,
        sample: jax.Array,
        current_log_prob: jax.Array | None = None,
        noise_mask: jax.Array | None = None,
    ) -> jax.Array:
        """An exact draw from p_theta(x_s | x_t) in two stages.

        First whether the position jumps (`jump_probability`: from the schedule and one scalar), then where to: with
        chance a_s the given draw from the denoiser, else fresh noise of time s. The law is the posterior's, without a
        V-long vector and without losing its uniform tail to float32 (spec: Gumbel races drop classes below 1e-7).
        With s = 0 and alpha(0) = 1 nothing is left as noise.

        Args:
          keys: [B] keys, one a row.
          tokens: [B, L] int32 at time t.
          s, t: [B] or [B, L], s <= t. ``s`` may be below 0 nowhere; use `final_step` to denoise completely.
          sample: [B, L] int32, one draw from the denoiser p(. | x_t) at each position.
          current_log_prob: [B, L] log p(z) of the current tokens; not needed where mixing is 0.
          noise_mask: [B, L] bool, the positions that may change; None: all.
        Returns:
          [B, L] int32 at time s.
        Examples:
          >>> from mdlm_jax.core.keys import row_keys
          >>> process = Process(vocab_size=12, mask_id=11)
          >>> keys = row_keys(jax.random.key(0), jnp.arange(1))
          >>> masks, draws = jnp.full((1, 6), 11), jnp.array([[0, 1, 2, 3, 4, 5]])
          >>> process.reverse_step(keys, masks, s=jnp.array([0.5]), t=jnp.array([1.0]), sample=draws)
          Array([[11, 11, 11,  3, 11,  5]], dtype=int32)
        """
        jump_key, noise_key, kind_key, id_key = _split_rows(keys, 4)
        before = self.masses(s)
        jump = _rows(categorical.bernoulli, jump_key, self.jump_probability(tokens, s, t, current_log_prob))
        to_noise = _rows(categorical.bernoulli, noise_key, jnp.broadcast_to(before.noise, tokens.shape))
        noise = self._noise_tokens(
            kind_key, id_key, tokens.shape[0], tokens.shape[1:], before.uniform, before.noise, tokens.dtype
        )
        if noise_mask is not None:
            jump = jump & noise_mask
        return jnp.where(jump, jnp.where(to_noise, noise, sample), tokens)

    def noise_probability(self, tokens: jax.Array, t: jax.Array, current_log_prob: Asked) -> jax.Array:
        """P(the current token is noise), rho in arXiv 2602.01362. [B, L]; 1 at the mask, 0 elsewhere if mixing is 0."""
        if self.masked_only:
            return self.is_mask(tokens).astype(jnp.float32)
        masses = self.masses(t)
        now = self.noise_mass(masses, tokens)
        clean_mass = jnp.where(self.is_mask(tokens), 0.0, masses.keep * jnp.exp(current_log_prob))
        return safe_ratio(now, clean_mass + now)

    def final_step(self, keys, tokens, t, *, sample, current_log_prob=None, noise_mask=None):
        """An exact draw from p_theta(x | x_t), the clean tokens: every position that is noise takes ``sample``."""
        replace = _rows(categorical.bernoulli, keys, self.noise_probability(tokens, t, current_log_prob))
        if noise_mask is not None:
            replace = replace & noise_mask
        return jnp.where(replace, sample, tokens)


def per_position(t: jax.Array) -> jax.Array:
    """[B] -> [B, 1]; [B, L] stays."""
    t = jnp.asarray(t)
    if t.ndim not in (1, 2):
        raise ValueError(f"times have shape {t.shape}: must be [B] or [B, L]")
    return t[:, None] if t.ndim == 1 else t


def safe_ratio(part: jax.Array, whole: jax.Array) -> jax.Array:
    """part / whole where whole > 0, else 0: nothing is there to be split."""
    positive = whole > 0
    return jnp.where(positive, part / jnp.where(positive, whole, 1.0), 0.0)


def _split_rows(keys: jax.Array, num: int) -> list[jax.Array]:
    split = jax.vmap(lambda key: jax.random.split(key, num))(keys)
    return [split[:, i] for i in range(num)]


def _rows(draw, keys: jax.Array, p: jax.Array) -> jax.Array:
    """``draw(key, p)`` row by row, each with its own key."""
    return jax.vmap(draw)(keys, p)
