"""What launch.sample does for one prompt once its options are checked."""

import re
import sys
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np

import mdlm_jax
from mdlm_jax.config import ConfigError
from mdlm_jax.generation.generate import answer_job
from mdlm_jax.language_model import LanguageModel
from mdlm_jax.loading import without_weights
from mdlm_jax.models.sharding import make_mesh
from mdlm_jax.sampling.canvas import Trace

from . import _images, _samples
from ._memory import enough_memory
from ._prompts import encoded


def main(options) -> None:
    """Loads the weights (the average where there is one), draws, prints, and writes what was asked for."""
    check(options, lambda model: [_prompt(options, model)])
    with enough_memory("lower --num or --length"):
        model, generate = load(options)
        tokenizer = model.tokenizer or _samples.Numbers(model.config.vocab_size, model.process)
        prompt = _prompt(options, model)
        found, frames = _drawn(options, model, generate, tokenizer, prompt)
    rows = [np.concatenate([prompt, one.tokens]) for one in found]
    texts = [tokenizer.decode(row, show_special=True) for row in rows]
    print(_samples.joined(texts), end="", flush=True)
    entropy = np.mean([_samples.entropy(one.tokens[None], model.config.vocab_size) for one in found if len(one.tokens)])
    print(f"unigram entropy: {entropy:.3f} nats a sample", file=sys.stderr)
    if options.output and options.output.suffix in (".png", ".npz"):
        labels = options.generate.get("label", [-1] * len(rows))
        _images.write(options.output, np.stack(rows), np.array(labels), _title(options, model, found[0]))
    elif options.output:
        _samples.write_texts(options.output, texts)
    if options.picture:
        _samples.write_pictures(Trace(frames), tokenizer, [options.picture], _title(options, model, found[0]),
                                found[0].given)


def check(options, prompts: Callable[[LanguageModel], list]) -> None:
    """What `LanguageModel.generate` would refuse of the prompts, all of them, before the weights are read."""
    model = without_weights(options.folder, mask_id=options.load.get("mask_id"))
    try:
        found = prompts(model)
        answer_job(model, found, options.new_tokens, **_of(keywords(options, without_weights), slice(len(found))))
    except ConfigError as error:
        name = "--prompt" if options.prompts is None else r"--prompts, prompt \1"
        raise ConfigError(re.sub(r"^prompts\[(\d+)\]", name, str(error))) from None


def _prompt(options, model: LanguageModel) -> np.ndarray:
    special = options.generate.get("special", False)
    return np.array(encoded("--prompt", options.prompt, model.tokenizer, special), np.int32)


def load(options) -> tuple[LanguageModel, dict]:
    """The model and `keywords`, shared by the devices of this process where a mesh was asked for."""
    mesh = None if options.mesh is None else make_mesh(options.mesh, jax.local_devices())
    model = mdlm_jax.load(options.folder, mesh=mesh, **options.load)
    return model, keywords(options, lambda path: mdlm_jax.load(path, mesh=mesh, dtype=options.load.get("dtype")))


def keywords(options, read: Callable[[Path], LanguageModel]) -> dict:
    """Those of `LanguageModel.generate`; ``read`` gives the twin of a folder."""
    return options.generate | ({} if options.twin is None else {"twin": read(options.twin)})


def _drawn(options, model, generate: dict, tokenizer, prompt: np.ndarray):
    """The samples, and [S + 1, L] frames of the first where it is shown or drawn."""
    prompts, keywords = [prompt] * options.sample.num, {"new_tokens": options.new_tokens} | generate
    if not options.live:
        if options.picture is None:
            return model.generate(prompts, **keywords), None
        first = model.generate(prompts[:1], trace=True, **_of(keywords, slice(1)))  # alone: others need no steps
        rest = _of(keywords, slice(1, None))
        others = model.generate(prompts[1:], row_ids=range(1, len(prompts)), **rest) if prompts[1:] else []
        return first + others, first[0].trace
    from mdlm_jax.sampling.trace_terminal import Live

    frames = []
    with Live(tokenizer) as live:
        for found in model.stream(prompts, every="step", batch_size=len(prompts), **keywords):
            frames.append(found[0].row)
            live.show([(one.row, one.given) for one in found])
    return found, np.stack(frames)


def _of(keywords: dict, part: slice) -> dict:
    """The keywords for some of the samples: each has a class of its own."""
    return keywords | ({"label": keywords["label"][part]} if "label" in keywords else {})


def _title(options, model, first) -> str:
    name = options.generate.get("decoder")
    own = "" if options.config is None else f", {options.config.process.title}"
    return f"{len(first.row)} tokens, {first.forwards} forwards" + (f", {name}" if name else own)
