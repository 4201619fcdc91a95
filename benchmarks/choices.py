"""Unsupervised guidance in multiple choice: ``python -m benchmarks.choices --checkpoint=RUN [--figure=PNG]``.

RUN is a masked model of an oracle language. A question is the beginning of a row; the choices are how it goes on and
how other rows do. The model takes the choice of the highest log-likelihood, guided with strength w (SMDM, arXiv
2410.18514: the prompt masked in the second forward); the language itself says how often the best of judges is right.
"""

import argparse
from pathlib import Path

import numpy as np

import mdlm_jax
from mdlm_jax.data.languages.registry import make

STRENGTHS = (0.0, 0.25, 0.5, 1.0, 1.5, 2.0, 3.0)


def questions(language, options) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Prompts [N, P], choices [N, K, A], the right one [N]."""
    rng, shape = np.random.default_rng(options.seed), (options.questions, options.choices)
    rows = language.sample(rng, shape[0] * shape[1], options.prompt + options.answer)
    rows = rows.reshape(*shape, -1)
    right = rng.integers(0, options.choices, options.questions)
    choices = rows[:, :, options.prompt :]
    return rows[np.arange(shape[0]), right, : options.prompt], choices, right


def accuracy(scores: np.ndarray, right: np.ndarray) -> tuple[float, float]:
    hits = scores.argmax(1) == right
    return float(hits.mean()), float(hits.std() / np.sqrt(len(hits)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", type=Path, required=True)
    parser.add_argument("--language", default="hmm", help="that of the run")
    parser.add_argument("--questions", type=int, default=200)
    parser.add_argument("--choices", type=int, default=4)
    parser.add_argument("--prompt", type=int, default=58, help="tokens")
    parser.add_argument("--answer", type=int, default=6, help="tokens")
    parser.add_argument("--seed", type=int, default=5)
    parser.add_argument("--figure", type=Path)
    options = parser.parse_args()
    language, model = make(options.language), mdlm_jax.load(options.checkpoint)
    prompts, choices, right = questions(language, options)
    whole = np.concatenate([np.repeat(prompts[:, None], options.choices, 1), choices], axis=2)
    exact = language.log_prob(whole.reshape(-1, whole.shape[-1])).reshape(right.shape[0], -1)
    best, error = accuracy(exact, right)
    print(f"{options.questions} questions of {options.choices} choices; the language itself: {best:.3f} +- "
          f"{error:.3f}\n")
    pairs = [list(np.repeat(prompts, options.choices, 0)), list(choices.reshape(-1, options.answer))]
    print("| w | bound | chain rule |\n|---|---|---|")
    found = {"bound": [], "chain_rule": []}
    for strength in STRENGTHS:
        for method, values in found.items():
            how = {"draws": 64} if method == "bound" else {}
            nats = model.log_likelihood(*pairs, method=method, guidance=strength, batch_size=256, **how).nats
            values.append(accuracy(nats.reshape(exact.shape), right))
        print(f"| {strength:g} | " + " | ".join("{:.3f} +- {:.3f}".format(*values[-1]) for values in found.values())
              + " |", flush=True)
    if options.figure:
        draw(found, best, options.figure)


def draw(found: dict, best: float, path: Path) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 4), dpi=140, layout="constrained")
    axes = figure.subplots()
    for method, values in found.items():
        axes.errorbar(STRENGTHS, [v for v, _ in values], [e for _, e in values], marker="o", capsize=2,
                      label=method.replace("_", " "))
    axes.axhline(best, color="#666666", linestyle=":", label="the language itself")
    axes.set_xlabel("guidance w")
    axes.set_ylabel("share of right choices")
    axes.legend(frameon=False)
    figure.savefig(path)


if __name__ == "__main__":
    main()
