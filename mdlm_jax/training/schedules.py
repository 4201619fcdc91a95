"""The learning-rate schedule and the optimiser of a run."""

from typing import Any

import jax
import jax.numpy as jnp
import optax

from mdlm_jax.config import TrainConfig


def learning_rate(train: TrainConfig) -> optax.Schedule:
    """Linear warm-up, then cosine to a tenth, constant, or linear to zero.

    With n = count + 1 the number of the update (1 to S = ``steps``), W = ``warmup_steps`` and P = ``learning_rate``:
      n <= W     P n / W, so the first update already moves and update W has the full P;
      cosine     P (0.1 + 0.9 (1 + cos(pi (n - W) / (S - W))) / 2), exactly P / 10 in the last update;
      constant   P;
      linear     P (1 - (n - W) / (S - W + 1)), which would be zero in the update after the last: none is wasted.

    Returns:
      count (int, scalar or array) -> float32 of the same shape. After the last update the rate stays at its end value.
    """
    steps, warmup, peak = train.steps, train.warmup_steps, train.learning_rate

    def decay(n):
        if train.lr_schedule == "cosine":
            return 0.1 + 0.45 * (1.0 + jnp.cos(jnp.pi * (n - warmup) / max(steps - warmup, 1)))
        if train.lr_schedule == "linear":
            return (steps + 1 - n) / (steps + 1 - warmup)  # integers above: no cancellation near the end
        return jnp.ones(n.shape)

    def schedule(count):
        n = jnp.minimum(jnp.asarray(count) + 1, steps)
        return peak * jnp.where(n <= warmup, n / max(warmup, 1), decay(n)).astype(jnp.float32)

    return schedule


def decay_mask(params: Any) -> Any:
    """True for the parameters that weight decay pulls to zero: matrices (two dimensions or more).

    Scales, norms and biases, the routers' among them, are left alone whatever their shape: in a stack of scanned layers
    they have two or three dimensions too.
    """

    def decays(path, leaf):
        return leaf.ndim >= 2 and not jax.tree_util.keystr(path[-1:], simple=True).endswith(("scale", "bias", "_norm"))

    return jax.tree.map_with_path(decays, params)


def optimizer(train: TrainConfig) -> optax.GradientTransformation:
    """AdamW (arXiv:1711.05101) on gradients clipped to the global norm ``clip_norm``, at ``learning_rate(train)``.

    Weight decay is multiplied by the learning rate and applies where ``decay_mask`` is True.
    """
    return optax.chain(
        optax.clip_by_global_norm(train.clip_norm),
        optax.adamw(
            learning_rate(train), b1=train.b1, b2=train.b2, weight_decay=train.weight_decay, mask=decay_mask
        ),
    )
