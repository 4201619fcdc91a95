"""Drawing samples and writing them: shared by launch.train (at its end) and launch.sample."""

from pathlib import Path

import jax
import numpy as np

from mdlm_jax.config import SampleConfig
from mdlm_jax.evaluation.entropy import unigram_entropy
from mdlm_jax.models.denoise import CausalDenoiser, Denoiser, ScheduledDenoiser
from mdlm_jax.sampling.ancestral import Ancestral, LearnedScheduleAncestral
from mdlm_jax.sampling.blockwise import sample_in_blocks
from mdlm_jax.sampling.canvas import blank
from mdlm_jax.sampling.loop import sample
from mdlm_jax.sampling.pictures import denoising_png
from mdlm_jax.sampling.trace_html import denoising_html
from mdlm_jax.training.manifest import write_atomically

LEFT_TO_RIGHT = ("block", "autoregressive", "any_order")


def draw(process, network, weights: dict, options: SampleConfig, length: int, prompt=None, trace: bool = False,
         objective: str = "nelbo"):
    """Token ids [num, length], and with ``trace`` the frames [steps + 1, length] of the first sample, else None.

    ``weights``: what the objective trained: the network, and where it learned one, the schedule. ``objective`` says
    whether the network is used block after block, token after token, or on the whole canvas.
    """
    weights = jax.device_put(weights, jax.local_devices()[0])  # samples are few; one device draws them
    canvas = blank(process.mask_id, options.num, length, prompt)
    chain = (process, options.temperature, options.top_p, options.top_k, options.guidance)
    kind, size = objective.partition(":")[0], 0
    if kind in LEFT_TO_RIGHT:
        size = network.block_length if kind == "block" else 1
        columns = process.vocab_size
        causal = kind == "autoregressive"
        denoise = CausalDenoiser(network, process.mask_id, columns) if causal else Denoiser(network, columns)
        params, decoder = weights["network"], Ancestral(*chain)
    elif "schedule" in weights:
        denoise, params, decoder = ScheduledDenoiser(network), weights, LearnedScheduleAncestral(*chain)
    else:
        denoise, params, decoder = Denoiser(network, process.vocab_size), weights["network"], Ancestral(*chain)
    if size:
        run = sample_in_blocks(denoise, params, canvas, decoder, block_length=size, seed=options.seed, trace=trace,
                               steps=options.steps if kind == "block" else 1)
    else:
        run = sample(denoise, params, canvas, decoder, steps=options.steps, seed=options.seed, trace=trace)
    return np.asarray(jax.device_get(run.tokens)), None if run.trace is None else run.trace[:, 0]


def entropy(tokens: np.ndarray, vocab_size: int) -> float:
    """Mean unigram entropy of the sequences [N, L], in nats: what tells a sampler that repeats itself."""
    return float(unigram_entropy(tokens, vocab_size).mean())


def write_texts(path: Path, texts: list[str]) -> None:
    write_atomically(path, joined(texts))


def joined(texts: list[str]) -> str:
    return "".join(f"--- sample {number} ---\n{text}\n" for number, text in enumerate(texts, 1))


def write_pictures(trace, tokenizer, paths: list[Path], title: str, prompt: np.ndarray | None = None) -> None:
    """One picture a path; its suffix, .html or .png, says which."""
    for path in paths:
        draw_picture = denoising_html if path.suffix == ".html" else denoising_png
        draw_picture(trace, tokenizer, path, title, prompt=prompt)
