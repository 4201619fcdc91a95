"""Whether greedy decoding writes an answer: the surest token first, one a pass (SMDM's LAMBADA protocol, 2410.18514).

At every pass the likeliest token of the position that the network is surest of is written; the first wrong one settles
it, so most answers cost few passes. A causal network needs one.
"""

import contextlib
import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from mdlm_jax.core import draws
from mdlm_jax.core.process import Process
from mdlm_jax.core.reduction import chunk_length
from mdlm_jax.evaluation.answers import BUDGET, Ruler, predict, time_of
from mdlm_jax.sampling.canvas import Canvas
from mdlm_jax.sampling.rows import Row


def greedy_match(ruler: Ruler, rows: Sequence[Row], *, batch_size: int = 32, mesh=None) -> np.ndarray:
    """[N] bool. Args: as `answers.log_likelihood`."""
    guidance = jnp.float32(ruler.guidance) if ruler.guidance else None
    hidden, active, right = [row.editable.copy() for row in rows], list(range(len(rows))), np.ones(len(rows), bool)
    with contextlib.nullcontext() if mesh is None else jax.sharding.use_abstract_mesh(mesh):
        while active:
            for chosen, canvas in ruler.canvases([rows[i] for i in active], batch_size, mesh):
                which = [active[i] for i in chosen]
                masked = np.zeros(canvas.shape, bool)
                for place, i in enumerate(which):
                    masked[place, : len(hidden[i])] = hidden[i]
                found, position = jax.device_get(
                    _surest(ruler.denoise, ruler.process, ruler.block, ruler.params, canvas, masked, guidance))
                for place, i in enumerate(which):
                    right[i] = found[place]
                    hidden[i][:] = False if ruler.causal else hidden[i] & (np.arange(len(hidden[i])) != position[place])
            active = [i for i in active if right[i] and hidden[i].any()]
    return right


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def _surest(denoise, process: Process, block: int, params, canvas: Canvas, hidden, guidance):
    """Whether the likeliest token of the surest hidden position is the row's, and that position, [B] each; of a causal
    network, whether those of all positions are."""
    causal = denoise.contract == "causal"
    noisy = jnp.where(hidden & (not causal), jnp.asarray(process.mask_id or 0, canvas.tokens.dtype), canvas.tokens)
    time = time_of(process, hidden, canvas.editable)
    found = predict(denoise, params, canvas, noisy, time, process.mask_id, guidance)
    drawn = draws.draw(found, jnp.zeros(len(hidden), jnp.uint32), suppress=process.mask_id, where=hidden,
                       wants=("argmax", "top_log_prob"), chunk=chunk_length(len(noisy), found.logits_held, BUDGET))
    right = drawn.argmax == canvas.tokens
    if causal:
        return (right | ~hidden).all(1), jnp.zeros(len(hidden), jnp.int32)
    block_of = jnp.arange(hidden.shape[1]) // (block or hidden.shape[1])
    eligible = hidden & (block_of == block_of[hidden.argmax(1)][:, None])  # blocks are written from left to right
    position = jnp.where(eligible, drawn.top_log_prob, -jnp.inf).argmax(1)
    return jnp.take_along_axis(right, position[:, None], axis=1)[:, 0], position
