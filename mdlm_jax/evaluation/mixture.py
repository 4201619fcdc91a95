"""The exact law of what a mixture (`models.latent`) writes in one step: an integral over its latent, by quadrature.

    log q(x) = log mean_m exp sum_i log p(x_i | canvas, lambda_m),   lambda_m = (m + 1/2) / M,

over the editable positions i. M latents are a mixture of M products, so q adds up to 1 for every M; it is that of the
decoder as M grows.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from mdlm_jax.models.denoise import Call, Denoiser
from mdlm_jax.sampling.canvas import Canvas


def one_step_log_prob(denoise: Denoiser, params, canvas: Canvas, tokens, *, mask_id: int, latents: int = 1024,
                      batch: int = 64, bias: jax.Array | None = None) -> np.ndarray:
    """log q(row), nats, float64 [N], of rows that are written on one canvas at once, at temperature 1.

    Args:
      denoise, params: the mixture.
      canvas: of one row. A network that reads the time is told 1.
      tokens: [N, L] integers, equal to the canvas where it is not editable.
      mask_id: is never drawn.
      latents: M. batch: latents at once.
      bias: [V] added to logits; -inf for tokens that must not appear.
    Raises:
      ValueError: a network without a latent, a canvas of several rows, tokens that differ from it elsewhere.
    """
    tokens = np.asarray(tokens, np.int32)
    if not getattr(denoise, "latent", False):
        raise ValueError("denoise: reads no latent; take evaluation.scoring, which has the laws of other models")
    if canvas.shape[0] != 1 or tokens.ndim != 2 or tokens.shape[1] != canvas.shape[1]:
        raise ValueError(f"canvas {list(canvas.shape)}, tokens {list(tokens.shape)}: must be [1, L] and [N, L]")
    editable = np.asarray(canvas.editable)[0]
    if (tokens != np.asarray(canvas.tokens))[:, ~editable].any():
        raise ValueError("tokens: differ from the canvas where it is not editable; give fillings of it")
    if latents < 1 or batch < 1:
        raise ValueError(f"latents={latents}, batch={batch}: must be at least 1")
    points, found = (np.arange(latents) + 0.5) / latents, []
    for some in np.split(points, range(batch, latents, batch)):
        law = np.asarray(_law(denoise, mask_id, params, canvas, jnp.asarray(some, jnp.float32), bias), np.float64)
        found.append(law[:, np.arange(tokens.shape[1]), tokens].transpose(1, 0, 2)[..., editable].sum(-1))  # [N, M]
    return np.logaddexp.reduce(np.concatenate(found, axis=1), axis=1) - np.log(latents)


@functools.partial(jax.jit, static_argnums=(0, 1))
def _law(denoise: Denoiser, mask_id: int, params, canvas: Canvas, latent: jax.Array, bias) -> jax.Array:
    """[M, L, V] log p(. | canvas, latent)."""
    rows = len(latent)
    several = jax.tree.map(lambda x: jnp.repeat(x, rows, axis=0), canvas)
    call = Call(several.tokens, jnp.ones((rows,)), several.segment, several.positions, condition=several.condition,
                latent=latent)
    logits = denoise.run(params, call)[0].logits()
    logits = logits if bias is None else logits + bias
    return jax.nn.log_softmax(jnp.where(jnp.arange(logits.shape[-1]) == mask_id, -jnp.inf, logits))
