"""Drawing samples and writing them: shared by launch.train (at its end) and launch.sample."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from mdlm_jax.config import SampleConfig
from mdlm_jax.evaluation.entropy import unigram_entropy
from mdlm_jax.models.config import TransformerConfig
from mdlm_jax.models.denoise import CausalDenoiser, Denoiser, ScheduledDenoiser
from mdlm_jax.sampling.adjust import Adjust
from mdlm_jax.sampling.ancestral import Ancestral, LearnedScheduleAncestral
from mdlm_jax.sampling.assd import ASSD
from mdlm_jax.sampling.canvas import Canvas, blank
from mdlm_jax.sampling.canvas import canvas as canvas_of
from mdlm_jax.sampling.codd import CoDD
from mdlm_jax.sampling.decoder import Decoder
from mdlm_jax.sampling.loop import decode
from mdlm_jax.sampling.maria import MARIA
from mdlm_jax.sampling.p2 import P2
from mdlm_jax.sampling.pictures import denoising_png
from mdlm_jax.sampling.prism import PRISM
from mdlm_jax.sampling.soft_parallel import SoftParallel
from mdlm_jax.sampling.trace_html import denoising_html
from mdlm_jax.training import beside
from mdlm_jax.training.manifest import write_atomically

BLOCKS = ("block", "levenshtein")
LEFT_TO_RIGHT = (*BLOCKS, "autoregressive", "any_order")


def draw(process, network, weights: dict, options: SampleConfig, length: int, prompt=None, trace: bool = False,
         objective: str = "nelbo", canvas: Canvas | None = None, labels: np.ndarray | None = None,
         twin: TransformerConfig | None = None):
    """Token ids [num, length], and with ``trace`` the frames [steps + 1, length] of the first sample, else None.

    ``weights``: what the objective trained: the network, and where it learned one, the schedule. ``objective`` says
    whether the network is used block after block, token after token, or on the whole canvas. ``canvas``: what to write
    on, in place of masks behind the one ``prompt`` [P]; then without ``labels`` [num], the classes. ``twin``: the
    shape of the network of that name among the weights.
    """
    weights = jax.device_put(weights, jax.local_devices()[0])  # samples are few; one device draws them
    canvas = blank(process.mask_id, options.num, length, prompt, condition=labels) if canvas is None else canvas
    chain: dict[str, Any] = {"temperature": options.temperature, "top_p": options.top_p, "top_k": options.top_k}
    kind, params = objective.partition(":")[0], weights["network"]
    size: int | None = None
    steps: int | None = options.steps
    denoise: CausalDenoiser | Denoiser | ScheduledDenoiser
    decoder: Decoder = Ancestral(process, **chain)
    if kind == "autoregressive":
        denoise = CausalDenoiser(network, process.mask_id, process.vocab_size)
    else:
        denoise = Denoiser(network, process.vocab_size, process)
    if kind == "joint":
        size, steps = network.block_length if network.attention == "block_causal" else None, None
        decoder = Adjust(mask_id=process.mask_id, **beside.taken(objective, network, weights), **chain)
    elif kind == "any_subset":
        steps, decoder = None, ASSD(process.mask_id, **chain)
    elif kind == "planner":
        decoder = P2(process, "trained", **beside.taken(objective, network, weights), **chain)
    elif kind == "prism":
        decoder = PRISM(mask_id=process.mask_id, **beside.taken(objective, network, weights), **chain)
    elif kind == "maria":
        steps = None
        decoder = MARIA(mask_id=process.mask_id,
                        **beside.taken(objective, network, weights, twin, process.mask_id), **chain)
    elif kind == "codd":
        decoder = CoDD(mask_id=process.mask_id, tokens=-(-length // options.steps), **chain,
                       **beside.taken(objective, network, weights))
        steps = None
    elif kind == "dmax":
        size, steps = network.block_length if network.attention == "block_causal" else None, None
        decoder = SoftParallel(process.mask_id, params["embedding"], **chain)
    elif kind in LEFT_TO_RIGHT:
        size = network.block_length if kind in BLOCKS else 1
        blocks = -(-(length - int(canvas.start.min()) // size * size) // size)
        steps = blocks * (-(-options.steps // blocks) if kind in BLOCKS else 1)
    elif "schedule" in weights:
        denoise, params = ScheduledDenoiser(network, process.vocab_size), weights
        decoder = LearnedScheduleAncestral(process, **chain)
    run = decode(denoise, params, canvas, decoder, steps=steps, block_length=size, guidance=options.guidance,
                 seed=options.seed, trace=trace)
    return np.asarray(jax.device_get(run.tokens)), None if run.trace is None else run.trace[:, 0]


def prompted(rows: Mapping[str, np.ndarray], mask_id: int, num: int) -> tuple[Canvas, np.ndarray]:
    """``num`` canvases that begin with the prompts of ``rows``, in turn, masks behind; and the prompts' lengths.

    ``rows``: tokens and noise_mask [R, L] of prompts and answers; how long an answer is the canvas does not tell.
    """
    chosen = np.arange(num) % len(rows["tokens"])
    first = rows["noise_mask"][chosen].argmax(-1)
    editable = np.arange(rows["tokens"].shape[1]) >= first[:, None]
    tokens = np.where(editable, mask_id, rows["tokens"][chosen])
    return canvas_of(tokens, editable), first


def pair_text(tokenizer, row: np.ndarray, first: int, reference: np.ndarray) -> str:
    """A prompt of ``first`` tokens, the answer that was drawn and the one of the data, each up to its end token."""
    def answer(tokens):
        ends = np.flatnonzero(tokens[first:] == tokenizer.eos_id)
        return tokenizer.decode(tokens[first : first + ends[0]] if len(ends) else tokens[first:], show_special=True)

    return f"prompt: {tokenizer.decode(row[:first])}\nanswer: {answer(row)}\nof the data: {answer(reference)}"


def entropy(tokens: np.ndarray, vocab_size: int) -> float:
    """Mean unigram entropy of the sequences [N, L], in nats: what tells a sampler that repeats itself."""
    return float(unigram_entropy(tokens, vocab_size).mean())


class Numbers:
    """Ids written as numbers, where the files hold no tokenizer; what `data.tokenizers.Tokenizer` is to a picture."""

    separator = " "
    eos_id = pad_id = None

    def __init__(self, size: int, process):
        self.mask_id = size if process is None else process.mask_id

    def token_text(self, token_id: int) -> str:
        return str(token_id)

    def token_bytes(self, ids) -> np.ndarray:
        return np.array([len(str(i)) for i in ids])

    def decode(self, ids, show_special: bool = False) -> str:
        del show_special
        return self.separator.join(map(str, np.asarray(ids).tolist()))


def write_texts(path: Path, texts: list[str]) -> None:
    write_atomically(path, joined(texts))


def joined(texts: list[str]) -> str:
    return "".join(f"--- sample {number} ---\n{text}\n" for number, text in enumerate(texts, 1))


def write_pictures(trace, tokenizer, paths: list[Path], title: str, prompt: np.ndarray | None = None) -> None:
    """One picture a path; its suffix, .html or .png, says which."""
    for path in paths:
        draw_picture = denoising_html if path.suffix == ".html" else denoising_png
        draw_picture(trace, tokenizer, path, title, prompt=prompt)
