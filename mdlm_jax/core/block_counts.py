"""Numbers of masks block by block: the bound of block diffusion (BD3-LM, arXiv 2503.09573), exact at both ends.

A row of L tokens is cut into blocks of K at indices 0, K, 2K, ...; block b is a masked process of its own given the
clean blocks before it. With the count bound (`core.counts`) for each,

    -log p(x) <= sum_b sum_{n=1..K_b} E[ (1/n) sum_{masked in b} -log p(x_i | x_{<b}, x_b with n masks) ],

K_b the positions of block b that noise may touch. K = L is the masked bound, K = 1 the chain rule itself: an equality,
and no noise at all.
"""

import jax
import jax.numpy as jnp

from mdlm_jax.core import counts, levels, weights

_GOLDEN = 0.6180339887498949
_SMALLEST = 2.0**-24


def block_levels(u: jax.Array, blocks: int, paired: bool) -> jax.Array:
    """[B, blocks] in (0, 1): block b of a row stands at the fraction of u + b * golden ratio.

    Every block's level is uniform if u is, and spread as evenly over the rows of a batch; blocks of one row differ. No
    loss sees two blocks' masks at once, so how the levels of a row hang together changes no mean.

    Args:
      u: [B] in (0, 1).
      paired: rows 2i, 2i+1 have u and 1 - u, and so have their blocks.
    """
    shift = jnp.asarray([block * _GOLDEN % 1.0 for block in range(blocks)], u.dtype)
    first = u[::2] if paired else u
    level = jnp.clip((first[:, None] + shift) % 1.0, _SMALLEST, 1.0 - _SMALLEST)
    return jnp.stack([level, 1.0 - level], axis=1).reshape(u.shape[0], blocks) if paired else level


def draw_block_counts(
    keys: jax.Array,
    u: jax.Array,
    noise_mask: jax.Array,
    law: levels.Law = levels.Uniform(),  # noqa: B008 (frozen)
    *,
    weighting: weights.Weighting = weights.Elbo(),  # noqa: B008 (frozen)
    both: bool = False,
) -> tuple[counts.CountDraw, ...]:
    """`counts.draw_counts`, or with ``both`` `counts.draw_both`, in every block; one block of L gives the same masks.

    Args:
      keys: [B] keys, one a row.
      u: [B, L / K] in (0, 1), from `block_levels`.
      noise_mask: [B, L] bool.
    Returns:
      one draw, or a mask and its complement: ``masked`` [B, L]; ``weight`` [B, L], the block's at each position;
      ``count`` and ``eligible`` [B, L / K].
    """
    weights.check(weighting, law)
    rows, length = noise_mask.shape
    blocks = u.shape[1]
    scores = counts.random_scores(keys, length)
    draws = counts.draw_from_scores(
        scores.reshape(rows * blocks, -1), u.reshape(-1), noise_mask.reshape(rows * blocks, -1), law, weighting, both
    )
    return tuple(
        counts.CountDraw(
            draw.masked.reshape(rows, length),
            draw.count.reshape(rows, blocks),
            draw.eligible.reshape(rows, blocks),
            jnp.repeat(draw.weight.reshape(rows, blocks), length // blocks, axis=1),
        )
        for draw in draws
    )
