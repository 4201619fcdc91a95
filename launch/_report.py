"""What a training run leaves behind: baselines, samples, pictures, summary.json, and the last line."""

import json
from pathlib import Path

import numpy as np

from mdlm_jax.config import RunConfig
from mdlm_jax.data.pipeline import Built
from mdlm_jax.evaluation import baselines
from mdlm_jax.evaluation.likelihood import Bound
from mdlm_jax.sampling.canvas import Trace
from mdlm_jax.training.curves import loss_curve_png
from mdlm_jax.training.manifest import write_atomically

from . import _samples


def finish(config: RunConfig, workdir: Path, built: Built, network, process, params, bound: Bound) -> None:
    """Writes samples.txt, the pictures and summary.json, and prints the closing lines."""
    rows = min(config.eval.final_rows, built.valid.num_rows)
    language = config.data.source.startswith("language:")
    references = _language_references(config, built, rows) if language else _text_references(built, rows)
    tokens, trace = _samples.draw(process, network, params, config.sample, config.data.length, trace=True)
    title = f"{config.data.source}, {config.sample.steps} steps, mixing {config.process.mixing:g}"
    _samples.write_texts(workdir / "samples.txt", [built.tokenizer.decode(row, show_special=True) for row in tokens])
    _samples.write_pictures(Trace(trace), built.tokenizer, [workdir / "denoising.html", workdir / "denoising.png"], title)
    bytes_per_token = None if language else bound.text_bytes / bound.tokens
    loss_curve_png(workdir, workdir / "loss.png", references, bytes_per_token=bytes_per_token, title=title)
    summary = {
        "held_out": {
            "nats_per_token": bound.nats_per_token,
            "nats_stderr": bound.nats_stderr,
            "terms": bound.terms,
            "bits_per_byte": None if language else bound.bits_per_byte,
            "bits_stderr": None if language else bound.bits_stderr,
            "rows": bound.rows,
            "tokens": bound.tokens,
            "bytes": bound.text_bytes,
        },
        "references": {"unit": "nats per token" if language else "bits per byte", **references},
        "data": built.info,
    }
    write_atomically(workdir / "summary.json", json.dumps(summary, indent=2) + "\n")
    print(f"samples, loss curve and the picture of a sample are in {workdir}")
    for name, value in references.items():
        print(f"  {name:<28} {value:.3f} {summary['references']['unit']}")
    if language:
        print(f"held-out NELBO {bound.nats_per_token:.4f} +- {bound.nats_stderr:.4f} nats per token "
              f"(exact cross-entropy of the same rows: {references['the language itself']:.4f})")
    else:
        print(f"held-out bound {bound.bits_per_byte:.3f} +- {bound.bits_stderr:.3f} bits per byte "
              f"({bound.rows} rows, {bound.text_bytes:,} bytes)")


def _text_references(built: Built, rows: int) -> dict[str, float]:
    """Codes for the very bytes the bound was measured on, in bits per byte."""
    train = built.train.sequential(0, built.train.num_rows)["tokens"].reshape(-1)
    valid = built.valid.sequential(0, rows)["tokens"].reshape(-1)
    train_bytes, valid_bytes = _text(built, train), _text(built, valid)
    references = {
        "byte unigram": baselines.unigram_bits(train_bytes, valid_bytes),
        "byte bigram (Witten-Bell)": baselines.witten_bell_bigram_bits(train_bytes, valid_bytes),
    }
    if built.tokenizer.vocab_size > 512:  # a token is more than a byte
        size = built.tokenizer.vocab_size
        references["token unigram"] = baselines.token_unigram_bits(train, valid, size, len(valid_bytes))
        references["token bigram (Witten-Bell)"] = baselines.token_bigram_bits(train, valid, size, len(valid_bytes))
    references["xz -9 of the held-out text"] = baselines.xz_bits(valid_bytes)
    return references


def _text(built: Built, ids: np.ndarray) -> bytes:
    return built.tokenizer.decode(ids).encode()


def _language_references(config: RunConfig, built: Built, rows: int) -> dict[str, float]:
    from mdlm_jax.data.languages.registry import make

    language = make(config.data.source.removeprefix("language:"))
    tokens = built.valid.sequential(0, rows)["tokens"]
    return {"the language itself": float(-language.log_prob(tokens).mean() / config.data.length)}
