"""The learning-rate schedule of a run."""

import jax.numpy as jnp
import optax

from mdlm_jax.config import LR_SCHEDULES, TrainConfig, parse_spec


def learning_rate(train: TrainConfig) -> optax.Schedule:
    """Linear warm-up, then cosine to a tenth, constant, linear to zero, or constant with a linear end (WSD).

    With n = count + 1 the number of the update (1 to S = ``steps``), W = ``warmup_steps`` and P = ``learning_rate``:
      n <= W     P n / W, so the first update already moves and update W has the full P;
      cosine     P (0.1 + 0.9 (1 + cos(pi (n - W) / (S - W))) / 2), exactly P / 10 in the last update;
      constant   P;
      linear     P (1 - (n - W) / (S - W + 1)), which would be zero in the update after the last: none is wasted;
      wsd:F      P, and in the last D = round(F S) updates P (S + 1 - n) / (D + 1), zero in the update after the last
                 (warm-up, stable, decay: arXiv 2404.06395).

    Returns:
      count (int, scalar or array) -> float32 of the same shape. After the last update the rate stays at its end value.
    """
    steps, warmup, peak = train.steps, train.warmup_steps, train.learning_rate
    kind, numbers = parse_spec("train.lr_schedule", train.lr_schedule, LR_SCHEDULES)

    def decay(n):
        if kind == "cosine":
            return 0.1 + 0.45 * (1.0 + jnp.cos(jnp.pi * (n - warmup) / max(steps - warmup, 1)))
        if kind == "linear":
            return (steps + 1 - n) / (steps + 1 - warmup)  # integers above: no cancellation near the end
        if kind == "wsd":
            return jnp.minimum(1.0, (steps + 1 - n) / (round(numbers[0] * steps) + 1))
        return jnp.ones(n.shape)

    def schedule(count):
        n = jnp.minimum(jnp.asarray(count) + 1, steps)
        return peak * jnp.where(n <= warmup, n / max(warmup, 1), decay(n)).astype(jnp.float32)

    return schedule
