"""What launch.sample does once its options are checked."""

import numpy as np

from mdlm_jax.config import ConfigError
from mdlm_jax.data.tokenizers import load_tokenizer
from mdlm_jax.sampling.canvas import Trace
from mdlm_jax.training.build import build_network, build_process
from mdlm_jax.training.checkpoints import abstract, find, restore_path

from . import _samples


def main(options) -> None:
    """Loads the weights (the average where there is one), draws, prints, and writes what was asked for."""
    step_folder = find(options.checkpoints if options.step is None else options.checkpoints / f"{options.step:08d}")
    tokenizer = load_tokenizer(step_folder / "tokenizer.json")
    network = build_network(options.config, tokenizer.vocab_size)
    process = build_process(options.config, tokenizer.vocab_size, tokenizer.mask_id)
    prompt = _prompt(tokenizer, options)
    params = load_weights(step_folder)["network"]
    tokens, trace = _samples.draw(
        process, network, params, options.sample, options.length, prompt, trace=options.picture is not None
    )
    texts = [tokenizer.decode(row, show_special=True) for row in tokens]
    print(_samples.joined(texts), end="", flush=True)
    if options.output:
        _samples.write_texts(options.output, texts)
    if options.picture:
        written = np.arange(options.length) < (0 if prompt is None else len(prompt))
        title = f"{options.sample.steps} steps, mixing {options.config.process.mixing:g}"
        _samples.write_pictures(Trace(trace), tokenizer, [options.picture], title, written)


def load_weights(step_folder) -> dict:
    """The averaged weights of a checkpoint, or the last ones where no average was kept."""
    saved = abstract(step_folder)
    name = "ema" if "ema" in saved else "trainable"
    return restore_path(step_folder, {name: saved[name]}, partial=True).tree[name]


def _prompt(tokenizer, options) -> np.ndarray | None:
    if not options.prompt:
        return None
    ids = tokenizer.encode(options.prompt)
    if len(ids) >= options.length:
        raise ConfigError(f"--prompt is {len(ids)} tokens long: must be shorter than --length={options.length}")
    return ids
