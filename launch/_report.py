"""What a training run leaves behind: baselines, samples, pictures, summary.json, and the last line."""

import dataclasses
import itertools
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from mdlm_jax.config import RunConfig
from mdlm_jax.config.data import is_images
from mdlm_jax.config.train import beside, is_taught
from mdlm_jax.core import levels, weights
from mdlm_jax.data import language_rows
from mdlm_jax.data.pipeline import Built
from mdlm_jax.evaluation import baselines
from mdlm_jax.evaluation.likelihood import Bound, held_out_index
from mdlm_jax.sampling.canvas import Trace
from mdlm_jax.training.curves import loss_curve_png
from mdlm_jax.training.manifest import write_atomically

from . import _images, _samples
from ._start import twin_network

_COUNTED = 1 << 25  # training tokens that the baselines count; prepared rows may be more than memory holds
_FIGURES = {  # what is held out, where that is no bound
    "any_subset": "held-out cross-entropy of what random prompts leave, a token",
    "joint": "held-out KL from the network to the layer, of all that is masked, a token written",
    "planner": "held-out loss of the planner, weighted",
    "prism": "held-out loss of the head, a revealed token",
    "maria": "held-out loss of a masked token given the others, mean over masks, exact",
    "codd": "held-out loss of the circuit, a masked token",
}


def finish(
    config: RunConfig, workdir: Path, built: Built, held_out: Mapping, network, process, params, bound: Bound,
    others: Mapping[str, Bound], size: dict[str, dict[str, int]],
) -> None:
    """Writes samples.txt (of images samples.png or .npz), the pictures and summary.json, and prints the closing lines;
    the last is the bound.

    ``held_out``: the rows on which the bound was measured; ``others``: what it stands beside, measured there too;
    ``size``: parameters held and trained, steps, tokens and FLOPs of training.
    """
    kind = config.train.objective.partition(":")[0]
    steps = "" if kind in ("joint", "maria", "dmax", "any_subset") else f" in {config.sample.steps} steps"
    print(f"drawing {config.sample.num} sample(s){steps}, and the pictures ...", flush=True)
    references = _references(config, built, held_out["tokens"]) | {
        name: _figure(other)[0] for name, other in others.items()}
    value, error, unit = _figure(bound)
    tokens = _draw(config, workdir, built, held_out, network, process, params, references, bound)
    entropy, natural = (_samples.entropy(rows, process.vocab_size) for rows in (tokens, held_out["tokens"]))
    summary = {
        "held_out": dataclasses.asdict(bound)
        | ({"bits_per_byte": value, "bits_stderr": error} if bound.text_bytes else {})
        | ({"bits_per_dimension": value / math.log(2)} if is_images(config.data.source) else {}),
        "references": {"unit": unit, **references},
        "samples": dataclasses.asdict(config.sample)
        | {"unigram_entropy": entropy, "unigram_entropy_of_held_out_rows": natural},
        "data": built.info,
    } | size
    write_atomically(workdir / "summary.json", json.dumps(summary, indent=2) + "\n")
    print(f"samples, loss curve and the picture of a sample are in {workdir}")
    print(f"unigram entropy: {entropy:.3f} nats a sample, {natural:.3f} a held-out row")
    for name, reference in references.items():
        print(f"  {name:<28} {reference:.3f} {unit}")
    given = ", given the document ends" if config.data.packing == "documents" else ""
    given += ", given the class" if config.model.classes else ""
    spread = f" +- {error:.3f}" if bound.rows > 1 else ""
    rows = f"{bound.rows} row{'s' * (bound.rows > 1)} of {config.data.length} tokens"
    if is_images(config.data.source):
        print(f"bits per dimension{given}: {value / math.log(2):.3f} +- {error / math.log(2):.3f}")
    name = _FIGURES.get(kind, "held-out bound")
    print(f"{name}{given}: {value:.3f}{spread} {unit} ({rows})")


def _figure(bound: Bound) -> tuple[float, float, str]:
    """The bound, its standard error and their unit: per byte where tokens stand for text."""
    if bound.text_bytes:
        return bound.bits_per_byte, bound.bits_stderr, "bits per byte"
    return bound.nats_per_token, bound.nats_stderr, "nats per token"


def _draw(config, workdir, built, held_out, network, process, params, references, bound) -> np.ndarray:
    """Samples and pictures; gives the samples' tokens [num, L]. Runs on prompts answer those of held-out rows, those on
    images draw every class in turn."""
    canvas = written = labels = None
    first: Any = None  # with a canvas: its prompts
    if config.model.classes:
        labels = np.arange(config.sample.num) % config.model.classes
    if config.data.answers:
        canvas, first = _samples.prompted(held_out, process.mask_id, config.sample.num)
        written = np.arange(config.data.length) < first[0]
    tokens, trace = _samples.draw(process, network, params, config.sample, config.data.length, trace=True,
                                  objective=config.train.objective, canvas=canvas, labels=labels,
                                  twin=twin_network(config, process.vocab_size))
    title = f"{config.data.source}, {config.sample.steps} steps, {config.process.title}"
    if is_images(config.data.source):
        unknown = np.full(len(tokens), -1) if labels is None else labels
        _images.write_run(workdir, config.data.source, tokens, unknown, title)
    elif canvas is None:
        _samples.write_texts(workdir / "samples.txt", [built.tokenizer.decode(x, show_special=True) for x in tokens])
    else:
        rows = zip(tokens, first, itertools.cycle(held_out["tokens"]), strict=False)
        texts = [_samples.pair_text(built.tokenizer, *row) for row in rows]
        print(texts[0])
        _samples.write_texts(workdir / "samples.txt", texts)
    pictures = [workdir / "denoising.html", workdir / "denoising.png"]
    _samples.write_pictures(Trace(trace), built.tokenizer, pictures, title, written)
    loss_curve_png(
        workdir,
        workdir / "loss.png",
        references,
        bytes_per_token=built.info["train"]["bytes_per_token"] if bound.text_bytes else None,
        own_scale=_own_scale(config),
        final=_figure(bound)[:2],
        title=f"{config.data.source}, {config.process.title}",
    )
    return tokens


def _own_scale(config: RunConfig) -> str:
    """Why the training loss is no bound; empty where it is one."""
    weighting, law, kind = config.train.weighting, config.train.level_law, config.train.objective.partition(":")[0]
    if kind in ("dparallel", "dmax"):
        return f"train.objective {kind}"
    reasons = [] if weights.from_spec(weighting).is_bound else [f"weighting {weighting}"]
    reasons += ["answers weighed alike"] if config.train.per_answer else []
    reasons += ["a teacher's targets"] if is_taught(config.train.objective) else []
    return ", ".join(reasons if levels.from_spec(law).covers_all else [*reasons, f"levels {law}"])


def _references(config: RunConfig, built: Built, valid: np.ndarray) -> dict[str, float]:
    """What the bound stands beside, measured on the very same held-out rows."""
    if beside(config.train.objective):
        return {}
    if config.data.source.startswith("language:"):
        index = held_out_index(built.valid.num_rows, len(valid))
        return language_rows.references(config.data, valid, index, config.train.steps * config.train.batch_size)
    plain = built.tokenizer.lossless and not config.data.answers  # rows of prompts are no stretch of text
    return _text_references(built, valid.reshape(-1)) if plain else {}


def _text_references(built: Built, valid: np.ndarray) -> dict[str, float]:
    """Codes for the very bytes the bound was measured on, in bits per byte."""
    rows = max(1, min(built.train.num_rows, _COUNTED // built.train.length))
    if rows < built.train.num_rows:
        print(f"note     the unigrams and bigrams are counted on the first {rows:,} of {built.train.num_rows:,} rows")
    train = built.train.sequential(0, rows)["tokens"].reshape(-1)
    train_bytes, valid_bytes = built.tokenizer.decode_bytes(train), built.tokenizer.decode_bytes(valid)
    references = {
        "byte unigram": baselines.unigram_bits(train_bytes, valid_bytes),
        "byte bigram (Witten-Bell)": baselines.witten_bell_bigram_bits(train_bytes, valid_bytes),
    }
    size = built.tokenizer.vocab_size
    if built.tokenizer.token_bytes(np.arange(size)).max() > 1:
        references["token unigram"] = baselines.token_unigram_bits(train, valid, size, len(valid_bytes))
        references["token bigram (Witten-Bell)"] = baselines.token_bigram_bits(train, valid, size, len(valid_bytes))
    references["xz -9 of the held-out text"] = baselines.xz_bits(valid_bytes)
    return references
