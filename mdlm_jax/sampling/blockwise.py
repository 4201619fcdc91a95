"""Sampling block after block, for networks that read from left to right: block diffusion, and one token at a time."""

import dataclasses
from collections.abc import Callable

import jax.numpy as jnp
import numpy as np

from mdlm_jax.sampling.ancestral import Ancestral
from mdlm_jax.sampling.canvas import Canvas
from mdlm_jax.sampling.loop import Sampled, sample


def sample_in_blocks(
    denoise: Callable,
    params,
    canvas: Canvas,
    decoder: Ancestral,
    *,
    block_length: int,
    steps: int,
    seed: int = 0,
    trace: bool = False,
) -> Sampled:
    """Fills the editable positions of ``canvas`` block after block, each by `loop.sample` given those before it.

    The whole canvas passes through the network at every step; blocks that are still masks must be invisible to it. One
    compilation serves all blocks. Noise belongs to the position, so every block takes the same seed.

    Args:
      denoise, decoder, seed, trace: as for `loop.sample`.
      block_length: blocks begin at indices 0, block_length, ...
      steps: reverse steps in all: each block with something to write takes its share, rounded up.
    Raises:
      ValueError: a decoder with guidance, which would take earlier blocks for the prompt.
    """
    if decoder.guidance:
        raise ValueError(f"guidance={decoder.guidance}: takes earlier blocks for the prompt; leave it at 0")
    block = np.arange(canvas.tokens.shape[1]) // block_length
    editable = np.asarray(canvas.editable)
    wanted = [number for number in range(block[-1] + 1) if editable[:, block == number].any()]
    each = -(-steps // max(1, len(wanted)))
    frames, forwards, now = [np.asarray(canvas.tokens)[None]], 0, canvas.tokens
    for number in wanted:
        here = dataclasses.replace(canvas, tokens=now, editable=jnp.asarray(editable & (block == number)))
        run = sample(denoise, params, here, decoder, steps=each, seed=seed, trace=trace)
        now, forwards = run.tokens, forwards + run.forwards
        if trace:
            frames.append(run.trace[1:])
    return Sampled(now, forwards, np.concatenate(frames) if trace else None)
