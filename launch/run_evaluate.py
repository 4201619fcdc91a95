"""What launch.evaluate does once its flags are checked: bounds, samples, the record and the table."""

import dataclasses
import functools
import hashlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

import mdlm_jax
from mdlm_jax.config import OBJECTIVES, ConfigError, RunConfig, parse_spec, to_dict
from mdlm_jax.core.gidd import GiddProcess
from mdlm_jax.data import pipeline
from mdlm_jax.data.language_rows import open_language
from mdlm_jax.data.whole import whole_text
from mdlm_jax.evaluation.judges import Judge, OracleJudge, Quality, causal_judge, quality
from mdlm_jax.evaluation.likelihood import Bound, held_out_bound, held_out_index, held_out_rows, padded_batches
from mdlm_jax.language_model import LanguageModel
from mdlm_jax.models.sharding import batch_sharding, data_shards, make_mesh
from mdlm_jax.progress import Progress
from mdlm_jax.training import checkpoints, manifest
from mdlm_jax.training.build import bound_draws, build_bound
from mdlm_jax.training.objectives.continuous import ContinuousObjective
from mdlm_jax.training.objectives.gidd import GiddObjective

from . import _evaluation, evaluate
from ._evaluation import Record
from ._memory import enough_memory, keep_freed_memory

_ROWS = 16  # measured at a time
# whose process papers measure in their way
_DIFFUSION = ("nelbo", "count", "continuous", "discrete", "draft_edit", "dparallel", "dmax", "sdtt", "duo")


def main(options: evaluate.EvaluateOptions) -> dict:
    """Measures what is not there yet, prints the table and gives back what was asked for of the record."""
    if jax.default_backend() == "cpu":
        keep_freed_memory()
    record, loaded = Record(options.output, identity(options)), Loaded(options)
    with enough_memory("lower --batch_size or --rows"):
        if options.rows:
            _likelihood(options, record, loaded)
        if options.samples:
            _generation(options, record, loaded)
    print(_evaluation.table(record.asked))
    print(f"written to {options.output}", flush=True)
    return record.asked


class Loaded:
    """Model, data and judges, read when they are first needed: a record that is whole needs none of them."""

    def __init__(self, options: evaluate.EvaluateOptions):
        self._options = options

    @functools.cached_property
    def model(self) -> LanguageModel:
        return mdlm_jax.load(self._options.folder, mesh=self.mesh)

    @functools.cached_property
    def mesh(self) -> jax.sharding.Mesh | None:
        return None if self._options.mesh is None else make_mesh(self._options.mesh, jax.local_devices())

    @functools.cached_property
    def built(self) -> pipeline.Built:
        """The run's data. ConfigError where they are not those it was trained on."""
        config, folder = self._options.config, self._options.folder
        built = pipeline.build(config.data, config.train.batch_size, self.model.tokenizer)
        stored = checkpoints.read_meta(folder)["data"]["fingerprint"]
        if stored != built.train.fingerprint:
            raise ConfigError(f"data.source={config.data.source!r}: is no longer what {folder} was trained on "
                              f"(fingerprint {stored[:12]}, now {built.train.fingerprint[:12]}), so that its held-out "
                              "rows may be training rows; restore the data")
        return built

    @functools.cached_property
    def judges(self) -> list[Judge]:
        return [self._judge(name) for name in self._options.judges]

    def _judge(self, name: str) -> Judge:
        if name == "oracle":
            return OracleJudge(open_language(self._options.config.data))
        return causal_judge(name, mdlm_jax.load(name), self.model.tokenizer)


def identity(options: evaluate.EvaluateOptions) -> dict[str, Any]:
    """Which weights these are, and what a figure of several models goes by."""
    digest = hashlib.sha256((options.folder / manifest.NAME).read_bytes()).hexdigest()
    return {"step": options.folder.name, "digest": digest, "config": to_dict(options.config)}


def _likelihood(options, record: Record, loaded: Loaded) -> None:
    settings = {"rows": options.rows, "draws": options.draws, "seed": options.seed}

    def part(name: str, rows: Callable[[], dict], settings=settings) -> None:
        def make():
            print(f"measuring {name} ...", flush=True)
            return Measure.of(options, loaded.model, loaded.mesh)(rows())

        record.part("likelihood", name, settings, make)

    if options.held_out:
        part("held-out", lambda: held_out_rows(loaded.built.valid, options.rows))
    for text in options.texts:
        def rows(text=text):
            whole = whole_text(options.config.data, text, loaded.model.tokenizer, options.detokenizer)
            return _spread(whole, options.rows)

        part(text, rows, settings | {"detokenizer": options.detokenizer, "digest": digest(text)})


def digest(text: str) -> str:
    """Of a text's files; of what tensorflow_datasets prepared, its name."""
    path = Path(text).expanduser()
    files = sorted(file for file in path.rglob("*") if file.is_file()) if path.is_dir() else [path]
    found = hashlib.sha256()
    for file in files if path.exists() else ():
        found.update(str(file.relative_to(path)).encode() + hashlib.sha256(file.read_bytes()).digest())
    return found.hexdigest()


def _spread(batch: dict[str, np.ndarray], rows: int) -> dict[str, np.ndarray]:
    chosen = held_out_index(len(batch["tokens"]), rows)
    return {name: values[chosen] for name, values in batch.items()}


@dataclasses.dataclass(frozen=True)
class Measure:
    """The true bound of rows, and the figure by the papers' convention."""

    options: evaluate.EvaluateOptions
    config: RunConfig
    model: LanguageModel
    mesh: jax.sharding.Mesh | None = None

    @classmethod
    def of(cls, options, model: LanguageModel, mesh=None) -> "Measure":
        config = dataclasses.replace(options.config, eval=dataclasses.replace(options.config.eval, draws=options.draws))
        return cls(options, config, model, mesh)

    @property
    def _shards(self) -> int:
        return 1 if self.mesh is None else data_shards(self.mesh)

    def __call__(self, batch) -> dict:
        fused = self.model.fused
        bound = build_bound(self.config, self.model.config, self.model.process, self._shards,
                            None if fused is None else fused.twin.network)
        found = self._run(bound, bound_draws(self.config, bound), bound.end_terms, batch)
        told = {"rows": found.rows, "tokens": found.tokens, "exact": bound.exact, "bound": _figures(found),
                "terms": found.terms, "given": self._given(batch)}
        kind = parse_spec("train.objective", self.config.train.objective, OBJECTIVES)[0]
        if kind not in _DIFFUSION or bound.network.attention == "two_stream":
            return told
        gidd = isinstance(self.model.process, GiddProcess)
        make: type[ContinuousObjective] = GiddObjective if gidd else ContinuousObjective
        integrand = make(bound.network, self.model.process, head_budget=bound.head_budget,
                         data_shards=bound.data_shards)
        mean = self._run(integrand, self.options.draws, None, batch)
        scale = 1 / (integrand.time_max - integrand.time_min)  # a mean over these times, not an integral
        return told | {"published": _figures(dataclasses.replace(
            mean, nats_per_token=mean.nats_per_token * scale, nats_stderr=mean.nats_stderr * scale))}

    def _given(self, batch) -> str:
        """What the network is told beside the rows themselves."""
        ends = self.config.data.packing == "documents" and (batch["attention_mask"] > 1).any()
        told = {"the document ends": ends, "the class": "label" in batch and self.model.config.classes,
                "the prompts": self.config.data.answers and not self.config.data.prompt_loss,
                "random prompts": self.config.train.objective.startswith("any_subset:")}
        return " and ".join(what for what, is_told in told.items() if is_told)

    def _run(self, objective, draws: int, end_terms, batch) -> Bound:
        model = self.model
        lossless = model.tokenizer is not None and model.tokenizer.lossless and not self.config.data.answers
        weights = {"network": model.params} | ({} if model.schedule is None else {"schedule": model.schedule})
        for name in ("joint", "quality", "circuit", "fused"):
            if (small := getattr(model, name)) is not None:
                weights |= {name: small.params} | ({"twin": small.twin.params} if name == "fused" else {})
        return held_out_bound(
            objective.loss_at, weights, padded_batches(batch, -(-_ROWS // self._shards) * self._shards),
            model.tokenizer.token_bytes if lossless else np.zeros_like, draws=draws, seed=self.options.seed,
            end_terms=end_terms, sharding=None if self.mesh is None else batch_sharding(self.mesh),
        )


def _figures(bound: Bound) -> dict[str, Any]:
    """Nats a token with their error, the perplexity, and bits per byte where tokens are text."""
    found = {"nats": [bound.nats_per_token, bound.nats_stderr], "perplexity": float(np.exp(bound.nats_per_token))}
    return found | ({"bits_per_byte": [bound.bits_per_byte, bound.bits_stderr]} if bound.text_bytes else {})


def _generation(options, record: Record, loaded: Loaded) -> None:
    judges = {name: evaluate.judge_digest(name) for name in options.judges}
    settings = {"samples": options.samples, "judges": judges, "seed": options.seed}

    def measured(rows: np.ndarray) -> dict:
        return {"rows": len(rows)} | _told(quality(rows, loaded.model.process.vocab_size, loaded.judges))

    def natural() -> dict:
        return measured(held_out_rows(loaded.built.valid, options.samples)["tokens"])

    def drawn(steps: int | None) -> dict:
        rows, forwards = _draw(options, loaded.model, steps)
        return {"forwards": forwards} | measured(rows)

    if options.held_out:
        record.part("generation", "held-out", settings, natural)
    how = {name: value for name, value in options.generate.items() if name != "batch_size"}
    for steps in options.steps or (None,):  # None: as many as it takes
        record.part("generation", "own" if steps is None else str(steps), settings | {"how": how},
                    functools.partial(drawn, steps))


def _told(found: Quality) -> dict:
    return {"entropy": list(found.entropy), "cross_entropy": {k: list(v) for k, v in found.cross_entropy.items()}}


def _draw(options, model: LanguageModel, steps: int | None) -> tuple[np.ndarray, float]:
    """Rows [N, L], every class in turn, and the mean of their forwards. Ids that the run's language does not have are
    never drawn."""
    length, suppress = options.config.data.length, unknown_ids(options.config, model)
    rows, forwards = [], []
    size = options.generate["batch_size"]
    with Progress(options.samples, desc=f"{steps or 'own'} steps", unit="sample") as shown:
        for batch in _row_ids(options.samples, size):
            label = labels(model, batch)
            found = model.generate(
                [np.zeros(0, np.int32)] * len(batch), new_tokens=length, row_ids=batch, stop_id=None, max_length=length,
                label=label, suppress=suppress, seed=options.seed,
                steps=steps, **options.generate)
            rows += [one.row for one in found]
            forwards += [one.forwards for one in found]
            shown.update(len(rows))
    return np.stack(rows), float(np.mean(forwards))


def unknown_ids(config: RunConfig, model: LanguageModel) -> list[int]:
    """Ids that the run's language does not have, the mask apart; none where it is trained on something else."""
    vocabulary = model.process.vocab_size
    language = config.data.source.startswith("language:")
    known = open_language(config.data).vocab_size if language else vocabulary
    return [i for i in range(known, vocabulary) if i != model.process.mask_id]


def labels(model: LanguageModel, row_ids: Sequence[int]) -> list[int] | None:
    """Every class in turn; None for networks without."""
    return [i % model.config.classes for i in row_ids] if model.config.classes else None


def _row_ids(num: int, size: int) -> Iterator[list[int]]:
    for start in range(0, num, size):
        yield list(range(start, min(start + size, num)))

