"""Whole distributions over the vocabulary: marginals and posteriors as [B, L, V] arrays.

For tests, small vocabularies and decoders whose rule truly needs the vector. Training and plain sampling never do:
they use `core.losses` and `Process.reverse_step`.
"""

import jax
import jax.numpy as jnp

from mdlm_jax.core.process import Masses, Process


def noise_vector(process: Process, masses: Masses) -> jax.Array:
    """[B, 1 or L, V]: u U(e) + m [e = mask]."""
    ids = jnp.arange(process.vocab_size)
    uniform = masses.uniform[..., None] / process.uniform_size
    is_mask = process.is_mask(ids)
    on_mask = masses.mask[..., None] + (uniform if process.uniform_hits_mask else 0.0)
    return jnp.where(is_mask, on_mask, uniform)


def marginal(process: Process, probs: jax.Array, t: jax.Array) -> jax.Array:
    """f_t(p, e) = a p(e) + noise(e). [B, L, V].

    Args:
      probs: [B, L, V], law of the clean token: one-hot for q(x_t | x), the denoiser's for the model.
      t: [B] or [B, L].
    """
    masses = process.masses(t)
    return masses.keep[..., None] * probs + noise_vector(process, masses)


def posterior(process: Process, tokens: jax.Array, probs: jax.Array, s: jax.Array, t: jax.Array) -> jax.Array:
    """q(x_s = e | x_t = tokens) when the clean token has law ``probs``. [B, L, V], sums to one over e.

    f_s(e) (a_{t|s} [e = z] + pi_{t|s}(z)) / f_t(z), arXiv 2602.01362 eq. for the posterior.
    """
    step = process.transition(s, t)
    before = marginal(process, probs, s)
    is_current = tokens[..., None] == jnp.arange(process.vocab_size)
    likelihood = step.keep[..., None] * is_current + process.noise_mass(step, tokens)[..., None]
    joint = before * likelihood
    return joint / joint.sum(-1, keepdims=True)


def denoised(process: Process, tokens: jax.Array, probs: jax.Array, t: jax.Array) -> jax.Array:
    """p(x = e | x_t = tokens): the law of the clean token, the last step's target. [B, L, V]."""
    masses = process.masses(t)
    is_current = tokens[..., None] == jnp.arange(process.vocab_size)
    joint = probs * (masses.keep[..., None] * is_current + process.noise_mass(masses, tokens)[..., None])
    return joint / joint.sum(-1, keepdims=True)


def clean_probs(process: Process, logits: jax.Array) -> jax.Array:
    """The denoiser's law from raw logits [B, L, columns]: the mask suppressed, padded to V. At least float32."""
    logits = jnp.promote_types(logits.dtype, jnp.float32).type(0) + logits
    if process.mask_id is not None and process.mask_id < logits.shape[-1]:
        logits = jnp.where(jnp.arange(logits.shape[-1]) == process.mask_id, -jnp.inf, logits)
    probs = jax.nn.softmax(logits, axis=-1)
    missing = process.vocab_size - logits.shape[-1]
    return jnp.pad(probs, [(0, 0)] * (probs.ndim - 1) + [(0, missing)])
