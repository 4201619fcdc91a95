"""Fewer steps by distillation, judged exactly: ``python -m benchmarks.sdtt --workdir=DIR [--seeds 0 1 2]``.

On an oracle language a masked network is distilled by SDTT (arXiv 2410.21035) and one of uniform noise by Duo's
consistency distillation (arXiv 2506.10892), by `launch.distil`. The teacher and the network after every round then
write rows in 1 to 64 ancestral steps. Printed, means and standard errors over seeds, nats a token: the cross-entropy of
the rows under the language's exact law; the mean entropy of a row's tokens; and the entropy of a token given the one
before, of all rows together, which falls when the law of rows sharpens even where single rows stay varied. Beside them
the language's own rows. Then: how many steps reach the quality that the teacher has in so many steps (between measured
numbers linear in their logarithm), and the student's entropies over the teacher's there.

The last table is of ``shuffle``, whose rows can be enumerated: the total variation from the language of what is written
in 1, 2 and 4 steps, before and after each round, and the share of rows that the language can write.
"""

import argparse
import itertools
import math
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np

import mdlm_jax
from benchmarks.adaptation import train
from benchmarks.joint import beyond, kept
from mdlm_jax.data.languages.registry import make
from mdlm_jax.evaluation.entropy import unigram_entropy
from mdlm_jax.evaluation.scoring import sampled_tv

STEPS = (1, 2, 4, 8, 16, 32, 64)
KINDS = {"sdtt": ("sdtt", 0.0), "duo": ("sdtt:duo", 1.0)}  # recipe, mixing
SHORT, SHORT_STEPS = 6, (1, 2, 4)
FIGURES = ("cross-entropy", "entropy of a row", "entropy given the last", "impossible rows")


def distilled(folder: Path, kind: str, seed: int, options, language: str, length: int, width: int, first: int,
              rounds: int, steps: int) -> list[Path]:
    """The teacher, and the network after each round."""
    recipe, mixing = KINDS[kind]
    shared = {"data.source": f"language:{language}", "data.length": length, "data.seed": seed, "train.seed": seed,
              "eval.final_rows": 256, "eval.rows": 32, "sample.num": 1, "sample.steps": 8, "train.batch_size": 32}
    teacher = train(folder / "teacher", "oracle", **shared, **{
        "process.mixing": mixing, "model.layers": 2, "model.d_model": width, "model.heads": 2, "train.steps": steps,
        "train.checkpoint_every": steps, "eval.every": steps})
    fields = shared | {"train.steps": options.round_steps, "train.checkpoint_every": options.round_steps,
                       "eval.every": options.round_steps, "train.learning_rate": options.learning_rate,
                       "train.warmup_steps": min(50, options.round_steps)}
    subprocess.run([sys.executable, "-m", "launch.distil", f"--config={recipe}", f"--from={teacher}",
                    f"--workdir={folder}", f"--rounds={rounds}", f"--steps={first}",
                    *(f"--config.{name}={value}" for name, value in fields.items())], check=True)
    return [teacher, *(folder / f"round_{number + 1}" for number in range(rounds))]


def written(model, language: str, length: int, steps: int, rows: int, seed: int) -> np.ndarray:
    answers = model.generate([np.zeros(0, np.int32)] * rows, new_tokens=length, max_length=length, steps=steps,
                             decoder="ancestral", stop_id=None, seed=seed, batch_size=rows, suppress=beyond(language))
    return np.stack([one.row for one in answers])


def figures(language: str, rows: np.ndarray) -> list[float]:
    """`FIGURES` of some rows; those of the language's own ids alone are judged."""
    law = make(language)
    inside = (rows < law.vocab_size).all(1)
    log_p = np.where(inside, law.log_prob(np.where(inside[:, None], rows, 0)), -np.inf)
    possible = np.isfinite(log_p)
    last, size = rows[:, :-1].reshape(-1), int(rows.max()) + 1
    given = _entropy(np.bincount(last * size + rows[:, 1:].reshape(-1))) - _entropy(np.bincount(last))
    return [float(-log_p[possible].mean() / rows.shape[1]), float(unigram_entropy(rows, size).mean()), given,
            float(1 - possible.mean())]


def _entropy(counts: np.ndarray) -> float:
    p = counts[counts > 0] / counts.sum()
    return float(-(p * np.log(p)).sum())


def curves(options, kind: str, seed: int) -> dict[str, dict[str, list[float]]]:
    """Round -> steps -> `figures`; round 0 is the teacher."""
    folder = options.workdir / f"{kind}_{seed}"
    paths = distilled(folder, kind, seed, options, options.language, options.length, options.width, options.first,
                      options.rounds, options.steps)
    found = {}
    for number, path in enumerate(paths):
        model = mdlm_jax.load(path)
        found[str(number)] = {str(steps): figures(options.language, written(
            model, options.language, options.length, steps, options.rows, seed)) for steps in STEPS}
        print(f"{kind}, seed {seed}, round {number}: {found[str(number)]}", flush=True)
    return found


def enumerated(options, kind: str, seed: int) -> dict[str, dict[str, list[float]]]:
    """Round -> steps -> total variation, what chance makes of it, and the share of rows that the language can write."""
    paths = distilled(options.workdir / f"{kind}_{seed}_shuffle", kind, seed, options, "shuffle", SHORT, 32, 8, 3,
                      options.steps)
    support = np.array(list(itertools.permutations(range(SHORT))))
    law, found = np.full(len(support), 1 / math.factorial(SHORT)), {}
    for number, path in enumerate(paths):
        model, found[str(number)] = mdlm_jax.load(path), {}
        for steps in SHORT_STEPS:
            rows = written(model, "shuffle", SHORT, steps, 8192, seed)
            right = (np.sort(rows, 1) == np.arange(SHORT)).all(1).mean()
            found[str(number)][str(steps)] = [*sampled_tv(rows, support, law), float(right)]
    return found


def reached(curve: dict[str, list[float]], wanted: float) -> tuple[float, list[float]]:
    """The fewest steps with a cross-entropy of at most ``wanted``, and the figures there; NaN where there are none."""
    steps, values = [int(name) for name in curve], [np.array(one) for one in curve.values()]
    for index, value in enumerate(values):
        if value[0] <= wanted:
            if not index:
                return float(steps[0]), value.tolist()
            share = (values[index - 1][0] - wanted) / (values[index - 1][0] - value[0])
            logs = np.log2(steps[index - 1]) * (1 - share) + np.log2(steps[index]) * share
            return float(2**logs), (values[index - 1] * (1 - share) + value * share).tolist()
    return math.nan, [math.nan] * len(FIGURES)


def mean(values: list[float], digits: int = 3) -> str:
    """Over seeds, with the standard error where there are several."""
    values = np.array(values, np.float64)
    if np.isnan(values).any():
        return "never" if np.isnan(values).all() else f"{np.isnan(values).sum()} of {len(values)} never"
    error = f" +- {values.std(ddof=1) / len(values) ** 0.5:.{digits}f}" if len(values) > 1 else ""
    return f"{values.mean():.{digits}f}{error}"


def tables(kind: str, found: list[dict], own: list[list[float]]) -> Iterator[str]:
    for index, name in enumerate(FIGURES):
        yield f"\n| {kind}: {name} | {' | '.join(f'{steps} steps' for steps in STEPS)} |\n{'|---' * (1 + len(STEPS))}|"
        for number in found[0]:
            cells = [mean([one[number][str(steps)][index] for one in found]) for steps in STEPS]
            yield f"| {_name(number)} | {' | '.join(cells)} |"
        yield f"| the language | {mean([one[index] for one in own])} |{' |' * (len(STEPS) - 1)}"
    yield (f"\n| {kind}: as good as the teacher in | {' | '.join(f'{steps} steps' for steps in STEPS)} |\n"
           f"{'|---' * (1 + len(STEPS))}|")
    for number in list(found[0])[1:]:
        for row, what in ((0, "steps"), (1, "entropy of a row, share"), (2, "entropy given the last, share")):
            cells = []
            for steps in STEPS:
                pairs = [(one["0"][str(steps)], reached(one[number], one["0"][str(steps)][0])) for one in found]
                cells.append(mean([at if not row else there[row] / before[row] for before, (at, there) in pairs],
                                  3 if row else 1))
            yield f"| {_name(number)}: {what} | {' | '.join(cells)} |"


def short_table(kind: str, found: list[dict]) -> Iterator[str]:
    yield f"\n| {kind}, shuffle: TV | " + " | ".join(f"{s} steps, rows possible" for s in SHORT_STEPS) + " |"
    yield "|---" * (1 + len(SHORT_STEPS)) + "|"
    for number in found[0]:
        cells = [f"{mean([one[number][str(s)][0] for one in found])}, {mean([one[number][str(s)][2] for one in found])}"
                 for s in SHORT_STEPS]
        yield f"| {_name(number)} | {' | '.join(cells)} |"
    yield f"8192 rows; of the language itself the estimate would be {found[0]['0']['1'][1]:.3f}"


def _name(number: str) -> str:
    return "the teacher" if number == "0" else f"round {number}"


def draw(path: Path, found: dict[str, list[dict]], own: list[list[float]]) -> None:
    """Steps against cross-entropy, and against the entropy given the last token, a panel a kind and figure."""
    import matplotlib

    matplotlib.use("agg")
    import matplotlib.pyplot as plt

    figure, panels = plt.subplots(2, len(found), figsize=(4.6 * len(found), 6.4), squeeze=False, sharex=True)
    for column, (kind, seeds) in enumerate(found.items()):
        colours = plt.get_cmap("viridis")(np.linspace(0, 0.9, len(seeds[0])))
        for row, index in enumerate((0, 2)):
            axes = panels[row][column]
            for colour, number in zip(colours, seeds[0], strict=True):
                values = np.array([[one[number][str(s)][index] for s in STEPS] for one in seeds])
                axes.plot(STEPS, values.mean(0), color=colour, marker="o", ms=3, label=_name(number))
            axes.axhline(np.mean([one[index] for one in own]), color="black", lw=0.8, ls=":", label="the language")
            axes.set(xscale="log", ylabel=f"{FIGURES[index]}, nats")
            axes.set_xticks(STEPS, STEPS)
            axes.minorticks_off()
        panels[0][column].set_title({"sdtt": "SDTT, masks", "duo": "Duo, uniform noise"}[kind])
        panels[1][column].set_xlabel("steps")
    panels[0][0].legend(fontsize=7)
    figure.tight_layout()
    figure.savefig(path, dpi=150)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workdir", type=Path, required=True)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--kinds", nargs="+", default=list(KINDS), choices=list(KINDS))
    parser.add_argument("--language", default="hmm:states=8,vocab=8,jump=0.05")
    parser.add_argument("--length", type=int, default=64)
    parser.add_argument("--width", type=int, default=64)
    parser.add_argument("--steps", type=int, default=2000, help="of the teacher's training")
    parser.add_argument("--first", type=int, default=64, help="steps of the first teacher")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--round_steps", type=int, default=300, help="of a round's training")
    parser.add_argument("--learning_rate", type=float, default=3e-4, help="of a round's training")
    parser.add_argument("--rows", type=int, default=384)
    parser.add_argument("--figure", type=Path)
    options = parser.parse_args()
    law, found = make(options.language), {}
    own = [figures(options.language, law.sample(np.random.default_rng(1000 + seed), options.rows, options.length))
           for seed in options.seeds]
    for kind in options.kinds:
        found[kind] = [kept(options.workdir / f"{kind}_{seed}.json", lambda kind=kind, seed=seed: curves(
            options, kind, seed)) for seed in options.seeds]
        print("\n".join(tables(kind, found[kind], own)), flush=True)
        short = [kept(options.workdir / f"{kind}_{seed}_shuffle.json", lambda kind=kind, seed=seed: enumerated(
            options, kind, seed)) for seed in options.seeds]
        print("\n".join(short_table(kind, short)), flush=True)
    if options.figure:
        draw(options.figure, found, own)


if __name__ == "__main__":
    main()
