"""What launch.evaluate --task=decoders does once its flags are checked: every setting, the record, table and figure."""

import functools
import math
import time
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from mdlm_jax.config import ConfigError
from mdlm_jax.data.language_rows import open_language
from mdlm_jax.evaluation import frontier
from mdlm_jax.evaluation.frontier import Point, Setting, Wanted
from mdlm_jax.evaluation.judges import quality
from mdlm_jax.evaluation.likelihood import held_out_rows
from mdlm_jax.generation import generate
from mdlm_jax.progress import Progress

from . import run_evaluate
from ._choice import ChoiceOptions
from ._evaluation import Record
from ._memory import enough_memory, keep_freed_memory
from ._prompts import encoded


def main(options: ChoiceOptions) -> Point | None:
    """Measures the settings that are not there yet, prints the table and draws it; what it recommends."""
    if jax.default_backend() == "cpu":
        keep_freed_memory()
    told = options.evaluate
    record, subject = Record(told.output, run_evaluate.identity(told)), Subject(options)
    points, refused = [], {}
    with enough_memory("lower --batch_size"), Progress(len(options.settings), desc="decoders", unit="setting") as shown:
        for number, setting in enumerate(options.settings):
            make = functools.partial(subject.measured, setting)
            try:
                part = record.part("decoders", setting.label, subject.says(setting), make)
            except ConfigError as error:
                if number == 0:  # the usual one, which must be possible
                    raise
                refused[setting.label] = str(error)  # not written down: another version may take it
            else:
                points.append(Point(setting, part["forwards"], part["work"], tuple(part["quality"]),
                                    part["entropy"] and tuple(part["entropy"]), part["speed"]))
            shown.update(number + 1)
    tried = points if options.tried else points[1:]
    wanted = subject.wanted(record, tried or points, points[0])
    print(frontier.table(tried, wanted, refused, options.by))
    frontier.draw(tried, wanted, options.figure, options.by)
    best = frontier.recommended(tried, wanted, options.by)
    print(_said(subject, wanted, best))
    print(f"written to {told.output} and {options.figure}", flush=True)
    return best


def _said(subject: "Subject", wanted: Wanted, best: Point | None) -> str:
    floor = f"{'at least' if wanted.higher else 'at most'} {wanted.floor:.3f}"
    lively = f" and an entropy of {wanted.entropy:.3f} nats" if wanted.entropy else ""
    if best is None:
        return f"nothing here reaches {floor}{lively}; change --floor, try more decoders, or train the model longer"
    setting, options = best.setting, subject.options
    flags = {"decoder": setting.decoder, **setting.numbers, "new_tokens": subject.new_tokens}
    if (steps := subject.steps(setting)) is not None:
        flags["steps"] = steps
    flags |= {name: value for name in ("block_length", "cache") if (value := getattr(options, name)) is not None}
    told = " ".join(f"--{name}={str(value).lower() if isinstance(value, bool) else value}"
                    for name, value in flags.items())
    without = "; ids beyond the language's were never drawn" if subject.unknown else ""
    return (f"recommended for {floor}{lively}: {told}\n  {best.work:.3f} rows of the network a token, "
            f"{best.speed:,.0f} tokens a second here{without}")


class Subject:
    """The model and what its answers are measured by."""

    def __init__(self, options: ChoiceOptions):
        self.options, self.loaded = options, run_evaluate.Loaded(options.evaluate)

    def says(self, setting: Setting) -> dict[str, Any]:
        """What decides the figures of a setting."""
        told, device = self.options, jax.devices()[0]
        judges = {name: run_evaluate.evaluate.judge_digest(name) for name in told.evaluate.judges}
        pairs = [[one.prompt, one.fields["completion"]] for one in told.validation]
        return {"decoder": setting.decoder, "numbers": dict(setting.numbers), "each": setting.each,
                "samples": told.evaluate.samples, "seed": told.evaluate.seed, "judges": {} if told.right else judges,
                "validation": pairs, "new_tokens": told.new_tokens, "block_length": told.block_length,
                "cache": told.cache, "batch_size": told.batch_size, "mesh": told.evaluate.mesh,
                "device": device.device_kind}

    def wanted(self, record: Record, points: Sequence[Point], usual: Point) -> Wanted:
        """What is good enough, unless told by the ``points`` or the ``usual`` decoder's."""
        higher, floor = self.options.right, self.options.floor
        floor = frontier.usual_floor(points, usual, higher) if floor is None else floor
        if higher:
            return Wanted(floor, True)
        part = record.part("decoders", "held-out", {"samples": self.options.evaluate.samples}, self._natural)
        return Wanted(floor, False, self.options.entropy * part["entropy"][0])

    def _natural(self) -> dict[str, Any]:
        rows = held_out_rows(self.loaded.built.valid, self.options.evaluate.samples)["tokens"]
        return {"entropy": list(quality(rows, self.loaded.model.process.vocab_size, ()).entropy)}

    def measured(self, setting: Setting) -> dict[str, Any]:
        """The figures of a setting. ConfigError where it does not fit the model."""
        job = self._job(setting, self._prompts)
        found = _in_order(job)
        tokens = sum(len(one.tokens) + (one.finish == "eos") for one in found)
        forwards = sum(one.forwards for one in found) / max(tokens, 1)
        value, entropy = self._quality(found)
        return {"forwards": forwards, "work": forwards * generate.rows_a_forward(job), "quality": list(value),
                "entropy": entropy and list(entropy), "speed": self._speed(setting)}

    def _job(self, setting: Setting, prompts: Sequence) -> generate.Job:
        told, model = self.options, self.loaded.model
        how = {"steps": self.steps(setting), "block_length": told.block_length,
               "cache": None if setting.plain else told.cache, "batch_size": told.batch_size,
               "seed": told.evaluate.seed, **setting.numbers}
        if not told.validation:
            how |= {"stop_id": None, "suppress": self.unknown, "max_length": told.evaluate.config.data.length,
                    "label": run_evaluate.labels(model, range(len(prompts)))}
        return generate.answer_job(model, prompts, self.new_tokens, decoder=setting.decoder, **how)

    def steps(self, setting: Setting) -> int | None:
        """Those of a whole answer; None: as many as the decoder takes."""
        config, told = self.loaded.model.config, self.options
        size = config.block_length if config.attention == "block_causal" else 0
        size = size if told.block_length is None else told.block_length
        return setting.steps(self.new_tokens, size or self.new_tokens)

    def _speed(self, setting: Setting) -> float:
        """Tokens a second of a batch; a first time compiles."""
        seconds, tokens = math.inf, 0
        for _ in range(2):
            job = self._job(setting, self._prompts[: self.options.batch_size])
            begin = time.perf_counter()
            tokens = sum(len(one.tokens) for _, one in generate.answers(job))
            seconds = min(seconds, time.perf_counter() - begin)
        return tokens / seconds

    def _quality(self, found: Sequence[generate.Generation]) -> tuple[tuple[float, float], tuple[float, float] | None]:
        """Mean and standard error, and those of the entropy of a row."""
        told = self.options
        if told.validation:
            wanted = [one.fields["completion"].strip() for one in told.validation]
            return _share([str(one).strip() == text for one, text in zip(found, wanted, strict=True)]), None
        rows = np.stack([one.row for one in found])
        if told.right:
            return _share(np.isfinite(self._language.log_prob(rows))), None
        figures = quality(rows, self.loaded.model.process.vocab_size, self.loaded.judges)
        return next(iter(figures.cross_entropy.values())), figures.entropy

    @functools.cached_property
    def _language(self):
        return open_language(self.options.evaluate.config.data)

    @functools.cached_property
    def _prompts(self) -> list:
        told, config = self.options, self.options.evaluate.config
        if told.validation:
            return [one.prompt for one in told.validation]
        rows = np.zeros((told.evaluate.samples, 0), np.int32)
        if given := getattr(self._language, "given", 0) if told.right else 0:
            rng = np.random.default_rng(told.evaluate.seed)
            rows = self._language.sample(rng, told.evaluate.samples, config.data.length)[:, :given]
        return list(rows)

    @functools.cached_property
    def new_tokens(self) -> int:
        told, model = self.options, self.loaded.model
        if not told.validation:
            return told.evaluate.config.data.length - len(self._prompts[0])
        if told.new_tokens is not None:
            return told.new_tokens
        lengths = [len(encoded("--validation", one.fields["completion"], model.tokenizer, False))
                   for one in told.validation]
        return max(lengths) + 1  # the end token

    @functools.cached_property
    def unknown(self) -> list[int]:
        return run_evaluate.unknown_ids(self.options.evaluate.config, self.loaded.model)


def _in_order(job: generate.Job) -> list[generate.Generation]:
    found = dict(generate.answers(job))
    return [found[i] for i in range(len(found))]


def _share(right: Sequence[bool]) -> tuple[float, float]:
    values = np.asarray(right, float)
    error = float(values.std(ddof=1) / math.sqrt(len(values))) if len(values) > 1 else math.nan
    return float(values.mean()), error
