"""Any-subset models and their speculative decoding (arXiv 2504.20456): ``python -m benchmarks.assd --workdir=DIR``.

On oracle languages networks are trained alike: on the recursive binary lattice (any_subset), with few and with all
shares given, and on random orders (any_order). The first table scores rows of the language exactly in lattice orders,
whatever a network was trained on: none of a row given, 5 % and half of it at random, nats a token that is not given.

The second is of decoding by ASSD with K drafts, stale: without a fresh forward after a draft that was not kept. On
whole rows and with 95 % to be written: tokens a forward, tokens that a forward with drafts to check writes, the most
forwards a token in any row, the time of one token a forward over ASSD's (medians of rounds in which both are run), the
cross-entropy of whole rows under the language, nats a token of those it can say, their share, and where rows can be
enumerated the p-value of a chi-square test against the exact law of one token a forward. Of short rows one token is
given in place of 5 %.
"""

import argparse
import itertools
import math
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

import mdlm_jax
from benchmarks.adaptation import train
from benchmarks.joint import beyond, kept, p_value
from mdlm_jax.data.languages.registry import make
from mdlm_jax.evaluation.scoring import forced_log_prob
from mdlm_jax.models.denoise import Denoiser
from mdlm_jax.sampling.assd import ASSD
from mdlm_jax.sampling.canvas import Canvas, canvas
from mdlm_jax.sampling.loop import Decoded, decode

LENGTHS = {"hmm": 48, "copy": 32, "shuffle": 6, "parity": 6}
ENUMERABLE = ("shuffle", "parity")
NETWORKS = {"few given": "any_subset:0,0.1", "any given": "any_subset:0,1", "random orders": "any_order"}
DECODED = {name: ("any given" if name in ENUMERABLE else "few given", "random orders") for name in LENGTHS}
GIVEN = {"nothing": 0.0, "5 %": 0.05, "half": 0.5}
RULES = {"1": (1, True), "2": (2, True), "5": (5, True), "8": (8, True), "2, stale": (2, False),
         "5, stale": (5, False), "8, stale": (8, False)}


def model_of(folder: Path, name: str, kind: str, seed: int, options) -> mdlm_jax.LanguageModel:
    """A network of ``name``, trained on a ``kind`` of `NETWORKS`."""
    return mdlm_jax.load(train(folder / label(name, kind, seed), "asarm", **{
        "data.source": f"language:{name}", "data.length": LENGTHS[name], "data.seed": seed, "train.seed": seed,
        "train.objective": NETWORKS[kind], "model.layers": 2, "model.d_model": 32 if name in ENUMERABLE else 64,
        "model.heads": 2, "train.steps": options.steps, "train.checkpoint_every": options.steps,
        "train.learning_rate": 3e-3, "eval.every": options.steps, "eval.final_rows": 512}))


def label(name: str, kind: str, seed: int) -> str:
    return f"{name}_{kind.replace(' ', '_')}_{seed}"


def rows_of(name: str, number: int, seed: int = 1234) -> np.ndarray:
    return make(name).sample(np.random.default_rng(seed), number, LENGTHS[name]).astype(np.int32)


def holes(rows: np.ndarray, share: float, mask_id: int) -> Canvas:
    """The rows with a ``share`` given, at least one token unless it is 0, at random."""
    given = max(1, round(share * rows.shape[1])) if share else 0
    ranks = np.random.default_rng(5).random(rows.shape).argsort(1).argsort(1)
    return canvas(np.where(ranks < given, rows, mask_id), ranks >= given)


def called(model, name: str) -> dict:
    """What all calls of the loop share."""
    columns = model.process.num_columns
    return {"denoise": Denoiser(model.config, columns), "params": model.params,
            "bias": jnp.zeros(columns).at[jnp.array(beyond(name), int)].set(-jnp.inf)}


def likelihoods(model, name: str, options) -> dict[str, float]:
    """Share given -> nats a token of the rest, one after the other in the lattice's order; and the language's own."""
    rows, found = rows_of(name, options.rows), {}
    for title, share in GIVEN.items():
        given = holes(rows, share, model.process.mask_id)
        log_prob = forced_log_prob(canvas=given, tokens=rows, decoder=ASSD(model.process.mask_id, 1), steps=None,
                                   batch=min(512, options.rows), **called(model, name))
        found[title] = float(-log_prob.sum() / np.asarray(given.editable).sum())
    return found | {"language": float(-make(name).log_prob(rows).sum() / rows.size)}


def rounds(found: Decoded, drafts: int, fresh: bool) -> float:
    """Tokens that a forward with drafts writes: after one without, after one that wrote K, and if stale always."""
    written, checks = 0, 0
    for order in np.asarray(found.order):
        checked = False
        for number in np.bincount(order[order >= 0]):
            written, checks = written + number * checked, checks + checked
            checked = not fresh or not checked or number == drafts
    return written / checks if checks else math.nan


def decoded(model, name: str, options) -> dict[str, dict[str, list[float]]]:
    """Task -> rule -> tokens a forward, a check; forwards a token at most; ratio of times; nats a token; p-value."""
    found, mask_id, law = {}, model.process.mask_id, None
    if name in ENUMERABLE:
        every = np.array(list(itertools.product(range(make(name).vocab_size), repeat=LENGTHS[name])), np.int32)
        law = np.exp(forced_log_prob(canvas=holes(every, 0.0, mask_id), tokens=every, decoder=ASSD(mask_id, 1),
                                     steps=None, batch=1024, **called(model, name)))
    for task, share in (("whole rows", 0.0), ("95 %", 0.05)):
        number = options.rows * (1 if law is None else 16)  # so that each of 720 cells is expected five times
        given = holes(rows_of(name, number, 99), share, mask_id)
        times, found[task] = clock(model, name, jax.tree.map(lambda x: x[: options.batch], given), options), {}
        for title, (drafts, fresh) in RULES.items():
            run = decode(canvas=given, decoder=ASSD(mask_id, drafts, fresh), seed=3, **called(model, name))
            tokens, forwards = np.asarray(given.editable).sum(1), np.asarray(run.forwards)
            rows = np.asarray(run.tokens)
            nats = -make(name).log_prob(rows) / LENGTHS[name]
            possible = np.isfinite(nats)
            chance = p_value(rows, law, make(name).vocab_size) if law is not None and not share else math.nan
            found[task][title] = [
                tokens.sum() / forwards.sum(), rounds(run, drafts, fresh), float((forwards / tokens).max()),
                float(np.median(np.divide(times["1"], times[title]))), float(nats[possible].mean()),
                float(possible.mean()), chance]
    return found


def clock(model, name: str, given: Canvas, options) -> dict[str, list[float]]:
    """Rule -> seconds in each round, every rule once a round; compiled before."""
    found = {title: [] for title in RULES}
    for number in range(options.rounds + 1):
        for title, (drafts, fresh) in RULES.items():
            begin = time.perf_counter()
            run = decode(canvas=given, decoder=ASSD(model.process.mask_id, drafts, fresh), seed=number,
                         **called(model, name))
            jax.block_until_ready(run.tokens)
            if number:
                found[title].append(time.perf_counter() - begin)
    return found


def mean(values: list[float]) -> str:
    """Over seeds, with its standard error."""
    values = np.array(values, float)
    if np.isnan(values).any():
        return ""
    error = f" +- {values.std(ddof=1) / math.sqrt(len(values)):.3f}" if len(values) > 1 else ""
    return f"{values.mean():.3f}{error}"


def measured(name: str, kind: str, options, what, suffix: str = "") -> list[dict]:
    """``what(model, name, options)`` of every seed's network."""
    return [kept(options.workdir / f"{label(name, kind, seed)}{suffix}.json", lambda seed=seed: what(
        model_of(options.workdir, name, kind, seed, options), name, options)) for seed in options.seeds]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workdir", type=Path, required=True)
    parser.add_argument("--languages", nargs="+", choices=LENGTHS, default=["hmm", "shuffle"])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--steps", type=int, default=2000, help="of training")
    parser.add_argument("--rows", type=int, default=1024,
                        help="scored and written; of shuffle and parity 16 times as many are written")
    parser.add_argument("--batch", type=int, default=16, help="rows that are timed")
    parser.add_argument("--rounds", type=int, default=5, help="of the clock")
    options = parser.parse_args()
    print("| language | trained on | " + " | ".join(f"{title} given" for title in GIVEN) + " | the language itself |\n"
          + "|---" * (3 + len(GIVEN)) + "|", flush=True)
    for name, kind in itertools.product(options.languages, NETWORKS):
        found = measured(name, kind, options, likelihoods)
        print(f"| {name} | {kind} | " + " | ".join(mean([one[title] for one in found]) for title in found[0]) + " |",
              flush=True)
    print("\n| language | trained on | to write | K | tokens a forward | tokens a check | most forwards a token | "
          "time ratio | cross-entropy | possible rows | p-values |\n" + "|---" * 11 + "|", flush=True)
    for name in options.languages:
        for kind in DECODED[name]:
            found = measured(name, kind, options, decoded, "_decoded")
            for task, title in itertools.product(found[0], RULES):
                figures = list(zip(*(one[task][title] for one in found), strict=True))
                chances = "" if math.isnan(figures[-1][0]) else ", ".join(f"{p:.3f}" for p in figures[-1])
                print(f"| {name} | {kind} | {task} | {title} | " + " | ".join(mean(x) for x in figures[:-1])
                      + f" | {chances} |", flush=True)


if __name__ == "__main__":
    main()
