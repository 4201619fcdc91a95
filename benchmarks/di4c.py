"""What a mixture makes of few steps: ``python -m benchmarks.di4c --workdir=DIR``.

On small oracle languages a network is trained, and with it ADJUST's joint layer (`benchmarks.joint`); the network then
teaches a mixture student (Di4C, arXiv 2410.08709). Total variation from the language to what each writes in 1, 2 and 4
steps, by three figures: of rows that were written, 2^16 of them, where the language's rows can be counted (with what
chance alone would make of it); from exact scores of the language's own rows for what has them (marginals and ADJUST, a
number of tokens a step, and in one step the mixture, by quadrature over its latent); and the KL of these, nats a row.

What a mixture of products can say in one step: ``replace`` with 8 components, ``parity`` with 32, and ``shuffle`` with
720. A product is off by 0.65, 0.5 and 0.98 at best where its marginals are the language's. ``parity`` has no
correlations among fewer than all of its bits: nothing tells a student that starts with none where to go on a row of
masks alone, and it has to come from rows with two masks, three, and so on.
"""

import argparse
import json
import math
from collections.abc import Iterator
from pathlib import Path

import jax.numpy as jnp
import numpy as np

import mdlm_jax
from benchmarks import joint
from benchmarks.adaptation import train
from mdlm_jax.data.languages.enumerated import Enumerated
from mdlm_jax.data.languages.registry import make
from mdlm_jax.evaluation.mixture import one_step_log_prob
from mdlm_jax.evaluation.scoring import distance, sampled_tv
from mdlm_jax.models.denoise import Denoiser
from mdlm_jax.models.shapes import parameter_count
from mdlm_jax.planning.work import model_flops
from mdlm_jax.sampling.adjust import Adjust
from mdlm_jax.sampling.canvas import blank
from mdlm_jax.training import checkpoints

STEPS = (1, 2, 4)
DECODERS = ("ancestral", "low_confidence")


def student(options, base: Path, name: str, seed: int) -> mdlm_jax.LanguageModel:
    length = joint.LENGTHS[name]
    fields = {"train.init_from": base, "data.source": f"language:{name}", "data.length": length, "data.seed": seed,
              "train.seed": seed, "train.objective": f"di4c:{length},{options.latents},{options.delta},{options.power}",
              "train.steps": options.student_steps, "train.checkpoint_every": options.student_steps,
              "eval.every": options.student_steps, "train.batch_size": 64, "train.learning_rate": 3e-3,
              "sample.num": 1}
    return mdlm_jax.load(train(options.workdir / f"{name}_{seed}_di4c", "di4c", **fields))


def sampled(model, name: str, seed: int, options, **how) -> list[float]:
    """Total variation of rows that are written, and what chance makes of none; NaN where rows cannot be counted."""
    language, length = make(name), joint.LENGTHS[name]
    if not isinstance(language, Enumerated):
        return [math.nan, math.nan]
    answers = model.generate([np.zeros(0, np.int32)] * options.rows, new_tokens=length, max_length=length, stop_id=None,
                             seed=seed, batch_size=4096, suppress=joint.beyond(name), **how)
    return list(sampled_tv(np.stack([one.row for one in answers]), language.rows, language.law))


def one_step(model, name: str, options) -> list[float]:
    """KL and total variation of the mixture in one step, from its exact law."""
    columns, mask_id = model.process.num_columns, model.process.mask_id
    rows = joint.rows_of(name, options.scored)
    bias = jnp.zeros(columns).at[jnp.array(joint.beyond(name))].set(-jnp.inf)
    log_q = one_step_log_prob(Denoiser(model.config, columns), model.params, blank(mask_id, 1, rows.shape[1]), rows,
                              mask_id=mask_id, bias=bias)
    found = distance(make(name).log_prob(rows), log_q)
    return [found.kl, found.tv]


def scored(model, name: str, options, steps: int) -> dict[str, list[float]]:
    """KL and total variation of marginals, and of ADJUST where its layer goes as far, from exact scores."""
    each, rows = -(-joint.LENGTHS[name] // steps), joint.rows_of(name, options.scored)
    mask_id, found = model.process.mask_id, {}
    layers = {"marginals": joint.plain(model.joint), "ADJUST": model.joint}
    for title, layer in layers.items():
        if each <= layer.most:
            found[title] = joint.distances(model, name, Adjust(layer, mask_id, each), rows)
    return found


def measured(options, name: str, seed: int) -> dict:
    """{"rows": {title: {steps: [TV, chance, KL, exact TV]}}, "costs": {...}}; NaN for what there is not."""
    base = joint.models(options.workdir, name, joint.LENGTHS[name], seed, options)
    mixed = student(options, options.workdir / f"{name}_{seed}", name, seed)
    found: dict[str, dict[str, list[float]]] = {}
    none = [math.nan, math.nan]
    for steps in STEPS:
        exact = scored(base, name, options, steps)
        for decoder in DECODERS:
            for title, model in (("teacher", base), ("Di4C", mixed)):
                figures = sampled(model, name, seed, options, decoder=decoder, steps=steps)
                law = one_step(mixed, name, options) if title == "Di4C" and steps == 1 else none
                found.setdefault(f"{title}, {decoder}", {})[str(steps)] = figures + law
        for title, law in exact.items():
            each = -(-joint.LENGTHS[name] // steps)
            figures = sampled(base, name, seed, options, decoder="adjust", tokens=each) if title == "ADJUST" else none
            found.setdefault(title, {})[str(steps)] = figures + law
        print(f"{name}, seed {seed}, {steps} steps: { {title: one.get(str(steps)) for title, one in found.items()} }",
              flush=True)
    return {"rows": found, "costs": costs(options, base, mixed, name, seed)}


def costs(options, base, mixed, name: str, seed: int) -> dict[str, float]:
    """Parameters beside the network's, and FLOPs of training, of the network, the student and the layer."""
    def flops(folder: str, model) -> float:
        config = mdlm_jax.loading._run_config(checkpoints.find(options.workdir / folder))
        one_device = dict.fromkeys(("replica", "fsdp", "expert", "context", "tensor"), 1)
        return float(config.train.steps * model_flops(config, model.config, one_device))

    run = f"{name}_{seed}"
    return {"parameters": parameter_count(base.config),
            "of the latent": parameter_count(mixed.config) - parameter_count(base.config),
            "FLOPs of the network": flops(run, base), "FLOPs of the student": flops(f"{run}_di4c", mixed),
            "FLOPs of the layer": flops(f"{run}_joint_any_order=0.0", base)}


def table(options, found: dict[str, list[dict]]) -> Iterator[str]:
    yield "| language | written by | steps | TV of rows | by chance | KL | exact TV |"
    yield "|---|---|---|---|---|---|---|"
    for name, seeds in found.items():
        for title in seeds[0]["rows"]:
            for steps in seeds[0]["rows"][title]:
                values = np.array([one["rows"][title][steps] for one in seeds], np.float64)
                yield f"| {name} | {title} | {steps} | {' | '.join(map(_cell, values.T))} |"
    yield "\n| language | " + " | ".join(next(iter(found.values()))[0]["costs"]) + " |"
    yield "|---" * (1 + len(next(iter(found.values()))[0]["costs"])) + "|"
    for name, seeds in found.items():
        yield f"| {name} | " + " | ".join(f"{value:.3g}" for value in seeds[0]["costs"].values()) + " |"


def _cell(values: np.ndarray) -> str:
    if np.isnan(values).any():
        return ""
    error = f" +- {values.std(ddof=1) / len(values) ** 0.5:.3f}" if len(values) > 1 else ""
    return f"{values.mean():.3f}{error}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workdir", type=Path, required=True)
    parser.add_argument("--languages", nargs="+", default=list(joint.LENGTHS))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--steps", type=int, default=3000, help="of the network")
    parser.add_argument("--trajectories", type=int, default=16384)
    parser.add_argument("--joint_steps", type=int, default=2500)
    parser.add_argument("--student_steps", type=int, default=3000)
    parser.add_argument("--latents", type=int, default=16)
    parser.add_argument("--delta", type=float, default=0.1)
    parser.add_argument("--power", type=float, default=0.0, help="of alpha, in the weight of the data")
    parser.add_argument("--rows", type=int, default=1 << 16, help="that are written")
    parser.add_argument("--scored", type=int, default=8192, help="of the language, scored exactly")
    options = parser.parse_args()
    found = {name: [joint.kept(options.workdir / f"{name}_{seed}_di4c.json",
                               lambda name=name, seed=seed: measured(options, name, seed)) for seed in options.seeds]
             for name in options.languages}
    print("\n".join(table(options, found)))
    print(json.dumps({"seeds": options.seeds, "rows": options.rows, "latents": options.latents}))


if __name__ == "__main__":
    main()
