"""What launch.evolution does once its flags are checked: samples with their frames, the table and the figure."""

import numpy as np

import mdlm_jax
from mdlm_jax.evaluation.evolution import Evolution, draw, evolution, table

from ._memory import enough_memory
from .evolution import EvolutionOptions


def main(options: EvolutionOptions) -> None:
    """Draws all models with the same number of steps and the same seed."""
    found = {}
    with enough_memory("lower --samples"):
        for title, (folder, config) in options.models.items():
            print(f"drawing {options.samples} sample(s), {title} ...", flush=True)
            found[title] = _evolution(mdlm_jax.load(folder), config.data.length, options)
    print(table(found))
    draw(found, options.figure)
    print(f"written to {options.figure}")


def _evolution(model, length: int, options: EvolutionOptions) -> Evolution:
    empty = [np.zeros(0, np.int32)] * options.samples
    classes = model.config.classes
    labels = [i % classes for i in range(options.samples)] if classes else None
    rows = model.generate(empty, new_tokens=length, steps=options.steps, decoder="ancestral", stop_id=None, trace=True,
                          max_length=length, batch_size=options.samples, seed=options.seed, label=labels)
    return evolution(np.stack([row.trace for row in rows], axis=1), model.process.mask_id)
