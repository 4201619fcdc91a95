"""A masked model beside its autoregressive twin: ``python -m benchmarks.twins --masked=RUN --causal=RUN``.

Two runs on one oracle language (configs/oracle.py; the twin with train.objective=autoregressive,
model.attention=causal and model.logit_shift=True, the same steps). Both write whole rows: the twin a token a forward,
keys and values kept; the masked model by its reverse process in L, L/2 and L/4 steps. Quality is exact: cross-entropy
under the language, with the rows' entropy. Speed comes from rounds in which everybody writes once, in a random order,
after a round that compiles: medians of tokens a second, and of the ratios to the twin within a round with their 95 %
intervals.
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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--masked", type=Path, required=True)
    parser.add_argument("--causal", type=Path, required=True)
    parser.add_argument("--language", default="hmm", help="that of the runs")
    parser.add_argument("--length", type=int, default=64)
    parser.add_argument("--rows", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=7)
    options = parser.parse_args()
    language = make(options.language)
    models = contenders(mdlm_jax.load(options.masked), mdlm_jax.load(options.causal), options)
    rows: dict[str, list[np.ndarray]] = {name: [] for name in models}
    seconds: dict[str, list[float]] = {name: [] for name in models}
    order = list(models)
    for number in range(options.rounds + 1):
        random.Random(number).shuffle(order)
        for name in order:
            tokens, took = write(*models[name], language, options, number)
            if number:
                rows[name].append(tokens)
                seconds[name].append(took)
    twin = np.array(seconds["autoregressive, cache"])
    told = quality(language.sample(np.random.default_rng(3), 2048, options.length), language.vocab_size,
                   [OracleJudge(language)])
    print(f"{options.rows} rows of {options.length} tokens, {options.rounds} rounds; the language's own rows: "
          f"cross-entropy {told.cross_entropy['oracle'][0]:.4f}, entropy {told.entropy[0]:.4f}\n")
    print("| | cross-entropy, nats a token | entropy of a row | tokens a second | over the twin |")
    print("|---|---|---|---|---|")
    for name, taken in seconds.items():
        found = quality(np.concatenate(rows[name]), language.vocab_size, [OracleJudge(language)])
        speed, ratio = options.rows * options.length / np.median(taken), twin / np.array(taken)
        low, high = interval(ratio)
        print("| {} | {:.4f} +- {:.4f} | {:.4f} +- {:.4f} | {:,.0f} | {:.2f} ({:.2f} to {:.2f}) |".format(
            name, *found.cross_entropy["oracle"], *found.entropy, speed, np.median(ratio), low, high))


if __name__ == "__main__":
    main()
