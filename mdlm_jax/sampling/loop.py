"""The compiled sampling loop: network, decoder, network, decoder, ... until the canvas is done."""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from mdlm_jax.sampling.ancestral import Ancestral
from mdlm_jax.sampling.canvas import Canvas


class Sampled(NamedTuple):
    """What a run of the loop gives."""

    tokens: jax.Array  # [B, L] int32
    forwards: int  # network calls
    trace: np.ndarray | None  # [steps + 1, B, L] int32, the canvas before the first and after every step


def sample(
    denoise: Callable,
    params,
    canvas: Canvas,
    decoder: Ancestral,
    *,
    steps: int,
    seed: int = 0,
    trace: bool = False,
) -> Sampled:
    """Fills the editable positions of ``canvas``.

    Args:
      denoise: ``(params, tokens [B, L], time [B]) -> Prediction``; hashable, since the loop is compiled for it.
      steps: number of reverse steps, one forward each, or two with guidance. Another number does not recompile, unless
        ``trace`` is set.
      trace: also return the canvas after every step.
    Raises:
      ValueError: steps below 1, or guidance where everything is editable.
    """
    if steps < 1:
        raise ValueError(f"steps={steps}: must be at least 1")
    if decoder.guidance and bool(canvas.editable.all()):
        raise ValueError(f"guidance={decoder.guidance}: guides towards a prompt, and the canvas has none")
    key = jax.random.key(seed)
    run = _traced if trace else _untraced
    arguments = (steps,) if trace else (jnp.asarray(steps, jnp.int32),)
    tokens, frames = jax.block_until_ready(run(denoise, decoder, *arguments, params, canvas, key))
    return Sampled(tokens, steps * decoder.forwards, None if frames is None else np.asarray(frames))


def _step(denoise, decoder, params, canvas, step, steps, key) -> Canvas:
    time = jnp.broadcast_to(decoder.time(step, steps), canvas.row_ids.shape)
    return decoder.update(canvas, decoder.predict(denoise, params, canvas, time), step, steps, key)


@functools.partial(jax.jit, static_argnums=(0, 1))
def _untraced(denoise, decoder, steps, params, canvas, key):
    first = decoder.init(canvas, key)
    final = jax.lax.fori_loop(
        0, steps, lambda step, now: _step(denoise, decoder, params, now, step, steps, key), first
    )
    return final.tokens, None


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def _traced(denoise, decoder, steps, params, canvas, key):
    def body(now, step):
        after = _step(denoise, decoder, params, now, step, jnp.asarray(steps, jnp.int32), key)
        return after, after.tokens

    first = decoder.init(canvas, key)
    final, frames = jax.lax.scan(body, first, jnp.arange(steps, dtype=jnp.int32))
    return final.tokens, jnp.concatenate([first.tokens[None], frames])
