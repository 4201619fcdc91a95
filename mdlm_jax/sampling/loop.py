"""The sampling loop: network, decoder, network, decoder, ... block after block until the canvas is done."""

import dataclasses
from collections.abc import Callable, Iterator
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AbstractMesh, Mesh

from mdlm_jax.models.conditioning import checked_classes
from mdlm_jax.models.denoise import as_model
from mdlm_jax.models.sharding import LENGTH_AXIS
from mdlm_jax.sampling import clock, memory, own, placement
from mdlm_jax.sampling import grid as grids
from mdlm_jax.sampling import program as programs
from mdlm_jax.sampling.canvas import Canvas
from mdlm_jax.sampling.decoder import Decoder, Plan, fold
from mdlm_jax.sampling.forward import hidden_like, look_at
from mdlm_jax.sampling.state import Numbers, Progress
from mdlm_jax.sampling.windows import Layout, lay_out


class Decoded(NamedTuple):
    """What a run of the loop gives.

    Attributes:
      tokens: [B, L] int32.
      forwards: [B] int32, how often the network was run for each row; with guidance twice a step.
      calls: how often it was run.
      order: [B, L] int32, the step at which each position got its token; -1 for what was given.
      log_prob: [B] float32, nats: log q of the forced tokens, where there were some.
      trace: [steps + 1, B, L] int32, the canvas before the first step and after each; and after blocks without steps.
    """

    tokens: jax.Array
    forwards: jax.Array
    calls: int
    order: jax.Array
    log_prob: jax.Array | None
    trace: np.ndarray | None


def decode(denoise, params, canvas: Canvas, decoder: Decoder, *, trace: bool = False, **options) -> Decoded:
    """Fills the editable positions of ``canvas``.

    Args:
      denoise: a model of `models.denoise`, or a function ``(params, tokens [B, L], time [B]) -> Prediction``; hashable,
        since the loop is compiled for it.
      decoder: how. Its numbers, and those below, do not recompile.
      trace: also return the canvas after every step.
      options: those of `begin`, ``steps`` among them.
    Raises:
      ValueError: options that do not fit each other, the decoder or the model; see `begin`.
    Examples:
      >>> from mdlm_jax.core.prediction import Prediction
      >>> from mdlm_jax.sampling.canvas import blank
      >>> from mdlm_jax.sampling.low_confidence import LowConfidence
      >>> def denoise(params, tokens, time):  # logits of any function; here the same at every position
      ...     return Prediction.from_logits(jnp.broadcast_to(params, (*tokens.shape, 4)))
      >>> canvas = blank(mask_id=3, rows=1, length=6, prompt=[0, 1])
      >>> run = decode(denoise, jnp.array([0.0, 0.0, 5.0, 0.0]), canvas, LowConfidence(mask_id=3), steps=2)
      >>> run.tokens, run.order, run.calls
      (Array([[0, 1, 2, 2, 2, 2]], dtype=int32), Array([[-1, -1,  0,  0,  1,  1]], dtype=int32), 2)
    """
    frames, now = [], None
    for now in stream(denoise, params, canvas, decoder, every="step" if trace else "block", **options):
        if trace:
            frames.append(np.asarray(now.canvas.tokens))
    assert now is not None  # there is at least one block
    rows, length = canvas.shape
    forced = options.get("forced") is not None
    return Decoded(
        now.canvas.tokens[:rows, :length],
        now.forwards[:rows],
        int(now.calls),
        now.order[:rows, :length],
        now.log_prob[:rows] if forced else None,
        np.stack(frames)[:, :rows, :length] if trace else None,
    )


def stream(denoise, params, canvas: Canvas, decoder: Decoder, *, every: str = "block",
           finish: Callable[[Progress], np.ndarray] | None = None, **options) -> Iterator[Progress]:
    """The progress before the first forward, and after every block or step; the last one is the result.

    A block uses up the cache of the progress before it.

    Args:
      every: block or step; steps are driven by Python, and give the same results.
      finish: asked after every block which rows, [B] bool, are finished: their other blocks are left as they are.
      options: those of `begin`, ``steps`` among them.
    Raises:
      ValueError, ConfigError: at once; as `begin`, or another word for ``every``. On the way: ids that no head has,
        and in the end masks, of a decoder that is none of the library.
    """
    if every not in ("block", "step"):
        raise ValueError(f"every={every!r}: choose block or step")
    return _streamed(*begin(denoise, params, canvas, decoder, **options), decoder, params, options.get("mesh"), every,
                     finish)


def _streamed(layout: Layout, numbers: Numbers, now: Progress, decoder, params, mesh, every, finish):
    yield now
    for number in range(layout.blocks):
        low = jnp.asarray(layout.low(number))
        following = _decoded(every, layout.program(number), decoder, params, numbers, now, low)
        while True:
            with placement.on(mesh):  # not while somebody else's code runs
                after = next(following, None)
            if after is None:
                break
            now = after
            if own.is_own(decoder):
                own.check_written(decoder, now.canvas, _columns(layout.model))
            yield now
        if finish is not None:
            now = _asked(layout.program(number), decoder, now, finish)
        if bool(now.finished.all()):
            return
    if own.is_own(decoder):
        own.check_left(decoder, now.canvas, now.finished)


def _asked(program, decoder, now: Progress, finish) -> Progress:
    """The progress with the rows finished that ``finish`` says; it sees, and they keep, nothing written ahead."""
    settled = programs.taken_back(program, decoder, now) if program.ahead else now
    finished = now.finished | jnp.asarray(finish(settled))
    tokens, order = now.canvas.tokens, now.order
    if program.ahead:
        tokens = jnp.where(finished[:, None], settled.canvas.tokens, tokens)
        order = jnp.where(finished[:, None], settled.order, order)
    return dataclasses.replace(now, canvas=dataclasses.replace(now.canvas, tokens=tokens), order=order,
                               finished=finished)


def _decoded(every: str, program, decoder, params, numbers, now: Progress, low: jax.Array) -> Iterator[Progress]:
    """A block's progress, at its end or after every step."""
    if every == "step":
        yield from programs.steps(program, decoder, params, numbers, now, low)
    else:
        yield programs.block(program, decoder, params, numbers, dataclasses.replace(now, cache=None), now.cache, low)


def begin(
    denoise,
    params,
    canvas: Canvas,
    decoder: Decoder,
    *,
    steps: int | None = None,
    block_length: int | None = None,
    grid: str | np.ndarray | None = None,
    cache: str = "none",
    guidance: float = 0.0,
    stop_id: int | None = None,
    forced: jax.Array | None = None,
    bias: jax.Array | None = None,
    seed: int = 0,
    mesh: Mesh | AbstractMesh | None = None,
    memory_budget: int | None = None,
) -> tuple[Layout, Numbers, Progress]:
    """What `stream` starts from: the checked plan of its blocks, its numbers, and the progress before any forward.

    ``params`` may be abstract.

    Args:
      steps: reverse steps in all; each block takes an equal share. None: for decoders that do not go by it.
      block_length: semi-autoregressive decoding, block after block from ``canvas.start`` on; None: all at once.
      grid: times of a block's steps, `sampling.grid`, for decoders that go by times; None: the decoder's own.
      cache: one of `sampling.caching.CACHES`, with its numbers or without: `sampling.windows`.
      guidance: strength w; every forward is then made twice. Of a canvas with classes the law is
        p(x | class)^(1 + w) / p(x)^w (classifier-free guidance, arXiv 2207.12598). Otherwise guidance is unsupervised:
        p(x | prompt)^(1 + w) / p(x | masks)^w, the second from the same canvas with its prompt masked (SMDM, arXiv
        2410.18514), for bidirectional networks: the others read what stands before as clean text, where training put
        no masks.
      stop_id: a row that has written it is finished at the end of the block; what is left of it is filled with it,
        and what was written ahead.
      forced: [B, L] tokens to be written in place of draws: exact scoring. Where decoders write ahead, without stop_id.
      bias: [V] float32 added to logits; -inf for tokens that must not appear.
      mesh: that of the parameters, where they lie on one. Rows are filled up to a number that it divides, by copies
        in which nothing is written, and spread over the devices; so is the cache.
      memory_budget: bytes of a device that parameters, cache and logits may take; None: what the device has.
    Raises:
      ValueError: steps below 1 or not divided by the blocks, a cache that the model's contract does not allow, guidance
        without a class or a prompt or of another contract, classes that the model does not have, a decoder that does
        not fit, options that it would not read.
      ConfigError: what cannot fit into memory (`sampling.memory`).
    """
    model = as_model(denoise)
    own.check(decoder)
    layout = lay_out(model, canvas, decoder, block_length=block_length, cache=cache, guided=bool(guidance))
    each = check(model, canvas, decoder, layout, steps, grid, guidance, forced)
    layout = dataclasses.replace(layout, quota=-(-layout.block // each))
    if decoder.ahead and forced is not None and stop_id is not None:
        raise ValueError(f"stop_id={stop_id}: {type(decoder).__name__} writes ahead of it what is no part of the row "
                         "in the end, but of its score; leave it out, or set ahead=0")
    _check_mesh(decoder, layout, mesh)
    canvas, forced = placement.filled_up(canvas, forced, mesh)
    memory.check(model, params, decoder, layout, rows=canvas.shape[0], mesh=mesh, budget=memory_budget)
    layout = dataclasses.replace(layout, start=np.pad(layout.start, (0, canvas.shape[0] - len(layout.start)), "edge"))
    row_keys = jax.vmap(jax.random.fold_in, in_axes=(None, 0))(jax.random.key(seed), canvas.row_ids)
    numbers = Numbers(
        steps=jnp.int32(each),
        times=jnp.asarray(grids.padded(grids.times(decoder.grid(each) if grid is None else grid, each))),
        keys=fold(row_keys, 1),
        guidance=jnp.float32(guidance),
        stop_id=jnp.int32(-1 if stop_id is None else stop_id),
        forced=forced,
        bias=bias,
    )
    canvas = decoder.init(canvas, fold(row_keys, 0))
    devices = None if mesh is None else placement.mesh_of(params)
    return layout, numbers, _first(model, layout, decoder, params, numbers, canvas, guidance, devices)


def check(model, canvas: Canvas, decoder: Decoder, layout: Layout, steps: int | None, grid, guidance, forced) -> int:
    """Refuses options that do not fit each other, the decoder or the model, as `begin` does; the steps of a block."""
    _check_read(decoder, steps, grid, layout.blocks)
    each = 1 if steps is None else steps // layout.blocks
    if grid is not None:
        grids.times(grid, each)
    _check_fit(model, canvas, decoder, layout, each, grid is not None, guidance, forced)
    return each


def check_scorable(decoder: Decoder, asked: str = "forced") -> None:
    """ValueError where draws cannot be forced: what is written does not tell the path. ``asked``: by which option."""
    if not decoder.scorable:
        raise ValueError(f"{asked}: {type(decoder).__name__} chooses positions at random, or by what it drew; its "
                         "log-probability is no sum over one path, so take another, such as margin or entropy_bound")


def _check_read(decoder: Decoder, steps: int | None, grid, blocks: int) -> None:
    """Refuses what the decoder would not read, and steps that its blocks cannot share."""
    name = type(decoder).__name__
    if (steps is None) == decoder.reads_steps:
        raise ValueError(f"steps={steps}: " + (f"{name} goes by them; give a number" if steps is None else
                                               f"{name} takes as many as it needs; leave them out"))
    if grid is not None and not decoder.reads_grid:
        raise ValueError(f"grid={grid!r}: {name} does not go by times; leave it out")
    if steps is not None and steps < 1:
        raise ValueError(f"steps={steps}: must be at least 1")
    if steps is not None and steps % blocks:
        raise ValueError(f"steps={steps}: must be a multiple of the {blocks} blocks, so that each takes as many")


def _check_fit(model, canvas: Canvas, decoder: Decoder, layout: Layout, steps, grid: bool, guidance, forced) -> None:
    cache = layout.cache
    prompted = bool((~canvas.editable & (True if canvas.segment is None else canvas.segment > 0)).any())
    if canvas.condition is not None:
        checked_classes(np.asarray(canvas.condition), getattr(model, "classes", 0), canvas.shape[0])
    elif guidance:
        _check_unsupervised(model, decoder, prompted, guidance)
    if forced is not None:
        check_scorable(decoder)
    if decoder.reuses and model.timed:
        raise ValueError(f"{type(decoder).__name__}: leaves forwards out where no token changed, and the network reads "
                         "the time as well; take Ancestral without reuse, or another decoder")
    if getattr(model, "latent", False):
        _check_mixture(decoder, forced)
    if decoder.reuses and cache != "none":
        raise ValueError(f"cache={cache!r}: {type(decoder).__name__} leaves forwards out where no token changed, and "
                         "windows are read beside what the last one stored; use cache='none', or leave out reuse")
    if cache != "none" and model.shifted and not decoder.opens and layout.block > 1:
        raise ValueError(f"cache={cache!r}: the network scores a token from the row before it, which a window leaves "
                         f"out, and {type(decoder).__name__} does not write a block's first token beforehand; use "
                         "cache='none', or a decoder that goes by confidence")
    network = getattr(model, "network", None)
    decoder.check(Plan(
        contract=model.contract, shifted=model.shifted, learned=model.learned, steps=steps,
        block_length=layout.block, tokens=min(layout.block, int(canvas.editable.sum(1).max())),
        columns=_columns(model), blocks=layout.blocks, cache=cache, prompted=prompted,
        padding=getattr(model, "padding", True), timed=model.timed, backend=getattr(network, "backend", "xla"),
        pooled=bool(getattr(getattr(network, "moe", None), "block", 0)),
        guidance=guidance, forced=forced is not None, grid=grid,
    ))
    clock.check(model, decoder, layout.blocks)


def _check_mesh(decoder: Decoder, layout: Layout, mesh) -> None:
    """Refuses to split the positions of what runs on single ones, or on some more than the canvas has."""
    parts = 1 if mesh is None else dict(mesh.shape).get(LENGTH_AXIS, 1)
    if parts == 1:
        return
    name, shadows = type(decoder).__name__, decoder.shadows(layout.block)
    if decoder.besides or shadows and (layout.length + shadows) % parts:
        why = "has a twin write token by token" if decoder.besides else f"runs on {layout.length + shadows} positions"
        raise ValueError(f"mesh: {LENGTH_AXIS}={parts} splits positions, and {name} {why}; take a mesh with "
                         f"{LENGTH_AXIS}=1")


def _check_mixture(decoder: Decoder, forced) -> None:
    """Refuses what takes the draw of a latent for the law, or for the same in the next step."""
    if forced is not None:
        raise ValueError("forced: the network reads a latent that each step draws, and its law is a mixture over them; "
                         "take evaluation.mixture, which has that of one step")
    if decoder.reuses or decoder.steady:
        does = "leaves forwards out where no token changed" if decoder.reuses else "asks twice about the same row"
        raise ValueError(f"{type(decoder).__name__}: {does}, and the network reads a latent that each step draws; take "
                         "another decoder")


def _columns(model) -> int:
    """Columns of the head that are read; 0: not known."""
    head = getattr(getattr(model, "network", None), "head_size", 0)
    return min(getattr(model, "columns", 0) or head, head)


def _check_unsupervised(model, decoder: Decoder, prompted: bool, guidance: float) -> None:
    if not prompted:
        raise ValueError(f"guidance={guidance}: guides towards a prompt, and the canvas has none; leave it at 0")
    if model.contract != "bidirectional":
        raise ValueError(f"guidance={guidance}: masks the prompt, which a {model.contract} network reads as text; "
                         "leave it at 0")
    if decoder.mask_id is None:
        raise ValueError(f"guidance={guidance}: masks the prompt, and the process has no masks; leave it at 0")


def _first(model, layout, decoder, params, numbers: Numbers, canvas: Canvas, guidance, devices) -> Progress:
    """The progress before the first forward."""
    rows, length = canvas.shape
    cache = None
    if layout.slots:
        cache = placement.empty_cache(model, rows * (2 if guidance else 1), layout.slots, devices)
    none = jnp.zeros((rows,), jnp.int32)
    false = jnp.zeros((rows,), bool)
    now = Progress(
        canvas=canvas, cache=None, low=jnp.asarray(layout.low(0)), state=None, hidden=None, fresh=~false, step=none,
        updates=none, forwards=none, calls=jnp.int32(0), done=false, finished=~canvas.editable.any(1),
        order=jnp.full((rows, length), -1, jnp.int32), log_prob=jnp.zeros((rows,), jnp.float32), first_masks=none,
    )
    if decoder.reuses or decoder.remembers:
        full = dataclasses.replace(now, cache=cache)
        now = dataclasses.replace(now, hidden=hidden_like(layout.program(0), decoder, params, numbers, full))
    if decoder.lasts:
        look = look_at(layout.program(0), decoder, numbers, now)
        now = dataclasses.replace(now, state=decoder.begin(look, now.hidden))
    return dataclasses.replace(placement.placed(now, devices), cache=cache)
