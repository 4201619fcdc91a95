"""Classifier-free guidance on logits, with or without an unconditional branch that was trained for it."""

import jax
import jax.numpy as jnp


def guide(conditional: jax.Array, unconditional: jax.Array, scale: jax.Array | float) -> jax.Array:
    """l_u + (1 + w)(l_c - l_u): logits of p_c^(1+w) / p_u^w, up to a constant a row. At least float32.

    The convention of SMDM (arXiv 2410.18514) and of LLaDA, whose code writes l_u + (cfg_scale + 1)(l_c - l_u), so
    w = cfg_scale. Where a paper writes l_u + s (l_c - l_u), s = 1 + w.

    Args:
      conditional, unconditional: [..., V] logits or log-probabilities.
      scale: w, a number or an array that broadcasts against them; may be traced. 0 gives ``conditional`` itself, -1
        ``unconditional``.
    Returns:
      [..., V]. A class that is -inf in ``conditional`` stays -inf. One that is -inf in ``unconditional`` only takes
      the limit: +inf for w > 0 (a draw then surely takes it), -inf for w < 0. So truncate after guiding, not before.
    """
    conditional, unconditional = jnp.asarray(conditional), jnp.asarray(unconditional)
    wide = jnp.promote_types(jnp.promote_types(conditional.dtype, unconditional.dtype), jnp.float32)
    conditional, unconditional = conditional.astype(wide), unconditional.astype(wide)
    scale = jnp.asarray(scale, wide)
    fixed = (scale == 0) | (conditional == -jnp.inf)  # there the formula may be inf - inf or 0 * inf
    return jnp.where(fixed, conditional, conditional + scale * (conditional - unconditional))


def unconditional_tokens(tokens: jax.Array, prompt_mask: jax.Array, mask_id: int) -> jax.Array:
    """Input of the unconditional branch of unsupervised guidance: every prompt token replaced by the mask.

    Same length, same positions, and the partly masked answer is left as it is (SMDM, arXiv 2410.18514, section on
    unsupervised classifier-free guidance), so a model trained without prompts dropped out can serve.

    Args:
      tokens: [B, L] int ids.
      prompt_mask: [B, L] bool, True on the prompt.
      mask_id: the mask token.
    """
    return jnp.where(prompt_mask, jnp.asarray(mask_id, tokens.dtype), tokens)
