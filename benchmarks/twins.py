"""Masked models beside their autoregressive twins: ``python -m benchmarks.twins --masked RUN ... --causal RUN ...``.

Runs on one oracle language, a pair for a seed (configs/xdlm_oracle.py with mixing 0; the twin with
train.objective=autoregressive, model.attention=causal and model.logit_shift=True, the same steps). Both write whole
rows: the twin a token a forward, keys and values kept; the masked model by its reverse process in L, L/2 and L/4 steps.
Quality is exact: cross-entropy under the language, with the rows' entropy; mean over pairs with its standard error.
Speed comes from the first pair, in rounds in which everybody writes once, in a random order, after a round that
compiles: medians of tokens a second, and of the ratios to the twin within a round with their 95 % intervals.
"""

import argparse
import random
import time
from pathlib import Path

import numpy as np

import mdlm_jax
from benchmarks.peer_process import interval
from mdlm_jax.data.languages.registry import make
from mdlm_jax.evaluation.judges import OracleJudge, quality


def contenders(masked, causal, options) -> dict[str, tuple]:
    """name -> (model, how it decodes)."""
    found = {"autoregressive, cache": (causal, {}), "autoregressive, no cache": (causal, {"cache": "none"})}
    for share in (1, 2, 4):
        name = f"masked, 1/{share} step a token"
        found[name] = (masked, {"decoder": "ancestral", "steps": options.length // share})
    return found


def write(model, how: dict, language, options, seed: int) -> tuple[np.ndarray, float]:
    """Rows [N, L], and the seconds they took."""
    known = language.vocab_size
    suppress = [i for i in range(known, model.process.vocab_size) if i != model.process.mask_id]
    begin = time.perf_counter()
    found = model.generate([np.zeros(0, np.int32)] * options.rows, new_tokens=options.length, temperature=1.0,
                           max_length=options.length, stop_id=None, suppress=suppress, batch_size=options.rows,
                           seed=seed, **how)
    return np.stack([one.row for one in found]), time.perf_counter() - begin


def timed(models: dict, language, options) -> dict[str, np.ndarray]:
    """Seconds [rounds] of everybody."""
    seconds: dict[str, list[float]] = {name: [] for name in models}
    order = list(models)
    for number in range(options.rounds + 1):
        random.Random(number).shuffle(order)
        for name in order:
            took = write(*models[name], language, options, number)[1]
            if number:
                seconds[name].append(took)
    return {name: np.array(taken) for name, taken in seconds.items()}


def judged(rows: np.ndarray, language) -> np.ndarray:
    """Cross-entropy under the language and entropy of a row, each with its standard error: [2, 2], nats."""
    found = quality(rows, language.vocab_size, [OracleJudge(language)])
    return np.array([found.cross_entropy["oracle"], found.entropy])


def over_pairs(found: list[np.ndarray]) -> np.ndarray:
    """Means over pairs; their standard error where there are several pairs, that of the rows where there is one."""
    values = np.array(found)
    if len(values) == 1:
        return values[0]
    return np.stack([values[..., 0].mean(0), values[..., 0].std(0, ddof=1) / np.sqrt(len(values))], axis=-1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--masked", type=Path, nargs="+", required=True)
    parser.add_argument("--causal", type=Path, nargs="+", required=True)
    parser.add_argument("--language", default="hmm", help="that of the runs")
    parser.add_argument("--length", type=int, default=64)
    parser.add_argument("--rows", type=int, default=64, help="of a round")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--judged", type=int, default=1024, help="rows of every model whose quality is measured")
    options = parser.parse_args()
    if len(options.masked) != len(options.causal):
        parser.error(f"{len(options.masked)} --masked and {len(options.causal)} --causal: give pairs")
    language = make(options.language)
    pairs = [contenders(mdlm_jax.load(masked), mdlm_jax.load(causal), options)
             for masked, causal in zip(options.masked, options.causal, strict=True)]
    told = judged(language.sample(np.random.default_rng(3), 4 * options.judged, options.length), language)
    print(f"{len(pairs)} pairs, {options.judged} rows of {options.length} tokens each; the language's own rows: "
          f"cross-entropy {told[0, 0]:.4f}, entropy {told[1, 0]:.4f}\n", flush=True)
    seconds = timed(pairs[0], language, options)
    print("| | cross-entropy, nats a token | entropy of a row | tokens a second | over the twin |")
    print("|---|---|---|---|---|")
    for name, taken in seconds.items():
        found = over_pairs([judged(np.concatenate([write(*models[name], language, options, 100 + number)[0]
                                                   for number in range(-(-options.judged // options.rows))]), language)
                            for models in pairs])
        speed, ratio = options.rows * options.length / np.median(taken), seconds["autoregressive, cache"] / taken
        low, high = interval(ratio)
        print("| {} | {:.4f} +- {:.4f} | {:.4f} +- {:.4f} | {:,.0f} | {:.2f} ({:.2f} to {:.2f}) |".format(
            name, *found[0], *found[1], speed, np.median(ratio), low, high), flush=True)


if __name__ == "__main__":
    main()
