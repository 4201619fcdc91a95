"""Unsupervised guidance in multiple choice: ``python -m benchmarks.choices --checkpoint=RUN [--figure=PNG]``.

RUN is a masked model of an oracle language. A question is the beginning of a row; the choices are how it goes on and
how other rows do. The model takes the choice of the highest log-likelihood, guided with strength w (SMDM, arXiv
2410.18514: the prompt masked in the second forward). The language's own laws, guided alike along the chain rule, say
what a network without a fault would choose; no chooser is better than the ratio p(answer | prompt) / p(answer), for the
other choices are drawn from p(answer).
"""

import argparse
from pathlib import Path

import numpy as np

import mdlm_jax
from mdlm_jax.data.languages.base import log_normalize
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


class Perfect:
    """Log-probabilities of the language's own laws along the answers of rows [N, P + A]: ``given`` the prompt, and
    ``blind``, [A, N, V] each."""

    def __init__(self, language, rows: np.ndarray, start: int):
        place, found = np.arange(rows.shape[1]), []
        for i in range(start, rows.shape[1]):
            seen = [np.broadcast_to(visible, rows.shape) for visible in (place < i, (place < i) & (place >= start))]
            found.append([language.conditional_log_probs(rows, visible)[:, i] for visible in seen])
        self.given, self.blind = np.array([one[0] for one in found]), np.array([one[1] for one in found])
        self.answers = rows[:, start:].T[..., None]

    def score(self, strength: float) -> np.ndarray:
        """log p of every answer, [N]; strength infinity: log p(answer | prompt) / p(answer)."""
        if np.isinf(strength):
            guided = self.given - self.blind
        else:
            guided = log_normalize(self.blind + (1 + strength) * (self.given - self.blind))
        return np.take_along_axis(guided, self.answers, -1).sum((0, 2))


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
    perfect = Perfect(language, whole.reshape(-1, whole.shape[-1]), options.prompt)
    best, error = accuracy(perfect.score(np.inf).reshape(choices.shape[:2]), right)
    print(f"{options.questions} questions of {options.choices} choices; by the ratio of the language's laws: "
          f"{best:.3f} +- {error:.3f}\n")
    pairs = [list(np.repeat(prompts, options.choices, 0)), list(choices.reshape(-1, options.answer))]
    print("| w | bound | chain rule | the language's own laws |\n|---|---|---|---|")
    found = {"bound": [], "chain_rule": [], "the language's own laws": []}
    for strength in STRENGTHS:
        for method, values in list(found.items())[:2]:
            how = {"draws": 64} if method == "bound" else {}
            nats = model.log_likelihood(*pairs, method=method, guidance=strength, batch_size=256, **how).nats
            values.append(accuracy(nats.reshape(choices.shape[:2]), right))
        found["the language's own laws"].append(accuracy(perfect.score(strength).reshape(choices.shape[:2]), right))
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
    axes.axhline(best, color="#666666", linestyle=":", label="the ratio of the language's laws")
    axes.set_xlabel("guidance w")
    axes.set_ylabel("share of right choices")
    axes.legend(frameon=False)
    figure.savefig(path)


if __name__ == "__main__":
    main()
