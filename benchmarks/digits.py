"""XDLM of digits for several mixings: ``python -m benchmarks.digits --workdir=DIR [--figure=PNG] [--table=MD]``.

Trains configs/xdlm_digits.py for every mixing and seed, and measures each run by its held-out bound (bits a pixel, the
class given) and by its samples, as many of every class, at several numbers of steps, with guidance and without:

    accuracy    share that a classifier of real digits (an SVC on the training images) takes for the class asked for
    diversity   mean distance of two samples of a class over that of two held-out images of it, mean over the classes
    nearest     mean distance to the nearest training image of that class over that of held-out images: above 1 noise
                that no image has, below 1 copies
    Frechet     |mu - mu'|^2 + tr(C + C' - 2 (C C')^(1/2)) to the held-out images, in the first components of the
                training images: the FID (arXiv 1706.08500) with PCA in place of Inception

Two references are measured in the same way: as many training images (none is its own nearest), and images of
independent pixels, each drawn from those of its class, which is what one step could do at best.

A seed is that of the weights, of the order of the images and of the samples; the noise of a step and row is the same
for all, so that one compilation serves them. Killed and started again, the command goes on where it was:
DIR/results.json has the settings and the bound of every run that is done, DIR/mM_sS its checkpoints and samples; runs
of other settings are refused. With --report the table is made of what there is.
"""

import argparse
import dataclasses
import functools
import itertools
import json
import time
from pathlib import Path

import jax
import numpy as np

from benchmarks.digits_report import figure, table
from launch import _configs
from mdlm_jax.config import RunConfig, to_dict
from mdlm_jax.data import pipeline
from mdlm_jax.data.pipeline import Built
from mdlm_jax.evaluation.likelihood import held_out_bound, held_out_rows, padded_batches
from mdlm_jax.models import api
from mdlm_jax.models.denoise import Denoiser
from mdlm_jax.models.sharding import make_mesh
from mdlm_jax.sampling.ancestral import Ancestral
from mdlm_jax.sampling.canvas import blank
from mdlm_jax.sampling.loop import decode
from mdlm_jax.training.build import bound_draws, build_bound, build_network, build_objective, build_process
from mdlm_jax.training.checkpoints import Checkpoints
from mdlm_jax.training.trainer import Trainer, averaged

MIXINGS, SEEDS = (0.0, 0.01, 0.1, 0.5, 1.0), (0, 1, 2)
CLASSES, EACH = 10, 20
SETTINGS = [(steps, 0.0) for steps in (4, 8, 16, 32, 64)] + [(steps, 1.0) for steps in (4, 16)]
_COMPONENTS, _ROWS = 32, 64


@dataclasses.dataclass(frozen=True)
class Judge:
    """What real digits say of others: images [N, 64] of each class, a classifier, components [K, 64]."""

    train: list[np.ndarray]
    held_out: list[np.ndarray]
    classifier: object
    components: np.ndarray

    @classmethod
    def of(cls, built: Built) -> "Judge":
        from sklearn.svm import SVC

        parts = [part.sequential(0, part.num_rows) for part in (built.train, built.valid)]
        images = [part["tokens"].astype(np.float64) for part in parts]
        components = np.linalg.svd(images[0] - images[0].mean(0), full_matrices=False)[2][:_COMPONENTS]
        split = [[x[part["label"] == k] for k in range(CLASSES)] for x, part in zip(images, parts, strict=True)]
        return cls(*split, SVC(gamma=1e-3).fit(images[0], parts[0]["label"]), components)

    def measure(self, images: np.ndarray, labels: np.ndarray) -> dict[str, float]:
        """Of images [N, 64] of the classes [N]; a mask that is left counts as black."""
        images = np.where(images > 16, 0, images).astype(np.float64)
        made = [images[labels == k] for k in range(CLASSES)]
        spread = [distances(x, x)[1] / distances(y, y)[1] for x, y in zip(made, self.held_out, strict=True)]
        nearest = [[distances(x, z)[0] for x, z in zip(of, self.train, strict=True)] for of in (made, self.held_out)]
        return {"accuracy": float((self.classifier.predict(images) == labels).mean()),
                "diversity": float(np.mean(spread)), "nearest": float(np.mean(nearest[0]) / np.mean(nearest[1])),
                "frechet": frechet(np.concatenate(self.held_out) @ self.components.T, images @ self.components.T)}

    def references(self) -> dict[str, dict[str, float]]:
        """Real images, the classifier's accuracy that on held-out ones; and independent pixels."""
        rng, labels = np.random.default_rng(0), np.repeat(np.arange(CLASSES), EACH)
        real = np.concatenate([rng.permutation(x)[:EACH] for x in self.train])
        apart = np.concatenate([rng.permuted(x, axis=0)[:EACH] for x in self.train])
        held_out = np.repeat(np.arange(CLASSES), list(map(len, self.held_out)))
        accuracy = float(self.classifier.score(np.concatenate(self.held_out), held_out))
        return {"real": self.measure(real, labels) | {"accuracy": accuracy},
                "independent": self.measure(apart, labels) | {"bits": self.independent_bits()}}

    def independent_bits(self) -> float:
        """Bits a pixel of the held-out images by how often a grey stood there in its class, each 0.3 times more."""
        bits = 0.0
        for train, held_out in zip(self.train, self.held_out, strict=True):
            counts = (train[..., None] == np.arange(17)).sum(0) + 0.3
            found = np.log2(counts / counts.sum(-1, keepdims=True))
            bits -= found[np.arange(64), held_out.astype(int)].sum()
        return float(bits / sum(x.size for x in self.held_out))


def distances(first: np.ndarray, second: np.ndarray) -> tuple[float, float]:
    """Mean over ``first`` [N, D] of the least distance to ``second`` [M, D], and of all; none of an image to itself."""
    apart = np.linalg.norm(first[:, None] - second[None], axis=-1)
    apart = np.where(apart == 0, np.nan, apart)
    return float(np.nanmin(apart, axis=1).mean()), float(np.nanmean(apart))


def frechet(first: np.ndarray, second: np.ndarray) -> float:
    """Squared Frechet distance of the Gaussians with the moments of two sets [N, D], [M, D]."""
    means, covariances = (first.mean(0), second.mean(0)), (np.cov(first.T), np.cov(second.T))
    values, vectors = np.linalg.eigh(covariances[0])
    root = (vectors * np.sqrt(np.maximum(values, 0.0))) @ vectors.T
    inner = np.linalg.eigvalsh(root @ covariances[1] @ root)
    cross = np.sqrt(np.maximum(inner, 0.0)).sum()
    return float(((means[0] - means[1]) ** 2).sum() + sum(map(np.trace, covariances)) - 2.0 * cross)


def run(config: RunConfig, seed: int, workdir: Path, built: Built) -> dict:
    """One run: trained, or resumed, its bound measured and its samples written to samples.npz."""
    begin = time.process_time()
    mesh = make_mesh({"fsdp": 1}, jax.devices()[:1])
    process = build_process(config, built.tokenizer.vocab_size, built.tokenizer.mask_id)
    network = build_network(config, built.tokenizer.vocab_size)
    objective, _ = build_objective(config, network, process, 1)
    workdir.mkdir(parents=True, exist_ok=True)
    kept = Checkpoints(workdir / "checkpoints", 1)
    trainer = Trainer(config.train, objective, built.train, mesh, workdir, kept, {}, config.train.steps,
                      start_from=lambda: {"network": jax.jit(api.init, static_argnums=0)(network,
                                                                                         jax.random.key(seed))})
    params = averaged(trainer.run(lambda params: {}), config.train)
    trained = time.process_time()
    bound = build_bound(config, network, process, 1)
    rows = held_out_rows(built.valid, config.eval.final_rows)
    found = held_out_bound(bound.loss_at, params, padded_batches(rows, _ROWS), np.zeros_like,
                           draws=bound_draws(config, bound), end_terms=bound.end_terms)
    images = {name(*setting): sample(network, process, params, *setting, seed) for setting in SETTINGS}
    np.savez(workdir / "samples.npz", **images)
    return {"bits": found.nats_per_token / np.log(2), "bits_stderr": found.nats_stderr / np.log(2),
            "cpu_seconds": {"training": trained - begin, "measuring": time.process_time() - trained}}


def sample(network, process, params, steps: int, guidance: float, seed: int) -> np.ndarray:
    """Images [N, 64] of the classes 0, 1, ... in turn."""
    labels = np.arange(CLASSES * EACH) % CLASSES
    canvas = blank(process.mask_id, len(labels), 64, condition=labels)
    done = decode(Denoiser(network, process.vocab_size, process), params["network"], canvas, Ancestral(process),
                  steps=steps, guidance=guidance, seed=seed)
    return np.asarray(done.tokens).astype(np.uint8)


def name(steps: int, guidance: float) -> str:
    return f"steps{steps}_guidance{guidance:g}"


def judged(folder: Path, judge: Judge) -> list[dict]:
    """What the judge says of a run's samples, by setting."""
    with np.load(folder / "samples.npz") as images:
        labels = np.arange(CLASSES * EACH) % CLASSES
        return [{"steps": steps, "guidance": guidance} | judge.measure(images[name(steps, guidance)], labels)
                for steps, guidance in SETTINGS]


def config_of(mixing: float, seed: int, overrides: dict) -> RunConfig:
    return _configs.load("xdlm_digits", overrides | {"process.mixing": mixing, "data.seed": seed})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workdir", type=Path, required=True)
    parser.add_argument("--figure", type=Path)
    parser.add_argument("--table", type=Path, help="write the table here too; it is printed anyway")
    parser.add_argument("--steps", type=int, help="training steps; default: those of the configuration")
    parser.add_argument("--seeds", type=int, nargs="+", default=SEEDS)
    parser.add_argument("--report", action="store_true", help="train nothing more")
    options = parser.parse_args()
    jax.config.update("jax_compilation_cache_dir", str(options.workdir / "cache"))
    overrides = {} if options.steps is None else {"train.steps": options.steps}
    file = options.workdir / "results.json"
    results = json.loads(file.read_text()) if file.exists() else {}
    built = functools.cache(lambda seed: pipeline.build(config_of(0.0, seed, overrides).data, 32))
    for seed, mixing in itertools.product(options.seeds, MIXINGS):
        own, config = f"m{mixing:g}_s{seed}", config_of(mixing, seed, overrides)
        if own in results and results[own]["config"] != to_dict(config):
            raise SystemExit(f"{file}: {own} was made with other settings; give another --workdir")
        if own not in results and not options.report:
            results[own] = run(config, seed, options.workdir / own, built(seed)) | {"config": to_dict(config)}
            file.write_text(json.dumps(results, indent=1) + "\n")
            print(f"{own} {results[own]['bits']:.4f} bits", flush=True)
    judge = Judge.of(built(0))
    results = {own: of | {"samples": judged(options.workdir / own, judge)} for own, of in results.items()}
    results |= judge.references()
    text = table(results)
    print(text)
    if options.table:
        options.table.write_text(text)
    if options.figure:
        figure(results, options.figure)


if __name__ == "__main__":
    main()
