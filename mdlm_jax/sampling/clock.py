"""The time that a network which reads it is told: the one at which its noise is what it sees.

    decoder                    the network sees the whole row              it sees one block (block-causal, causal)
    with a grid of times       the time at which the row has as much       the grid's time
                               noise as block and later blocks together
    without                    that at which the process has this share    the same of the block
                               of masks among what is to be written

The row's noise is here (1 - alpha(t)) + ahead (1 - alpha(1)), where the shares ``here`` and ``ahead`` of what is to be
written lie in the block and in later ones: blocks before it are clean. Without blocks that is t itself. First hitting
has times of its own, which count in the same way. A decoder without a grid writes as many tokens as it likes, so its
steps say nothing about the noise, and the masks do: 1 - alpha(t) = share / (1 - mixing), `Process.masked_time`.
"""

import jax
import jax.numpy as jnp

from mdlm_jax.core.schedules import Linear, Schedule
from mdlm_jax.sampling.canvas import Canvas

PLAIN = Linear(0.0)  # 1 - alpha(t) = t


def sees_all(model) -> bool:
    """Whether noise anywhere in the row matters to the network."""
    return model.contract == "bidirectional"


def shares(model, canvas: Canvas, low: jax.Array, block: int) -> tuple[jax.Array, jax.Array]:
    """[B] float32 each: the shares of what is to be written that lie in the block from ``low`` on, and behind it."""
    if not sees_all(model):
        return jnp.ones(low.shape, jnp.float32), jnp.zeros(low.shape, jnp.float32)
    index, count = jnp.arange(canvas.shape[1]), jnp.maximum(canvas.editable.sum(1), 1)
    ahead = canvas.editable & (index >= (low + block)[:, None])
    here = canvas.editable & (index >= low[:, None]) & ~ahead
    share_here, share_ahead = ((x.sum(1) / count).astype(jnp.float32) for x in (here, ahead))
    return share_here, share_ahead


def whole_noise(look, noise: jax.Array, schedule: Schedule) -> jax.Array:
    """[B]: 1 - alpha of all the network sees, where the look's block has ``noise`` [B]."""
    return look.here * noise + look.ahead * schedule.complement(jnp.ones_like(noise))


def whole_time(look, time: jax.Array, schedule: Schedule) -> jax.Array:
    """[B]: the time at which the row is as noisy as with its block at ``time`` [B]."""
    found = schedule.inverse_complement(whole_noise(look, schedule.complement(time), schedule))
    return jnp.where(look.here == 1, time, found)


def told(model, decoder, look) -> jax.Array:
    """[B] float32: what the network is told at this step."""
    process = _process(model, decoder)
    if decoder.reads_grid:
        return whole_time(look, look.t, PLAIN if process is None else process.schedule)
    if not model.timed:
        return look.t  # which nobody reads
    seen, tokens = look.inside & look.editable, look.tokens
    if sees_all(model):
        seen, tokens = look.canvas.editable, look.canvas.tokens
    share = (seen & (tokens == decoder.mask_id)).sum(1) / jnp.maximum(seen.sum(1), 1)
    return share.astype(jnp.float32) if process is None else process.masked_time(share.astype(jnp.float32))


def check(model, decoder, blocks: int) -> None:
    """Refuses a network that reads the time where that cannot be told.

    Raises:
      ValueError: naming the model's field and the remedy.
    """
    times = decoder.reads_grid or decoder.tells_time
    if model.timed and decoder.ahead and not sees_all(model):
        raise ValueError(f"ahead={decoder.ahead}: the network reads the time, one for a row, and blocks written "
                         "together are not equally noisy; set it to 0")
    if not model.timed or times and (blocks == 1 or not sees_all(model)):
        return
    name, why = type(decoder).__name__, "writes in blocks" if times else "has no grid of times"
    if model.learned:
        raise ValueError(f"{name}: {why}, and the network reads the time, which no share of noise tells where every id "
                         "has a schedule of its own; use LearnedScheduleAncestral without blocks")
    process = _process(model, decoder)
    if process is None and hasattr(model, "network"):
        raise ValueError(f"{name}: {why}, so the time that the network reads follows from its share of noise; give "
                         f"{type(model).__name__}(process=...), the noise it was trained with")
    if process is not None and not times:
        process.masked_time(jnp.float32(1))  # says where masks tell nothing


def _process(model, decoder):
    own = getattr(decoder, "process", None)
    return model.process if own is None else own
