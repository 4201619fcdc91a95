"""A step up to the prediction: what the decoder looks at, what the network is asked, and the rows that answer it."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp

from mdlm_jax.core.guidance import unconditional_tokens
from mdlm_jax.core.prediction import Prediction
from mdlm_jax.models.conditioning import NO_CLASS
from mdlm_jax.models.denoise import Call
from mdlm_jax.sampling import clock
from mdlm_jax.sampling.canvas import Canvas
from mdlm_jax.sampling.decoder import Look, fold
from mdlm_jax.sampling.fed import fed
from mdlm_jax.sampling.state import Program, Progress, Scattered, Window

_LATENT = 1 << 20  # of the streams of a look, beyond those of decoders


def look_at(program: Program, decoder, numbers, now: Progress, active=None, entering: bool = False) -> Look:
    """The decoder's view."""
    canvas = now.canvas
    first, width = _reach(program, now)
    index = first[:, None] + jnp.arange(width)
    real = index < canvas.shape[1]
    take = functools.partial(take_at, index=index, real=real)
    active = ~now.finished if active is None else active
    editable = take(canvas.editable, fill=False) & (index < program.end(now.low)[:, None]) & active[:, None]
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
        updates=now.updates,
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
    width = (program.reach + program.ahead) * program.block
    return jnp.maximum(now.low - (program.reach - 1) * program.block, 0), width


def take_at(values: jax.Array, *, index: jax.Array, real: jax.Array, fill) -> jax.Array:
    """values[row, index] where that is ``real``, else ``fill``."""
    found = jnp.take_along_axis(values, jnp.minimum(index, values.shape[1] - 1), axis=1)
    return jnp.where(real, found, jnp.asarray(fill, values.dtype))


def put_at(all_: jax.Array, *, index: jax.Array, values: jax.Array) -> jax.Array:
    """``values`` [B, W] written at ``index``; places beyond the end are dropped."""
    return jax.vmap(lambda row, at, new: row.at[at].set(new, mode="drop"))(all_, index, values.astype(all_.dtype))


def predicted(program, decoder, params, numbers, now: Progress, look: Look, active):
    """The prediction for the look, the progress with cache, state and calls brought up to date, [B] forwards made."""
    each = 1 + program.guided
    ask = functools.partial(_predict, program, decoder, params, numbers, now, look)
    prediction, cache, state = ask(program.enter if look.entering else program.inner)
    # Below, only the head of the prediction above is used; the compiler drops the forward itself.
    if program.varies and not look.entering:
        step = now.step.max()  # of the rows that are going: they are in step
        hidden, cache, state = jax.lax.cond(program.anew(step), lambda: _kept(ask(program.enter)),
                                            lambda: _kept(ask(program.inner)))
        prediction = dataclasses.replace(prediction, hidden=hidden)
    if not decoder.reuses:
        now = dataclasses.replace(now, cache=cache, state=state, calls=now.calls + each)
        return prediction, now, active * each
    needed = (now.fresh & active).any()
    hidden = jax.lax.cond(
        needed,
        lambda: ask(program.inner)[0].hidden,
        lambda: now.hidden,
    )
    forwards = (active & now.fresh) * each
    now = dataclasses.replace(now, hidden=hidden, fresh=now.fresh & ~needed, calls=now.calls + needed * each)
    return dataclasses.replace(prediction, hidden=hidden), now, forwards


def hidden_like(program: Program, decoder, params, numbers, now: Progress) -> jax.Array:
    """Zeros of the shape and dtype of a prediction's hidden states, for decoders that remember one."""
    look = jax.eval_shape(lambda: look_at(program, decoder, numbers, now))

    def hidden(params, look):
        columns, call = _call(program, decoder, now, look, program.inner)
        return _of_look(_run(program, decoder, params, numbers, now, call)[0], columns, 0).hidden

    found = jax.eval_shape(hidden, params, look)
    return jnp.zeros(found.shape, found.dtype)


def _kept(found: tuple[Prediction, Any, Any]) -> tuple[jax.Array, Any, Any]:
    return found[0].hidden, *found[1:]


def _predict(program: Program, decoder, params, numbers, now: Progress, look: Look, window: Window | Scattered):
    """The prediction for the look, the cache and the decoder's state after a forward on ``window``."""
    columns, call = _call(program, decoder, now, look, window)
    call = decoder.inputs(call, look, now.state)
    found, cache = _run(program, decoder, params, numbers, now, call)
    state = decoder.heard(found, call, look, now.state)
    return _of_look(found, columns, 0 if call.shadow is None else call.shadow.shape[1]), cache, state


def _run(program: Program, decoder, params, numbers, now: Progress, call: Call) -> tuple[Prediction, Any]:
    """The prediction for the call's tokens, guided where it shall be, and the cache."""
    if program.guided:
        call = _doubled(call, now.canvas, decoder.mask_id)
    found, cache = program.model.run(params, call, now.cache if program.cached else None)
    if program.guided:
        seen, blind = jnp.split(found.hidden, 2)
        found = dataclasses.replace(found, hidden=seen).guided(blind, numbers.guidance)
    if numbers.bias is not None:
        bias = numbers.bias if found.head.bias is None else found.head.bias + numbers.bias
        found = dataclasses.replace(found, head=dataclasses.replace(found.head, bias=bias))
    return found, cache if program.cached else now.cache


def _call(program: Program, decoder, now: Progress, look: Look, window: Window | Scattered):
    """[B, W], the columns of the call's tokens that are the look's, None for all of them; and the call."""
    canvas = now.canvas
    index, columns, start = fed(program, decoder, now, look, window)
    order, time = _together(program, now, index), clock.told(program.model, decoder, look)
    latent = _latent(look) if getattr(program.model, "latent", False) else None
    if not program.cached:
        return columns, Call(canvas.tokens, time, canvas.segment, canvas.positions, order=order,
                             condition=canvas.condition, latent=latent)
    real = index < canvas.shape[1]
    take = functools.partial(take_at, index=index, real=real)
    segment = jnp.ones(canvas.shape, jnp.int32) if canvas.segment is None else canvas.segment
    return columns, Call(
        take(canvas.tokens, fill=0),
        time,
        take(segment, fill=0),
        take(canvas.place(), fill=0),
        start=start,
        order=order,
        condition=canvas.condition,
        latent=latent,
    )


def _latent(look: Look) -> jax.Array:
    """[B]: what a mixture (`models.latent`) is told of each row in this step, its copies and shadows alike."""
    return jax.vmap(jax.random.uniform)(look.stream(_LATENT))


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


def _doubled(call: Call, canvas: Canvas, mask_id: int | None) -> Call:
    """The rows again without their class; where they have none, with everything masked that is not to be written."""
    twice = jax.tree.map(lambda x: jnp.concatenate([x, x]), call)
    if call.condition is not None:
        none = jnp.full_like(call.condition, NO_CLASS)
        return dataclasses.replace(twice, condition=jnp.concatenate([call.condition, none]))
    editable = jnp.repeat(canvas.editable, call.tokens.shape[0] // canvas.shape[0], axis=0)  # of copies as of rows
    fixed = ~take_at(editable, index=call.index, real=call.index < canvas.shape[1], fill=True)
    assert mask_id is not None  # `loop.check` refuses this guidance where there are no masks
    blind = unconditional_tokens(call.tokens, fixed, mask_id)
    return dataclasses.replace(twice, tokens=jnp.concatenate([call.tokens, blind]))


def _of_look(found: Prediction, columns: jax.Array | None, shadows: int) -> Prediction:
    """The prediction at the columns [B, W] of each row, of which the decoder may have asked for several copies, and of
    its shadows, which stand behind."""
    if columns is None:
        return found
    rows, length = found.hidden.shape[:2]
    columns = jnp.repeat(columns, rows // columns.shape[0], axis=0)
    behind = jnp.broadcast_to(length - shadows + jnp.arange(shadows), (rows, shadows))
    columns = jnp.concatenate([columns, behind], axis=1)
    return dataclasses.replace(found, hidden=jnp.take_along_axis(found.hidden, columns[..., None], axis=1))
