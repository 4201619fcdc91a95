"""What a masked model gains from a little training on mixed noise: ``python -m benchmarks.adaptation --workdir=DIR``.

On language:copy a masked model is trained (configs/oracle.py, longer), and for a few percent of its steps trained on:
adapted with LLaDA-XDLM's loss (configs/xdlm_adapt.py), or, as a control, with the masked loss and the same optimiser.
Each is then sampled at temperature 1 in few to many steps, by its own reverse process and by draft and edit with a
mixing of 0.1, and judged by the language: the share of copied positions that hold the symbol their partner asks for (1
minus the language's noise in its own rows), the exact cross-entropy, and the entropy of a row's tokens beside it.

Runs are resumed and figures read back from DIR; means over seeds with their standard errors.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path

import numpy as np

import mdlm_jax
from mdlm_jax.data.languages.registry import make
from mdlm_jax.evaluation.judges import OracleJudge, quality

SOURCE, LENGTH = "language:copy", 32
STEPS = (2, 4, 8, 16, 32)
MODELS = ("masked", "masked, trained on", "adapted")
DECODERS = {"reverse process": {"decoder": "ancestral"},
            "draft and edit": {"decoder": "draft_edit", "mixing": 0.1, "temperature": 1.0}}


def train(workdir: Path, config: str, **fields) -> Path:
    """A run by launch.train, or what is there of it continued; SystemExit where that was asked for otherwise."""
    asked, file = {"config": config} | {name: str(value) for name, value in fields.items()}, workdir / "asked.json"
    if file.exists() and json.loads(file.read_text()) != asked:
        raise SystemExit(f"{file}: this run was made with other settings; give another --workdir")
    workdir.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(asked, indent=1) + "\n")
    if not (workdir / "summary.json").exists():
        flags = [f"--config.{name}={value}" for name, value in fields.items()]
        subprocess.run([sys.executable, "-m", "launch.train", f"--config={config}", f"--workdir={workdir}", *flags],
                       check=True)
    return workdir


def runs(folder: Path, seed: int, options) -> dict[str, Path]:
    """The three models of a seed."""
    seeds = {"train.seed": seed, "data.seed": seed}
    common = {"data.source": SOURCE, "data.length": LENGTH, "eval.final_rows": 512} | seeds
    masked = train(folder / f"masked_{seed}", "oracle", **common, **{
        "model.layers": 2, "train.steps": options.steps, "train.checkpoint_every": options.steps, "eval.every": 500})
    more = common | {"train.steps": options.more, "train.checkpoint_every": options.more, "train.init_from": masked}
    control = {"process.mixing": 0.0, "process.eps": 1e-3, "train.time_sampling": "auto"}
    return dict(zip(MODELS, (masked, train(folder / f"control_{seed}", "xdlm_adapt", **more, **control),
                             train(folder / f"adapted_{seed}", "xdlm_adapt", **more)), strict=True))


def agreement(language, rows: np.ndarray) -> np.ndarray:
    """Of each row the share of copied positions that hold the symbol their partner asks for."""
    half = (rows.shape[1] + 1) // 2
    wanted = language.permutation[rows[:, : rows.shape[1] // 2]]
    return (rows[:, half:] == wanted).mean(-1)


def measure(workdir: Path, language, options) -> dict:
    """{decoder: {steps: figures}} of one model; kept in its workdir."""
    path, settings = workdir / "adaptation.json", {"rows": options.rows}
    found = json.loads(path.read_text()) if path.exists() else {}
    if found.get("settings") == settings:
        return found["figures"]
    model, figures = mdlm_jax.load(workdir), {}
    suppress = [i for i in range(language.vocab_size, model.process.vocab_size) if i != model.process.mask_id]
    for name, how in DECODERS.items():
        figures[name] = {}
        for steps in STEPS:
            rows = model.generate([np.zeros(0, np.int32)] * options.rows, new_tokens=LENGTH, max_length=LENGTH,
                                  steps=steps, stop_id=None, suppress=suppress, batch_size=options.rows, **how)
            tokens = np.stack([row.row for row in rows])
            told = quality(tokens, model.process.vocab_size, [OracleJudge(language)])
            figures[name][str(steps)] = {"agreement": float(agreement(language, tokens).mean()),
                                         "cross_entropy": told.cross_entropy["oracle"][0], "entropy": told.entropy[0]}
    path.write_text(json.dumps({"settings": settings, "figures": figures}, indent=1) + "\n")
    return figures


def table(found: dict[str, list[dict]], figure: str) -> None:
    """One line a model and decoder; ``found``: by model, the figures of every seed."""
    heads = [figure.replace("_", "-"), "decoder", *map(str, STEPS)]
    print(f"\n| {' | '.join(heads)} |\n{'|---' * len(heads)}|")
    for model, seeds in found.items():
        for decoder in DECODERS:
            cells = []
            for steps in STEPS:
                values = np.array([figures[decoder][str(steps)][figure] for figures in seeds])
                error = f" +- {values.std(ddof=1) / np.sqrt(len(values)):.3f}" if len(values) > 1 else ""
                cells.append(f"{values.mean():.3f}{error}")
            print(f"| {model} | {decoder} | " + " | ".join(cells) + " |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workdir", type=Path, required=True)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--steps", type=int, default=3000, help="of the masked model, 32 rows each")
    parser.add_argument("--more", type=int, default=120, help="steps of the adaptation, 32 rows each")
    parser.add_argument("--rows", type=int, default=128, help="samples")
    options = parser.parse_args()
    language = make(SOURCE.partition(":")[2])
    found: dict[str, list[dict]] = {name: [] for name in MODELS}
    bounds: dict[str, list[float]] = {name: [] for name in MODELS}
    for seed in options.seeds:
        for name, workdir in runs(options.workdir, seed, options).items():
            found[name].append(measure(workdir, language, options))
            bounds[name].append(json.loads((workdir / "summary.json").read_text())["held_out"]["nats_per_token"])
    natural = language.sample(np.random.default_rng(7), 512, LENGTH)
    told = quality(natural, language.vocab_size, [OracleJudge(language)])
    print(f"\nthe language itself: agreement {agreement(language, natural).mean():.3f}, cross-entropy "
          f"{told.cross_entropy['oracle'][0]:.3f}, entropy {told.entropy[0]:.3f}")
    for name, values in bounds.items():
        print(f"held-out bound, {name}: {np.mean(values):.4f} nats a token")
    for figure in ("agreement", "cross_entropy", "entropy"):
        table(found, figure)


if __name__ == "__main__":
    main()
