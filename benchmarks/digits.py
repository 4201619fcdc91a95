"""XDLM of digits for several mixings: ``python -m benchmarks.digits --workdir=DIR [--figure=PNG] [--table=MD]``.

Trains configs/xdlm_digits.py for every mixing and seed, and measures each run by its held-out bound (bits a pixel, the
class given) and by its samples, as many of every class, at several numbers of steps, with guidance and without:

    accuracy    share that a classifier of real digits (an SVC on the training images) takes for the class asked for
    diversity   mean distance of two samples of a class over that of two held-out images of it, mean over the classes
    Frechet     |mu - mu'|^2 + tr(C + C' - 2 (C C')^(1/2)) to the held-out images, in the first components of the
                training images: the FID (arXiv 1706.08500) with PCA in place of Inception

Training images, as many as samples, are measured in the same way: the reference. A seed is that of the weights, of the
order of the images and of the samples; the noise of a step and row is the same for all, so that one compilation serves
them. Killed and started again, the command goes on where it was: DIR/results.json has every measured run, DIR/mM_sS the
checkpoints of one under way. The table is made of what there is.
"""

import argparse
import dataclasses
import functools
import json
import time
from pathlib import Path

import jax
import numpy as np

from benchmarks.digits_report import figure, table
from launch import _configs
from mdlm_jax.config import RunConfig
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
_COMPONENTS, _ROWS = 16, 64


@dataclasses.dataclass(frozen=True)
class Judge:
    """What real digits say of others: a classifier, the held-out images, and the training images' components."""

    classifier: object
    mean: np.ndarray
    components: np.ndarray
    held_out: np.ndarray
    labels: np.ndarray

    def measure(self, images: np.ndarray, labels: np.ndarray) -> dict[str, float]:
        """Of images [N, 64] of the classes [N]; a mask that is left counts as black."""
        images = np.where(images > 16, 0, images).astype(np.float64)
        real, made = ((x - self.mean) @ self.components.T for x in (self.held_out, images))
        spread = [_spread(images[labels == k]) / _spread(self.held_out[self.labels == k]) for k in range(CLASSES)]
        return {"accuracy": float((self.classifier.predict(images) == labels).mean()),
                "diversity": float(np.mean(spread)), "frechet": frechet(real, made)}


def judge(built: Built) -> Judge:
    from sklearn.svm import SVC

    train, valid = (part.sequential(0, part.num_rows) for part in (built.train, built.valid))
    images = train["tokens"].astype(np.float64)
    mean = images.mean(0)
    components = np.linalg.svd(images - mean, full_matrices=False)[2][:_COMPONENTS]
    classifier = SVC(gamma=1e-3).fit(images, train["label"])
    return Judge(classifier, mean, components, valid["tokens"].astype(np.float64), valid["label"])


def _spread(images: np.ndarray) -> float:
    """Mean distance of two of them."""
    apart = np.linalg.norm(images[:, None] - images[None], axis=-1)
    return float(apart.sum() / (len(images) * (len(images) - 1)))


def frechet(first: np.ndarray, second: np.ndarray) -> float:
    """Squared Frechet distance of the Gaussians with the moments of two sets [N, D], [M, D]."""
    means, covariances = (first.mean(0), second.mean(0)), (np.cov(first.T), np.cov(second.T))
    values, vectors = np.linalg.eigh(covariances[0])
    root = (vectors * np.sqrt(np.maximum(values, 0.0))) @ vectors.T
    inner = np.linalg.eigvalsh(root @ covariances[1] @ root)
    cross = np.sqrt(np.maximum(inner, 0.0)).sum()
    return float(((means[0] - means[1]) ** 2).sum() + sum(map(np.trace, covariances)) - 2.0 * cross)


def reference(built: Built, judged: Judge) -> dict[str, float]:
    """Training images, ``EACH`` of every class; the classifier's accuracy is that on held-out images."""
    train = built.train.sequential(0, built.train.num_rows)
    chosen = np.concatenate([np.flatnonzero(train["label"] == k)[:EACH] for k in range(CLASSES)])
    found = judged.measure(train["tokens"][chosen], train["label"][chosen])
    return found | {"accuracy": float(judged.classifier.score(judged.held_out, judged.labels))}


def run(config: RunConfig, seed: int, workdir: Path, built: Built, judged: Judge) -> dict:
    """One run: trained, or resumed, and measured."""
    begin = time.process_time()
    mesh = make_mesh({"fsdp": 1}, jax.devices()[:1])
    process = build_process(config, built.tokenizer.vocab_size, built.tokenizer.mask_id)
    network = build_network(config, built.tokenizer.vocab_size)
    objective, _ = build_objective(config, network, process, 1)
    workdir.mkdir(parents=True, exist_ok=True)
    kept = Checkpoints(workdir / "checkpoints", 1)
    trainer = Trainer(config.train, objective, built.train, mesh, workdir, kept, {}, config.train.steps,
                      start_from=lambda: api.init(network, jax.random.key(seed)))
    params = averaged(trainer.run(lambda params: {}), config.train)
    trained = time.process_time()
    bound = build_bound(config, network, process, 1)
    rows = held_out_rows(built.valid, config.eval.final_rows)
    found = held_out_bound(bound.loss_at, params, padded_batches(rows, _ROWS), np.zeros_like,
                           draws=bound_draws(config, bound), end_terms=bound.end_terms)
    lines = []
    for steps, guidance in SETTINGS:
        images, labels = sample(network, process, params, steps, guidance, seed)
        lines.append({"steps": steps, "guidance": guidance} | judged.measure(images, labels))
    return {"bits": found.nats_per_token / np.log(2), "bits_stderr": found.nats_stderr / np.log(2), "samples": lines,
            "cpu_seconds": {"training": trained - begin, "measuring": time.process_time() - trained}}


def sample(network, process, params, steps: int, guidance: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Images [N, 64] and the classes [N] they were asked for."""
    labels = np.arange(CLASSES * EACH) % CLASSES
    canvas = blank(process.mask_id, len(labels), 64, condition=labels)
    done = decode(Denoiser(network, process.vocab_size, process), params["network"], canvas, Ancestral(process),
                  steps=steps, guidance=guidance, seed=seed)
    return np.asarray(done.tokens), labels


def config_of(mixing: float, seed: int, overrides: dict) -> RunConfig:
    return _configs.load("xdlm_digits", overrides | {"process.mixing": mixing, "data.seed": seed})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workdir", type=Path, required=True)
    parser.add_argument("--figure", type=Path)
    parser.add_argument("--table", type=Path, help="write the table here too; it is printed anyway")
    parser.add_argument("--steps", type=int, help="training steps, for a trial")
    options = parser.parse_args()
    jax.config.update("jax_compilation_cache_dir", str(options.workdir / "cache"))
    overrides = {} if options.steps is None else {"train.steps": options.steps}
    file = options.workdir / "results.json"
    results = json.loads(file.read_text()) if file.exists() else {}
    built = functools.cache(lambda seed: pipeline.build(config_of(0.0, seed, overrides).data, 32))
    judged = judge(built(0))
    results["reference"] = reference(built(0), judged)
    for seed in SEEDS:
        for mixing in MIXINGS:
            name = f"m{mixing:g}_s{seed}"
            if name not in results:
                config = config_of(mixing, seed, overrides)
                results[name] = run(config, seed, options.workdir / name, built(seed), judged)
                file.write_text(json.dumps(results, indent=1) + "\n")
                print(name, json.dumps(results[name]), flush=True)
    text = table(results)
    print(text)
    if options.table:
        options.table.write_text(text)
    if options.figure:
        figure(results, options.figure)


if __name__ == "__main__":
    main()
