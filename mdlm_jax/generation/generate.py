"""Prompts in, answers out: batches of rows through the sampling loop, cut where they end."""

import bisect
import contextlib
import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from mdlm_jax.errors import ConfigError
from mdlm_jax.evaluation.scoring import forced_log_prob
from mdlm_jax.generation import options as settings
from mdlm_jax.generation import prompts as given
from mdlm_jax.generation.options import Options, Sampler
from mdlm_jax.models.denoise import CausalDenoiser
from mdlm_jax.models.sharding import LENGTH_AXIS, data_shards
from mdlm_jax.progress import following
from mdlm_jax.sampling import loop
from mdlm_jax.sampling.canvas import Canvas
from mdlm_jax.sampling.rows import Row, batches
from mdlm_jax.sampling.state import Progress
from mdlm_jax.sampling.windows import lay_out

MASK_TEXT = "░"  # how a mask is shown in a text
_SHOWN = 80  # characters of a text in a repr


@dataclasses.dataclass(frozen=True, eq=False)
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
      order: [L] int32, the step at which each position got its token; -1 for what was given, filled up, or is a mask.
      trace: [S + 1, L] int32, the row before the first step and after each, where it was asked for.
    """

    tokens: np.ndarray
    text: str | None
    finish: str | None
    forwards: int
    row: np.ndarray
    given: np.ndarray
    order: np.ndarray | None = None
    trace: np.ndarray | None = None

    def __repr__(self) -> str:
        """One line, with the beginning of the text."""
        text = str(self)
        shown = text if len(text) <= _SHOWN else text[: _SHOWN - 3] + "..."
        return (f"Generation({shown!r}, tokens=<{len(self.tokens)} ids>, finish={self.finish!r}, "
                f"forwards={self.forwards})")

    def __eq__(self, other) -> bool:
        """Whether all fields are the same, arrays element by element."""
        if not isinstance(other, Generation):
            return NotImplemented
        names = [field.name for field in dataclasses.fields(self)]
        return all(np.array_equal(getattr(self, name), getattr(other, name)) for name in names)

    def __str__(self) -> str:
        return " ".join(map(str, self.tokens.tolist())) if self.text is None else self.text


@dataclasses.dataclass(frozen=True)
class Job:
    """Rows to be written, and how: everything that is checked before the first program is compiled.

    Attributes:
      each: steps of a block, by row. ``wanted``: tokens of an answer, by row; None: the whole row is (infill).
    """

    model: Any  # a `LanguageModel`
    sampler: Sampler
    options: Options
    rows: list[Row]
    each: list[int]
    wanted: list[int] | None


def answer_job(model, prompts, new_tokens: int | None, **keywords) -> Job:
    """The job of ``generate``; arguments and errors are its own."""
    options, numbers = settings.split(keywords)
    sampler = settings.sampler(model, options, numbers)
    rows, wanted = given.prompt_rows(model, sampler, prompts, new_tokens, options)
    each = [_each(options, span, sampler.block_length) for span in wanted]
    return _checked(Job(model, sampler, options, rows, each, wanted))


def infill_job(model, texts, hole: str, **keywords) -> Job:
    """The job of ``infill``."""
    contract = model.config.attention
    usual = {"block_length": 0, "stop_id": None}
    if "new_tokens" in keywords:
        raise ConfigError(f"new_tokens={keywords['new_tokens']!r}: holes have their length already; leave it out")
    if contract == "permutation" and keywords.get("decoder") is None:
        keywords = keywords | {"decoder": "assd"}  # which alone shows it what stands right of a hole
    options, numbers = settings.split(usual | keywords)
    if not settings.sees_both_ways(model, options):
        remedy = "decoder='assd' shows it that first" if contract == "permutation" else "generate from a prompt instead"
        raise ConfigError(f"infill: a {contract} network does not see what stands right of a hole; {remedy}")
    if options.stop or options.stop_id:
        raise ConfigError("stop, stop_id: holes have their length already; leave them out")
    sampler = settings.sampler(model, options, numbers)
    rows = given.infill_rows(model, sampler, texts, hole, options)
    size = sampler.block_length
    spans = [len(row) - row.start if size else int(row.editable.sum()) for row in rows]
    return _checked(Job(model, sampler, options, rows, [_each(options, span, size) for span in spans], None))


def _checked(job: Job) -> Job:
    """The job, once the first batch has shown that the loop will take it."""
    s, options = job.sampler, job.options
    with _as_config_error():
        chosen, canvas = next(_batches(job))
        layout = _layout(job, canvas)
        steps = _steps(job, chosen[0], layout.blocks)
        loop.check(s.denoise, canvas, s.decoder, layout, steps, options.grid, options.guidance, None)
    return job


def rows_a_forward(job: Job) -> float:
    """Rows of the whole canvas that a forward for one row runs on: copies, the window's share, shadows; and those that
    other networks run on beside it."""
    canvas = next(_batches(job))[1]
    layout, decoder = _layout(job, canvas), job.sampler.decoder
    shadows = decoder.shadows(layout.block)
    return (decoder.copies * layout.program(0).inner.length + shadows) / canvas.shape[1] + decoder.besides


def answers(job: Job) -> Iterator[tuple[int, Generation]]:
    """(index of the row, answer), batch after batch: rows of as many steps a block together, shortest first."""
    for batch in answer_batches(job):
        yield from batch


def gathered(job: Job, progress: bool | Callable[[int, int], None] = False) -> list[Generation]:
    """All answers in the order of the rows. ``progress``: of `progress.following`."""
    found: dict[int, Generation] = {}
    with following(progress, len(job.rows), desc="answers", unit="answer") as show:
        for batch in answer_batches(job):
            found |= dict(batch)
            show(len(found))
    return [found[i] for i in range(len(job.rows))]


def answer_batches(job: Job) -> Iterator[list[tuple[int, Generation]]]:
    """`answers`, those of a batch together."""
    every = "step" if job.options.trace else "block"
    for chosen, canvas in _batches(job):
        frames, now = [], None
        for now in _progress(job, chosen, canvas, every):
            if job.options.trace:
                frames.append(np.asarray(now.canvas.tokens[: len(chosen)]))
        assert now is not None  # there is at least one block
        trace = np.stack(frames) if frames else None
        yield list(zip(chosen, _generations(job, chosen, now, True, trace), strict=True))


def snapshots(job: Job, every: str) -> Iterator[list[Generation]]:
    """All rows, in their order, before the first step and after every block or step; the last time finished.

    What it refuses, it refuses when it is called.
    """
    if every not in ("block", "step"):
        raise ConfigError(f"every={every!r}: choose block or step")
    if len(job.rows) > job.options.batch_size:
        raise ConfigError(f"batch_size={job.options.batch_size}: {len(job.rows)} rows are to be streamed together; "
                          "raise it, or give fewer")
    if len(set(job.each)) > 1:
        raise ConfigError("new_tokens: rows with room for different numbers of tokens take different numbers of steps, "
                          "and cannot be streamed together; give new_tokens")
    return _snapshots(job, every)


def _snapshots(job: Job, every: str) -> Iterator[list[Generation]]:
    (chosen, canvas), = _batches(job)
    back = np.argsort(chosen)
    before = None
    for now in _progress(job, chosen, canvas, every):
        if before is not None:
            found = _generations(job, chosen, before, False)
            yield [found[i] for i in back]
        before = now
    assert before is not None  # there is at least one block
    found = _generations(job, chosen, before, True)
    yield [found[i] for i in back]


def log_probs(job: Job, finished: Sequence[np.ndarray]) -> np.ndarray:
    """log q of each finished row, nats, float64 [N]: that the job writes it. See `evaluation.scoring`."""
    s, options = job.sampler, job.options
    found = np.empty(len(job.rows))
    with _as_config_error():
        loop.check_scorable(s.decoder, "decoder")
        for chosen, canvas in _batches(job):
            tokens = np.array(canvas.tokens)
            for place in range(len(tokens)):  # copies of the last row behind it
                row = finished[chosen[min(place, len(chosen) - 1)]]
                tokens[place, : len(row)] = row
            steps = _steps(job, chosen[0], _layout(job, canvas).blocks)
            found[chosen] = forced_log_prob(
                s.denoise, s.params, canvas, tokens, s.decoder, steps=steps, batch=len(tokens), cache=s.cache,
                block_length=s.block_length, grid=options.grid, guidance=options.guidance, bias=s.bias,
                mesh=job.model.mesh,
            )[: len(chosen)]
    return found


def _each(options: Options, span: int, size: int | None) -> int:
    """Steps of a block, of a row with ``span`` tokens: they do not depend on the rows beside it."""
    blocks = -(-span // size) if size else 1
    if options.steps is None:
        return min(size or span, span)
    if options.steps % blocks:
        less = options.steps // blocks * blocks
        near = f"{less} or {less + blocks}" if less else f"{blocks}"
        raise ConfigError(f"steps={options.steps}: must be a multiple of the {blocks} blocks of {size} tokens, so that "
                          f"each takes as many; {near}")
    return options.steps // blocks


def _batches(job: Job) -> Iterator[tuple[list[int], Canvas]]:
    """(indices of the rows, canvas): the loop gives all rows of a canvas as many steps a block."""
    mesh, config = job.model.mesh, job.model.config
    shards, context = (1, 1) if mesh is None else (data_shards(mesh), mesh.shape[LENGTH_AXIS])
    for each in sorted(set(job.each)):
        alike = [i for i, steps in enumerate(job.each) if steps == each]
        for chosen, canvas in batches(
            [job.rows[i] for i in alike], job.sampler.mask_id, batch_size=job.options.batch_size,
            most=config.learned_positions, shards=shards, context=context,
            segments=not isinstance(job.sampler.denoise, CausalDenoiser),
        ):
            yield [alike[i] for i in chosen], canvas


def _steps(job: Job, row: int, blocks: int) -> int | None:
    """Of a canvas with this row, in all; None for decoders that do not go by them."""
    return job.each[row] * blocks if job.sampler.decoder.reads_steps else None


def _layout(job: Job, canvas: Canvas):
    s = job.sampler
    return lay_out(s.denoise, canvas, s.decoder, block_length=s.block_length, cache=s.cache,
                   guided=bool(job.options.guidance))


@contextlib.contextmanager
def _as_config_error():
    try:
        yield
    except ValueError as error:
        raise ConfigError(str(error)) from None


def _progress(job: Job, chosen: list[int], canvas, every: str) -> Iterator[Progress]:
    """The loop's progress; what it refuses, it refuses before it compiles, and as a ConfigError."""
    s, options = job.sampler, job.options
    finish = _finish(job, chosen) if options.stop or len(s.stop_ids) > 1 else None
    with _as_config_error():
        progress = loop.stream(
            s.denoise, s.params, canvas, s.decoder, steps=_steps(job, chosen[0], _layout(job, canvas).blocks),
            block_length=s.block_length, grid=options.grid, cache=s.cache, guidance=options.guidance, stop_id=s.stop_id,
            bias=s.bias, seed=options.seed, mesh=job.model.mesh, finish=finish, every=every,
        )
        first = next(progress)
    yield first
    yield from progress


def _finish(job: Job, chosen: list[int]) -> Callable[[Progress], np.ndarray]:
    """Which rows hold a stop string, or one of the end tokens that the loop does not look for."""

    def finished(now: Progress) -> np.ndarray:
        tokens, done = np.asarray(now.canvas.tokens), np.asarray(now.finished)
        found = [done[place] or _cut(job, i, tokens[place])[2] != "length" for place, i in enumerate(chosen)]
        return np.array(found + found[-1:] * (len(tokens) - len(found)))

    return finished


def _generations(job: Job, chosen, now: Progress, done: bool, trace=None) -> list[Generation]:
    tokens, forwards = np.asarray(now.canvas.tokens), np.asarray(now.forwards)
    finished, order = np.asarray(now.finished), np.asarray(now.order)
    found, first = [], _first(job)
    for place, i in enumerate(chosen):
        row = job.rows[i]
        ids, text, finish = _cut(job, i, tokens[place])
        frames = None if trace is None else trace[:, place, first : len(row)]
        found.append(Generation(ids, text, finish if done or finished[place] else None, int(forwards[place]),
                                tokens[place, first : len(row)], ~row.editable[first:],
                                order[place, first : len(row)], frames))
    return found


def _first(job: Job) -> int:
    """Where the caller's own tokens begin in a row."""
    return 0 if job.sampler.lead is None else 1


def _cut(job: Job, i: int, tokens: np.ndarray) -> tuple[np.ndarray, str | None, str]:
    """Ids, text and why row i ends: at the first end token, or before the first stop string, whichever comes first."""
    row, s = job.rows[i], job.sampler
    ids, finish = tokens[: len(row)], "length"
    before = ids[_first(job) : row.start if job.wanted else 0]
    if job.wanted:
        ids = ids[row.start :][: job.wanted[i]]
        ends = np.flatnonzero(np.isin(ids, s.stop_ids + s.stop_tokens))
        if len(ends):
            ids, finish = ids[: ends[0]], "eos" if ids[ends[0]] in s.stop_ids else "stop"
    text = _text(job, before, ids)
    found = [text.find(stop) for stop in job.options.stop if stop in text] if text else []
    if text and found:
        cut = text[: min(found)]
        least = bisect.bisect_left(range(len(ids)), True,
                                   key=lambda n: str(_text(job, before, ids[:n])).startswith(cut))
        text, finish = cut, "stop"
        ids = ids[:least]
    return ids, text, finish


def _text(job: Job, before: np.ndarray, ids: np.ndarray) -> str | None:
    """The text of ``ids`` behind the tokens ``before``."""
    tokenizer, mask_id = job.model.tokenizer, job.sampler.mask_id
    if tokenizer is None:
        return None
    places = np.flatnonzero(ids == mask_id)
    pieces = np.split(ids, np.unique(np.concatenate([places, places + 1])))
    text = ""
    for piece in pieces:
        if len(piece) and piece[0] == mask_id:
            text += MASK_TEXT
        elif len(piece):
            text += tokenizer.decode_next(piece, before)
            before = np.concatenate([before, piece])
    return text
