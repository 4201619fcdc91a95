"""One block of decoding as a compiled program: begin, forwards and updates until every row is done, end.

The same four functions are driven by `jax.lax.while_loop` (`block`) or by Python, one step at a time (`steps`), which
is how traces are kept and results streamed.
"""

import dataclasses
import functools
from collections.abc import Iterator

import jax
import jax.numpy as jnp

from mdlm_jax.sampling import forward, own
from mdlm_jax.sampling.decoder import Decoder, Look, Move
from mdlm_jax.sampling.forward import look_at
from mdlm_jax.sampling.placement import constrained
from mdlm_jax.sampling.state import Numbers, Program, Progress


@functools.partial(jax.jit, static_argnums=0, donate_argnums=5)
def block(program: Program, decoder: Decoder, params, numbers: Numbers, now: Progress, cache, low) -> Progress:
    """Decodes the blocks [low, low + block), one a row. Apart from ``now``: the cache, whose memory is used again."""
    now = _begin(program, decoder, numbers, dataclasses.replace(now, cache=cache), low)
    if program.enter is not None:
        now = _entered(program, decoder, params, numbers, now)
    now = jax.lax.while_loop(
        lambda now: _going(program, decoder, numbers, now),
        lambda now: _step(program, decoder, params, numbers, now, False),
        now,
    )
    return constrained(_end(program, decoder, numbers, now))


def steps(program: Program, decoder: Decoder, params, numbers: Numbers, now: Progress, low) -> Iterator[Progress]:
    """As `block`, giving the progress after every step; the last one is the block's result."""
    now = _jit(_begin, program)(decoder, numbers, now, low)
    going = _jit(_going, program)
    entering = program.enter is not None and (not program.ahead or bool(left(decoder, now).any()))
    while entering or bool(going(decoder, numbers, now)):
        now, entering = _jit(_step, program, entering)(decoder, params, numbers, now), False
        if bool(going(decoder, numbers, now)):
            yield now
    yield _jit(_end, program)(decoder, numbers, now)


def lower_step(program: Program, decoder: Decoder, params, numbers: Numbers, now: Progress, low, entering: bool):
    """One step of a block, lowered, for those who count what it costs; arrays may be abstract."""
    now = jax.eval_shape(functools.partial(_begin, program), decoder, numbers, now, low)
    return jax.jit(functools.partial(_step, program, entering=entering)).lower(decoder, params, numbers, now)


@functools.lru_cache(maxsize=64)
def _jit(function, program: Program, entering: bool | None = None):
    if entering is None:
        return jax.jit(functools.partial(function, program))
    return jax.jit(functools.partial(function, program, entering=entering))


def _begin(program: Program, decoder: Decoder, numbers: Numbers, now: Progress, low: jax.Array) -> Progress:
    now = dataclasses.replace(now, low=low, step=jnp.zeros_like(now.step), fresh=jnp.ones_like(now.fresh))
    look = look_at(program, decoder, numbers, now)
    first_masks = (look.masked & look.inside).sum(1, dtype=jnp.int32)
    done = now.finished | ~(look.editable & look.inside).any(1)
    if program.ahead:
        done = done | ~left(decoder, now)
    now = dataclasses.replace(now, first_masks=first_masks, done=done)
    if decoder.lasts:
        return now
    return dataclasses.replace(now, state=decoder.begin(look_at(program, decoder, numbers, now), now.hidden))


def left(decoder: Decoder, now: Progress) -> jax.Array:
    """[B] bool: whether a row has masks yet to be written, in whichever block."""
    return (now.canvas.editable & (now.canvas.tokens == decoder.mask_id)).any(1) & ~now.finished


def _entered(program: Program, decoder: Decoder, params, numbers: Numbers, now: Progress) -> Progress:
    """After a block's first forward; where decoders write ahead it is left out once nothing is left to write."""
    step = functools.partial(_step, program, decoder, params, numbers, entering=True)
    return jax.lax.cond(left(decoder, now).any(), step, lambda now: now, now) if program.ahead else step(now)


def _going(program: Program, decoder: Decoder, numbers: Numbers, now: Progress) -> jax.Array:
    return (~now.done & (now.step < decoder.limit(numbers.steps, program.block))).any()


def _step(program: Program, decoder: Decoder, params, numbers, now: Progress, entering: bool = False) -> Progress:
    active = ~now.done & (now.step < decoder.limit(numbers.steps, program.block))
    look = look_at(program, decoder, numbers, now, active, entering)
    before = now.state
    prediction, now, forwards = forward.predicted(program, decoder, params, numbers, now, look, active)
    move, state = own.update(decoder, prediction, look, now.state)
    state = jax.tree.map(lambda new, old: jnp.where(_like(active, new), new, old), state, before)
    now = _applied(decoder, numbers, now, look, move, active)
    now = dataclasses.replace(
        now, state=state, step=now.step + active, updates=now.updates + active, forwards=now.forwards + forwards
    )
    done = decoder.done(look_at(program, decoder, numbers, now, active, entering), state)
    return dataclasses.replace(now, done=now.done | (active & done))


def _end(program: Program, decoder: Decoder, numbers: Numbers, now: Progress) -> Progress:
    """Rows with the stop token are finished, and what is left of them is filled with it: later blocks, and masks."""
    canvas, index = now.canvas, jnp.arange(now.canvas.shape[1])
    after = index >= (now.low + program.block)[:, None]
    written = canvas.editable & ~after & (index >= canvas.start[:, None])
    stopped = (written & (canvas.tokens == numbers.stop_id)).any(1) & (numbers.stop_id >= 0)
    unwritten = after if decoder.mask_id is None else after | (canvas.tokens == decoder.mask_id)
    filled = stopped[:, None] & canvas.editable & unwritten
    tokens = jnp.where(filled, numbers.stop_id, canvas.tokens)
    return dataclasses.replace(
        now,
        canvas=dataclasses.replace(canvas, tokens=tokens),
        finished=now.finished | stopped,
        order=jnp.where(filled, -1, now.order) if program.ahead else now.order,
    )


def taken_back(program: Program, decoder: Decoder, now: Progress) -> Progress:
    """The progress without what unfinished rows have written ahead of the block: masks again."""
    assert decoder.mask_id is not None  # who writes ahead writes at masks
    canvas = now.canvas
    ahead = jnp.arange(canvas.shape[1]) >= (now.low + program.block)[:, None]
    ahead = ahead & canvas.editable & ~now.finished[:, None]
    tokens = jnp.where(ahead, decoder.mask_id, canvas.tokens)
    return dataclasses.replace(now, canvas=dataclasses.replace(canvas, tokens=tokens),
                               order=jnp.where(ahead, -1, now.order))


def _applied(decoder, numbers, now: Progress, look: Look, move: Move, active) -> Progress:
    """The move, where it may go."""
    write = move.write & look.editable
    tokens = jnp.where(write, move.tokens, look.tokens)
    if move.remask is not None:
        tokens = jnp.where(move.remask & look.editable, decoder.mask_id, tokens)
    changed = tokens != look.tokens
    before = forward.take_at(now.order, index=look.index, real=look.index < now.canvas.shape[1], fill=-1)
    order = jnp.where(changed, now.updates[:, None], before)
    if decoder.mask_id is not None:
        order = jnp.where(look.editable & (tokens == decoder.mask_id), -1, order)
    log_prob = now.log_prob
    if numbers.forced is not None:
        log_prob = log_prob + jnp.where(write & active[:, None], move.log_prob, 0.0).sum(1)
    put = functools.partial(forward.put_at, index=look.index)
    return dataclasses.replace(
        now,
        canvas=dataclasses.replace(now.canvas, tokens=put(now.canvas.tokens, values=tokens)),
        order=put(now.order, values=order),
        log_prob=log_prob,
        fresh=now.fresh | changed.any(1),
    )


def _like(rows: jax.Array, leaf: jax.Array) -> jax.Array:
    return rows.reshape(rows.shape + (1,) * (leaf.ndim - 1))
