"""Prompts in, answers out: batches of rows through the sampling loop, cut where they end."""

import dataclasses
from collections.abc import Callable, Iterator

import numpy as np

from mdlm_jax.errors import ConfigError
from mdlm_jax.generation import options as settings
from mdlm_jax.generation import prompts as given
from mdlm_jax.generation.options import Options, Sampler
from mdlm_jax.models.denoise import CausalDenoiser
from mdlm_jax.models.sharding import LENGTH_AXIS, data_shards
from mdlm_jax.sampling import loop
from mdlm_jax.sampling.program import Progress
from mdlm_jax.sampling.rows import Row, batches
from mdlm_jax.sampling.windows import lay_out

MASK_TEXT = "░"  # how a mask is shown in a text


@dataclasses.dataclass(frozen=True)
class Generation:
    """What became of one prompt; as a string, its text.

    Attributes:
      tokens: [n] int32, what was written, up to the end token or stop string; of `infill`, and of what is still under
        way, the row with its masks.
      text: the same as text, masks as ``░``; None without a tokenizer.
      finish: eos, stop (a stop string), length; None: still under way.
      forwards: runs of the network that the row needed.
      row: [L] int32, the row as it stands: prompt, answer, what was left after its end, and masks.
      given: [L] bool, what of it was not to be written.
      trace: [S + 1, L] int32, the row before the first step and after each, where it was asked for.
    """

    tokens: np.ndarray
    text: str | None
    finish: str | None
    forwards: int
    row: np.ndarray
    given: np.ndarray
    trace: np.ndarray | None = None

    def __repr__(self) -> str:
        return (f"Generation({str(self)!r}, tokens={len(self.tokens)}, finish={self.finish!r}, "
                f"forwards={self.forwards})")

    def __str__(self) -> str:
        return " ".join(map(str, self.tokens.tolist())) if self.text is None else self.text


@dataclasses.dataclass(frozen=True)
class Job:
    """Rows to be written, and how: everything that is checked before the first program is compiled.

    Attributes:
      each: steps of a block. ``wanted``: tokens of an answer; 0: a whole row is the answer (infill).
    """

    model: object
    sampler: Sampler
    options: Options
    rows: list[Row]
    each: int
    wanted: int


def answer_job(model, prompts, new_tokens: int | None, **keywords) -> Job:
    """The job of ``generate``; arguments and errors are its own."""
    options, numbers = settings.split(keywords)
    sampler = settings.sampler(model, options, numbers)
    _check_stop(model, options)
    rows, new_tokens = given.prompt_rows(model, sampler, prompts, new_tokens, options)
    return Job(model, sampler, options, rows, _each(options, new_tokens, sampler.block_length), new_tokens)


def infill_job(model, texts, hole: str, **keywords) -> Job:
    """The job of ``infill``."""
    contract = model.config.attention
    if contract != "bidirectional":
        raise ConfigError(f"infill: a {contract} network does not see what stands right of a hole; generate from a "
                          "prompt instead")
    options, numbers = settings.split({"block_length": 0, "stop_id": None} | keywords)
    if options.stop or options.stop_id is not None:
        raise ConfigError("stop, stop_id: holes have their length already; leave them out")
    sampler = settings.sampler(model, options, numbers)
    rows = given.infill_rows(model, sampler, texts, hole, options)
    holes = max(int(row.editable.sum()) for row in rows)
    size = sampler.block_length
    span = max(len(row) - row.start for row in rows) if size else holes
    return Job(model, sampler, options, rows, _each(options, span, size), 0)


def answers(job: Job) -> Iterator[tuple[int, Generation]]:
    """(index of the row, answer), batch after batch, shortest rows first."""
    every = "step" if job.options.trace else "block"
    for chosen, canvas in _batches(job):
        frames, now = [], None
        for now in _progress(job, chosen, canvas, every):
            if job.options.trace:
                frames.append(np.asarray(now.canvas.tokens[: len(chosen)]))
        trace = np.stack(frames) if frames else None
        yield from zip(chosen, _generations(job, chosen, now, True, trace), strict=True)


def snapshots(job: Job, every: str) -> Iterator[list[Generation]]:
    """All rows, in their order, before the first step and after every block or step; the last time finished."""
    if every not in ("block", "step"):
        raise ConfigError(f"every={every!r}: choose block or step")
    if len(job.rows) > job.options.batch_size:
        raise ConfigError(f"batch_size={job.options.batch_size}: {len(job.rows)} rows are to be streamed together; "
                          "raise it, or give fewer")
    (chosen, canvas), = _batches(job)
    back = np.argsort(chosen)
    before = None
    for now in _progress(job, chosen, canvas, every):
        if before is not None:
            found = _generations(job, chosen, before, False)
            yield [found[i] for i in back]
        before = now
    found = _generations(job, chosen, before, True)
    yield [found[i] for i in back]


def _each(options: Options, span: int, size: int | None) -> int:
    """Steps of a block, so that a row's do not depend on the rows beside it."""
    blocks = -(-span // size) if size else 1
    if options.steps is None:
        return min(size or span, span)
    if options.steps % blocks:
        less = options.steps // blocks * blocks
        near = f"{less} or {less + blocks}" if less else f"{blocks}"
        raise ConfigError(f"steps={options.steps}: must be a multiple of the {blocks} blocks of {size} tokens, so that "
                          f"each takes as many; {near}")
    return options.steps // blocks


def _check_stop(model, options: Options) -> None:
    if options.stop and model.tokenizer is None:
        raise ConfigError("stop: looks for strings, and the model's files hold no tokenizer.json; use stop_id")
    for text in options.stop:
        if not isinstance(text, str):
            raise ConfigError(f"stop={text!r}: must be a string; stop_id takes a token")


def _batches(job: Job):
    mesh, config = job.model.mesh, job.model.config
    shards, context = (1, 1) if mesh is None else (data_shards(mesh), mesh.shape[LENGTH_AXIS])
    return batches(
        job.rows, job.sampler.mask_id, batch_size=job.options.batch_size, most=config.learned_positions, shards=shards,
        context=context, segments=not isinstance(job.sampler.denoise, CausalDenoiser),
    )


def _progress(job: Job, chosen: list[int], canvas, every: str) -> Iterator[Progress]:
    """The loop's progress; what it refuses, it refuses before it compiles, and as a ConfigError."""
    s, options = job.sampler, job.options
    try:
        blocks = lay_out(s.denoise, canvas, s.decoder, block_length=s.block_length, cache=s.cache,
                         guided=bool(options.guidance)).blocks
        progress = loop.stream(
            s.denoise, s.params, canvas, s.decoder, steps=job.each * blocks, block_length=s.block_length,
            grid=options.grid, cache=s.cache, guidance=options.guidance, stop_id=s.stop_id, bias=s.bias,
            seed=options.seed, mesh=job.model.mesh, finish=_finish(job, chosen) if options.stop else None, every=every,
        )
        first = next(progress)
    except ValueError as error:
        raise ConfigError(str(error)) from None
    yield first
    yield from progress


def _finish(job: Job, chosen: list[int]) -> Callable[[Progress], np.ndarray]:
    """Which rows hold a stop string."""

    def finished(now: Progress) -> np.ndarray:
        tokens, done = np.asarray(now.canvas.tokens), np.asarray(now.finished)
        found = [done[place] or _cut(job, job.rows[i], tokens[place])[2] == "stop" for place, i in enumerate(chosen)]
        return np.array(found + found[-1:] * (len(tokens) - len(found)))

    return finished


def _generations(job: Job, chosen, now: Progress, done: bool, trace=None) -> list[Generation]:
    tokens, forwards = np.asarray(now.canvas.tokens), np.asarray(now.forwards)
    finished = np.asarray(now.finished)
    found = []
    for place, i in enumerate(chosen):
        row = job.rows[i]
        ids, text, finish = _cut(job, row, tokens[place])
        frames = None if trace is None else trace[:, place, : len(row)]
        found.append(Generation(ids, text, finish if done or finished[place] else None, int(forwards[place]),
                                tokens[place, : len(row)], ~row.editable, frames))
    return found


def _cut(job: Job, row: Row, tokens: np.ndarray) -> tuple[np.ndarray, str | None, str]:
    """Ids, text and why it ends: at the first end token, or before the first stop string, whichever comes first."""
    ids, finish = tokens[: len(row)], "length"
    if job.wanted:
        ids = ids[row.start :][: job.wanted]
        ends = np.flatnonzero(ids == job.sampler.stop_id) if job.sampler.stop_id is not None else ()
        if len(ends):
            ids, finish = ids[: ends[0]], "eos"
    text = _text(job, ids)
    found = [text.find(stop) for stop in job.options.stop if stop in text] if text else []
    if found:
        text, finish = text[: min(found)], "stop"
        ids = ids[: next(n for n in range(len(ids) + 1) if len(_text(job, ids[:n])) >= len(text))]
    return ids, text, finish


def _text(job: Job, ids: np.ndarray) -> str | None:
    tokenizer = job.model.tokenizer
    if tokenizer is None:
        return None
    places = np.flatnonzero(ids == job.sampler.mask_id)
    pieces = np.split(ids, np.unique(np.concatenate([places, places + 1])))
    return "".join(MASK_TEXT if len(p) and p[0] == job.sampler.mask_id else tokenizer.decode(p) for p in pieces)
