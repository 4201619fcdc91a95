"""One block of decoding as a compiled program: begin, forwards and updates until every row is done, end.

The same four functions are driven by `jax.lax.while_loop` (`block`) or by Python, one step at a time (`steps`), which
is how traces are kept and results streamed.
"""

import dataclasses
import functools
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp

from mdlm_jax.core.guidance import unconditional_tokens
from mdlm_jax.core.prediction import Prediction
from mdlm_jax.models.denoise import Call
from mdlm_jax.sampling import clock
from mdlm_jax.sampling.canvas import Canvas
from mdlm_jax.sampling.decoder import Decoder, Look, Move, fold
from mdlm_jax.sampling.placement import constrained


@dataclasses.dataclass(frozen=True)
class Window:
    """The part of the canvas a forward runs on: ``length`` tokens from ``back`` before the block; None: from 0 on."""

    length: int
    back: int | None = None


@dataclasses.dataclass(frozen=True)
class Program:
    """What is compiled for.

    Attributes:
      model: `models.denoise.Denoiser` or alike.
      block: its length. ``reach``: how many blocks the decoder may write in, the newest last; 0: the whole canvas.
      enter: window of a block's first forward, or None if it is like the others; ``inner``: of the others.
      cached: whether windows run beside a cache.
      guided: whether every forward is run twice, with the prompt and without.
    """

    model: Any
    block: int
    reach: int
    enter: Window | None
    inner: Window
    cached: bool
    guided: bool


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Numbers:
    """Call arguments that do not recompile.

    Attributes:
      steps: [] of a block; times: [S] float32, zeros after the last.
      keys: [B], one a row. guidance: []. stop_id: [] int32, a token after which a row is finished; -1: none.
      forced: [B, L] int32 or None.
      bias: [V] float32 or None, added to the head's: -inf for tokens that must not appear.
    """

    steps: jax.Array
    times: jax.Array
    keys: jax.Array
    guidance: jax.Array
    stop_id: jax.Array
    forced: jax.Array | None = None
    bias: jax.Array | None = None


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Progress:
    """Where decoding stands.

    Attributes:
      canvas, cache: the tokens, and keys and values of those that are settled.
      low: [B] int32, where the current block begins.
      state: the decoder's.
      hidden: [B, W, D], the last prediction where the decoder reuses it, zeros where its state holds some, else None.
      fresh: [B] bool, rows that have changed since.
      step, updates: [B] int32, steps a row has had in this block and in all.
      forwards: [B] int32, runs of the network a row needed. calls: [] int32, runs there were.
      done, finished: [B] bool, rows done with the block, rows done altogether.
      order: [B, L] int32, the update at which a position got its token, -1 before.
      log_prob: [B] float32, of the forced tokens so far.
      first_masks: [B] int32.
    """

    canvas: Canvas
    cache: Any
    low: jax.Array
    state: Any
    hidden: Any
    fresh: jax.Array
    step: jax.Array
    updates: jax.Array
    forwards: jax.Array
    calls: jax.Array
    done: jax.Array
    finished: jax.Array
    order: jax.Array
    log_prob: jax.Array
    first_masks: jax.Array


@functools.partial(jax.jit, static_argnums=0, donate_argnums=5)
def block(program: Program, decoder: Decoder, params, numbers: Numbers, now: Progress, cache, low) -> Progress:
    """Decodes the blocks [low, low + block), one a row. Apart from ``now``: the cache, whose memory is used again."""
    now = _begin(program, decoder, numbers, dataclasses.replace(now, cache=cache), low)
    if program.enter is not None:
        now = _step(program, decoder, params, numbers, now, True)
    now = jax.lax.while_loop(
        lambda now: _going(program, decoder, numbers, now),
        lambda now: _step(program, decoder, params, numbers, now, False),
        now,
    )
    return constrained(_end(program, decoder, numbers, now))


def steps(program: Program, decoder: Decoder, params, numbers: Numbers, now: Progress, low) -> Iterator[Progress]:
    """As `block`, giving the progress after every step; the last one is the block's result."""
    now = _jit(_begin, program)(decoder, numbers, now, low)
    entering, going = program.enter is not None, _jit(_going, program)
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
    now = dataclasses.replace(now, first_masks=first_masks, done=now.finished | ~(look.editable & look.inside).any(1))
    return dataclasses.replace(now, state=decoder.begin(look_at(program, decoder, numbers, now), now.hidden))


def _going(program: Program, decoder: Decoder, numbers: Numbers, now: Progress) -> jax.Array:
    return (~now.done & (now.step < decoder.limit(numbers.steps, program.block))).any()


def _step(program: Program, decoder: Decoder, params, numbers, now: Progress, entering: bool = False) -> Progress:
    active = ~now.done & (now.step < decoder.limit(numbers.steps, program.block))
    look = look_at(program, decoder, numbers, now, active, entering)
    prediction, now, forwards = _forward(program, decoder, params, numbers, now, look, active)
    move, state = decoder.update(prediction, look, now.state)
    state = jax.tree.map(lambda new, old: jnp.where(_like(active, new), new, old), state, now.state)
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
    left = after if decoder.mask_id is None else after | (canvas.tokens == decoder.mask_id)
    tokens = jnp.where(stopped[:, None] & canvas.editable & left, numbers.stop_id, canvas.tokens)
    return dataclasses.replace(
        now, canvas=dataclasses.replace(canvas, tokens=tokens), finished=now.finished | stopped
    )


def look_at(program: Program, decoder, numbers, now: Progress, active=None, entering: bool = False) -> Look:
    """The decoder's view."""
    canvas = now.canvas
    first, width = _reach(program, now)
    index = first[:, None] + jnp.arange(width)
    real = index < canvas.shape[1]
    take = functools.partial(_take, index=index, real=real)
    active = ~now.finished if active is None else active
    editable = take(canvas.editable, fill=False) & (index < (now.low + program.block)[:, None]) & active[:, None]
    last = numbers.times.shape[0] - 1
    here, ahead = clock.shares(program.model, canvas, now.low, program.block)
    return Look(
        tokens=take(canvas.tokens, fill=0 if decoder.mask_id is None else decoder.mask_id),
        editable=editable,
        inside=(index >= now.low[:, None]) & (index < (now.low + program.block)[:, None]),
        index=index,
        place=take(canvas.place(), fill=0),
        step=now.step,
        steps=numbers.steps,
        t=numbers.times[jnp.minimum(now.step, last)],
        s=numbers.times[jnp.minimum(now.step + 1, last)],
        here=here,
        ahead=ahead,
        first_masks=now.first_masks,
        keys=fold(numbers.keys, now.updates),
        forced=None if numbers.forced is None else take(numbers.forced, fill=0),
        stop_id=numbers.stop_id,
        canvas=canvas,
        mask_id=decoder.mask_id,
        entering=entering,
        opening=entering and program.model.shifted,
    )


def _reach(program: Program, now: Progress) -> tuple[jax.Array, int]:
    """[B] where the look begins, and its width."""
    if program.reach == 0:
        return jnp.zeros_like(now.low), now.canvas.shape[1]
    return jnp.maximum(now.low - (program.reach - 1) * program.block, 0), program.reach * program.block


def _take(values: jax.Array, *, index: jax.Array, real: jax.Array, fill) -> jax.Array:
    """values[row, index] where that is ``real``, else ``fill``."""
    found = jnp.take_along_axis(values, jnp.minimum(index, values.shape[1] - 1), axis=1)
    return jnp.where(real, found, jnp.asarray(fill, values.dtype))


def _forward(program, decoder, params, numbers, now: Progress, look: Look, active):
    """The prediction for the look, the progress with cache and calls brought up to date, and [B] forwards made."""
    each = 1 + program.guided
    prediction, cache = _predict(program, decoder, params, numbers, now, look)
    if not decoder.reuses:
        return prediction, dataclasses.replace(now, cache=cache, calls=now.calls + each), active * each
    # Only the head of the prediction above is used then; the compiler drops the forward itself.
    needed = (now.fresh & active).any()
    hidden = jax.lax.cond(
        needed,
        lambda: _predict(program, decoder, params, numbers, now, look)[0].hidden,
        lambda: now.hidden,
    )
    forwards = (active & now.fresh) * each
    now = dataclasses.replace(now, hidden=hidden, fresh=now.fresh & ~needed, calls=now.calls + needed * each)
    return dataclasses.replace(prediction, hidden=hidden), now, forwards


def hidden_like(program: Program, decoder, params, numbers, now: Progress) -> jax.Array:
    """Zeros of the shape and dtype of a prediction's hidden states, for decoders that remember one."""
    look = jax.eval_shape(lambda: look_at(program, decoder, numbers, now))

    def hidden(params, look):
        start, call = _call(program, decoder, now, look, program.inner)
        return _run(program, decoder, params, numbers, now, look, start, call)[0].hidden

    found = jax.eval_shape(hidden, params, look)
    return jnp.zeros(found.shape, found.dtype)


def _predict(program: Program, decoder, params, numbers, now: Progress, look: Look) -> tuple[Prediction, Any]:
    window = program.enter if look.entering else program.inner
    start, call = _call(program, decoder, now, look, window)
    return _run(program, decoder, params, numbers, now, look, start, decoder.inputs(call, look, now.state))


def _run(program: Program, decoder, params, numbers, now: Progress, look: Look, start, call: Call):
    if program.guided:
        call = _doubled(call, now.canvas, start, decoder.mask_id)
    found, cache = program.model.run(params, call, now.cache if program.cached else None)
    found = _rows_of(found, look.index[:, 0] - start, look.tokens.shape[1], program.guided)
    if program.guided:
        seen, blind = jnp.split(found.hidden, 2)
        found = dataclasses.replace(found, hidden=seen).guided(blind, numbers.guidance)
    if numbers.bias is not None:
        bias = numbers.bias if found.head.bias is None else found.head.bias + numbers.bias
        found = dataclasses.replace(found, head=dataclasses.replace(found.head, bias=bias))
    return found, cache if program.cached else now.cache


def _call(program: Program, decoder, now: Progress, look: Look, window: Window) -> tuple[jax.Array, Call]:
    """Where the window starts, [B], and the call."""
    canvas = now.canvas
    start = jnp.zeros_like(now.low) if window.back is None else jnp.maximum(now.low - window.back, 0)
    index = start[:, None] + jnp.arange(window.length)
    order, time = _together(program, now, index), clock.told(program.model, decoder, look)
    if not program.cached:
        return start, Call(canvas.tokens, time, canvas.segment, canvas.positions, order=order)
    real = index < canvas.shape[1]
    take = functools.partial(_take, index=index, real=real)
    segment = jnp.ones(canvas.shape, jnp.int32) if canvas.segment is None else canvas.segment
    return start, Call(
        take(canvas.tokens, fill=0),
        time,
        take(segment, fill=0),
        take(canvas.place(), fill=0),
        start=start,
        order=order,
    )


def _together(program: Program, now: Progress, index: jax.Array) -> jax.Array | None:
    """[B, W], the order by which a block-causal network sees the blocks of the reach as one, up to the row's first.

    None: nothing but the index. Tokens before, and the blocks to come, keep theirs.
    """
    if program.reach < 2 or program.model.contract != "block_causal":
        return None
    begin = now.canvas.start // program.block * program.block
    begin = jnp.maximum(now.low - (program.reach - 1) * program.block, begin)
    inside = (index >= begin[:, None]) & (index < (now.low + program.block)[:, None])
    return jnp.where(inside, now.low[:, None], index)


def _doubled(call: Call, canvas: Canvas, start: jax.Array, mask_id: int) -> Call:
    """The rows again with everything masked that is not to be written."""
    index = start[:, None] + jnp.arange(call.tokens.shape[1])
    fixed = ~_take(canvas.editable, index=index, real=index < canvas.shape[1], fill=True)
    twice = jax.tree.map(lambda x: jnp.concatenate([x, x]), call)
    blind = unconditional_tokens(call.tokens, fixed, mask_id)
    return dataclasses.replace(twice, tokens=jnp.concatenate([call.tokens, blind]))


def _rows_of(found: Prediction, offset: jax.Array, width: int, guided: bool) -> Prediction:
    """Positions [offset, offset + width) of each row; what lies beyond the end repeats the last."""
    length = found.hidden.shape[1]
    offset = jnp.concatenate([offset, offset]) if guided else offset
    if width == length:
        return found
    index = jnp.minimum(offset[:, None] + jnp.arange(width), length - 1)
    return dataclasses.replace(found, hidden=jnp.take_along_axis(found.hidden, index[..., None], axis=1))


def _applied(decoder, numbers, now: Progress, look: Look, move: Move, active) -> Progress:
    """The move, where it may go."""
    write = move.write & look.editable
    tokens = jnp.where(write, move.tokens, look.tokens)
    if move.remask is not None:
        tokens = jnp.where(move.remask & look.editable, decoder.mask_id, tokens)
    changed = tokens != look.tokens
    before = _take(now.order, index=look.index, real=look.index < now.canvas.shape[1], fill=-1)
    order = jnp.where(changed, now.updates[:, None], before)
    if decoder.mask_id is not None:
        order = jnp.where(look.editable & (tokens == decoder.mask_id), -1, order)
    log_prob = now.log_prob
    if numbers.forced is not None:
        log_prob = log_prob + jnp.where(write & active[:, None], move.log_prob, 0.0).sum(1)
    put = functools.partial(_put, index=look.index)
    return dataclasses.replace(
        now,
        canvas=dataclasses.replace(now.canvas, tokens=put(now.canvas.tokens, values=tokens)),
        order=put(now.order, values=order),
        log_prob=log_prob,
        fresh=now.fresh | changed.any(1),
    )


def _put(all_: jax.Array, *, index: jax.Array, values: jax.Array) -> jax.Array:
    """``values`` [B, W] written at ``index``; places beyond the end are dropped."""
    return jax.vmap(lambda row, at, new: row.at[at].set(new, mode="drop"))(all_, index, values.astype(all_.dtype))


def _like(rows: jax.Array, leaf: jax.Array) -> jax.Array:
    return rows.reshape(rows.shape + (1,) * (leaf.ndim - 1))
