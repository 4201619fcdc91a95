"""Right answers against tokens a forward: ``python -m benchmarks.parallel --workdir=DIR [--figure=PNG]``.

ParallelBench's tasks (arXiv 2510.04767): waiting lines and puzzles with a token a person or cell (`languages.lines`,
`enumerated`); of each a network of its own and a joint layer that saw random orders. An item is a prompt drawn from the
language:

    marginals  K tokens a forward, where the entropy is least, each drawn from its own law
    ADJUST     the same, each told to the layer before the next
    threshold  at temperature 0 all tokens whose likeliest one has at least TAU; ADJUST's: up to 4, while the entropy is
               at most H
    oracle     of the thresholds the one that writes an item in the fewest forwards and right, if any does: nothing is
               drawn, so that it is no best of many draws

An answer is right where the language can say the row at all, which is ParallelBench's rule. Beside the marginals of
the lines stands what a network without a mistake would get with all tokens at once.
"""

import argparse
import itertools
import math
from pathlib import Path

import numpy as np

from benchmarks.joint import beyond, kept, models, plain
from mdlm_jax.data.languages.registry import make
from mdlm_jax.sampling.adjust import Adjust
from mdlm_jax.sampling.threshold import Threshold

TASKS = ("line_copy", "line_sort", "line_shuffle", "line_replace", "line_insert", "latin", "sudoku")
TOKENS, TAUS, ENTROPIES = (1, 2, 4), (0.3, 0.5, 0.7, 0.8, 0.9, 0.95, 0.99), (1.5, 1.0, 0.7, 0.5, 0.3, 0.1, 0.03)
CELLS = 4  # that a Sudoku leaves


def trained(name: str, options):
    language = make(name)
    return models(options.workdir, name, language.length, options.seed, options, width=64, given=language.given,
                  **{"train.any_order": 1.0})


def items(name: str, number: int) -> np.ndarray:
    """[number, L]: rows of which the prompt is kept, the mask's place -1."""
    language, rng = make(name), np.random.default_rng(77)
    rows = language.sample(rng, number, language.length)
    if name == "sudoku":  # 12 cells that leave one solution
        for i, row in enumerate(rows):
            hidden = rng.choice(row.size, CELLS, replace=False)
            while _solutions(language, row, hidden) > 1:
                hidden = rng.choice(row.size, CELLS, replace=False)
            rows[i, hidden] = -1
    else:
        rows[:, language.given :] = -1
    return rows


def _solutions(language, row: np.ndarray, hidden: np.ndarray) -> int:
    seen = np.delete(np.arange(language.length), hidden)
    return int((language.rows[:, seen] == row[seen]).all(1).sum())


def rules(model) -> dict[str, dict[str, object]]:
    """Kind -> its setting -> the decoder."""
    mask_id = model.process.mask_id
    return {
        "marginals": {f"K={k}": Adjust(plain(model.joint), mask_id, k) for k in TOKENS},
        "ADJUST": {f"K={k}": Adjust(model.joint, mask_id, k) for k in TOKENS},
        "threshold": {f"tau={tau}": Threshold(mask_id, temperature=0.0, threshold=tau) for tau in TAUS},
        "ADJUST, entropy": {f"H={h}": Adjust(model.joint, mask_id, model.joint.most, max_entropy=h,
                                              temperature=0.0) for h in ENTROPIES},
    }


def answered(model, name: str, rule, asked: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """[N] whether each item is right; [N] tokens a forward."""
    tokens = np.where(asked < 0, model.process.mask_id, asked)
    found = model.infill(list(tokens), decoder=rule, seed=5, suppress=tuple(beyond(name)), batch_size=len(asked))
    rows = np.stack([one.row for one in found])
    forwards = np.array([one.forwards for one in found])
    return np.isfinite(make(name).log_prob(rows)), (asked < 0).sum(1) / forwards


def measured(model, name: str, options) -> dict[str, dict[str, list[float]]]:
    """Kind -> setting -> accuracy, its standard error, tokens a forward."""
    asked, found = items(name, options.items), {}
    for kind, settings in rules(model).items():
        one = {setting: answered(model, name, rule, asked) for setting, rule in settings.items()}
        found[kind] = {setting: _figures(*pair) for setting, pair in one.items()}
        if len(settings) > len(TOKENS):
            right, speed = (np.stack([pair[i] for pair in one.values()]) for i in (0, 1))
            best = np.where(right, speed, -np.inf).max(0)
            found[kind]["oracle"] = _figures(right.any(0), np.where(right.any(0), best, speed.min(0)))
    return found


def _figures(right: np.ndarray, speed: np.ndarray) -> list[float]:
    return [float(right.mean()), float(right.std(ddof=1) / math.sqrt(len(right))), float(speed.mean())]


def perfect(name: str, each: int) -> float:
    """Accuracy of marginals, K at once, of a network without a mistake; NaN where it depends on the order."""
    if name == "line_replace" and each == 4:  # all at once: the new person exactly once
        return (3 / 4) ** 3
    if name == "line_shuffle" and each == 4:  # own place 5 of 23, each other 6 of 23, and not all in their own
        laws = np.full((4, 4), 6 / 23) - np.eye(4) / 23
        return _permanent(laws) - (5 / 23) ** 4
    return 1.0 if name in ("line_copy", "line_sort", "sudoku") or each == 1 else math.nan


def _permanent(laws: np.ndarray) -> float:
    return sum(math.prod(laws[i, p[i]] for i in range(len(laws))) for p in itertools.permutations(range(len(laws))))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workdir", type=Path, required=True)
    parser.add_argument("--tasks", nargs="+", default=list(TASKS), choices=TASKS)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, default=4000, help="of the network")
    parser.add_argument("--trajectories", type=int, default=16384)
    parser.add_argument("--joint_steps", type=int, default=2500)
    parser.add_argument("--items", type=int, default=1000)
    parser.add_argument("--figure", type=Path)
    options = parser.parse_args()
    found = {}
    print("| task (C in nats) | decoder | setting | right | tokens a forward | without a mistake |\n"
          "|---|---|---|---|---|---|", flush=True)
    for name in options.tasks:
        found[name] = kept(options.workdir / f"{name}_{options.seed}.json",
                           lambda name=name: measured(trained(name, options), name, options))
        report(name, found[name])
    if options.figure:
        draw(found, options.figure)


def report(name: str, values: dict) -> None:
    loss = make(name).correlation() if name != "sudoku" else 0.0  # of what its 12 cells leave
    for kind, settings in values.items():
        for setting, (right, error, speed) in settings.items():
            form = perfect(name, int(setting[2:])) if kind == "marginals" else math.nan
            print(f"| {name} ({loss:.2f}) | {kind} | {setting} | {right:.3f} +- {error:.3f} | {speed:.2f} | "
                  f"{'' if math.isnan(form) else f'{form:.3f}'} |", flush=True)


def draw(found: dict, path: Path) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(3.2 * len(found), 3.4), dpi=130, layout="constrained")
    for axes, (name, values) in zip(np.atleast_1d(figure.subplots(1, len(found), sharey=True)), found.items(),
                                    strict=True):
        for kind, settings in values.items():
            points = sorted((speed, right) for setting, (right, _, speed) in settings.items() if setting != "oracle")
            line, = axes.plot(*zip(*points, strict=True), marker="o", label=kind)
            if "oracle" in settings:
                axes.plot(settings["oracle"][2], settings["oracle"][0], "*", markersize=11, color=line.get_color())
        axes.set_title(name)
        axes.set_xlabel("tokens a forward")
        axes.set_ylim(-0.02, 1.03)
        axes.grid(alpha=0.3)
    figure.axes[0].set_ylabel("right answers")
    figure.axes[-1].legend(frameon=False)
    figure.savefig(path)


if __name__ == "__main__":
    main()
