"""Which tokens of the canvas a forward runs on."""

import jax
import jax.numpy as jnp

from mdlm_jax.sampling.decoder import Look, best_first, take_best
from mdlm_jax.sampling.state import Program, Progress, Scattered, Window

_NOWHERE = 1 << 30  # where padding stands: beyond the end of every canvas and cache


def fed(program: Program, decoder, now: Progress, look: Look, window: Window | Scattered):
    """index [B, L], where in the canvas the tokens stand; columns [B, W], which of them are the look's, None for all;
    and where they go in the cache, [B] where they stand in a row, else the index.

    A position of the look that is not run has the column of another.
    """
    if isinstance(window, Scattered):
        index, chosen = _chosen(wanted(decoder, now, look, window), look, window.length)
        return index, chosen, index
    start = jnp.zeros_like(now.low) if window.back is None else jnp.maximum(now.low - window.back, 0)
    back = (program.reach - 1) * program.block if program.reach else None
    same = window == Window(look.tokens.shape[1], back)
    columns: jax.Array | None = None if same else jnp.minimum(look.index - start[:, None], window.length - 1)
    return start[:, None] + jnp.arange(window.length), columns, start


def wanted(decoder, now: Progress, look: Look, window: Scattered) -> jax.Array:
    """[B, S] bool: the positions of the canvas that the step needs."""
    canvas = now.canvas
    masked = canvas.editable & (canvas.tokens == decoder.mask_id)
    written = canvas.editable & (now.order == (now.updates - 1)[:, None])
    return written | (_soon(decoder, look, masked, written, window) if window.most else masked)


def _soon(decoder, look: Look, masked: jax.Array, written: jax.Array, window: Scattered) -> jax.Array:
    """[B, S] bool: the masks that this step will write, and those nearest to each that are not yet taken, in turn."""
    score, count = decoder.foreseen(look)
    targets = best_first(score, look.masked)[:, : window.most]
    going = jnp.arange(targets.shape[1]) < jnp.minimum(count, look.masked.sum(1))[:, None]
    targets = jnp.where(going, jnp.take_along_axis(look.index, targets, axis=1), _NOWHERE)
    put = jax.vmap(lambda row, at: row.at[at].set(True, mode="drop"))
    index = jnp.arange(masked.shape[1])

    def around(number, taken):
        away = index - targets[:, number][:, None]
        near = take_best(-(2 * jnp.abs(away) - (away < 0)), masked & ~taken, going[:, number] * window.around)
        return taken | near

    return jax.lax.fori_loop(0, targets.shape[1], around, put(written, targets))


def _chosen(chosen: jax.Array, look: Look, length: int) -> tuple[jax.Array, jax.Array]:
    """Index and columns of the positions where ``chosen`` [B, S] is True, from the left, in ``length`` places."""
    order = jnp.argsort(~chosen, axis=1, stable=True)[:, :length]
    index = jnp.where(jnp.arange(length) < chosen.sum(1, keepdims=True), order, _NOWHERE)
    rank = jnp.cumsum(chosen, axis=1) - 1
    at = jnp.minimum(look.index, chosen.shape[1] - 1)
    return index, jnp.clip(jnp.take_along_axis(rank, at, axis=1), 0, length - 1)
