"""Temporal shift by proxy: ``python -m benchmarks.drift --workdir=DIR``.

On the drifting oracle language (`data.languages.drift`) a masked model and its autoregressive twin see rows of all
times tau in [0, 1/2], in no order (SMDM's protocol, arXiv 2410.18514: text of one period, measured on later ones). The
twin is taken at the step at which its loss inside the period equals that of the masked model, the nearest kept; both
are then measured on rows of later times, beside the law of tau = 1/4, the middle of the period, and the law of each
time itself. The masked loss is a bound.
"""

import argparse
from pathlib import Path

import numpy as np

import mdlm_jax
from benchmarks.adaptation import train
from mdlm_jax.data.languages.drift import DriftStream

LENGTH, TIMES = 64, (0.25, 0.5, 0.625, 0.75, 0.875, 1.0)


def runs(folder: Path, seed: int, options) -> tuple[Path, Path]:
    """The masked run and the twin's, with its steps kept."""
    common = {"data.source": "language:drift:last=0.5,mixed=1", "data.length": LENGTH, "train.seed": seed,
              "train.steps": options.steps, "model.layers": 2, "eval.final_rows": 256}
    masked = train(folder / f"masked_{seed}", "oracle", **common, **{"train.checkpoint_every": options.steps})
    causal = {"model.attention": "causal", "model.logit_shift": True, "train.objective": "autoregressive",
              "train.checkpoint_every": options.every, "train.keep_every": options.every,
              "train.lr_schedule": "constant"}
    return masked, train(folder / f"causal_{seed}", "oracle", **common, **causal)


def loss(model, rows: np.ndarray, draws: int) -> float:
    """Nats a token of whole rows: exact, or the bound."""
    how = {} if model.config.attention == "causal" else {"draws": draws}
    found = model.log_likelihood([np.zeros(0, np.int32)] * len(rows), list(rows), batch_size=256, **how)
    return float(-found.nats.sum() / found.tokens.sum())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workdir", type=Path, required=True)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--every", type=int, default=50, help="steps between the twin's checkpoints")
    parser.add_argument("--rows", type=int, default=256, help="of each time")
    parser.add_argument("--draws", type=int, default=16, help="masks a row")
    options = parser.parse_args()
    stream = DriftStream.random(last=0.5)
    rows = {tau: stream.at(tau).sample(np.random.default_rng(int(1000 * tau)), options.rows, LENGTH) for tau in TIMES}
    inside = np.concatenate([stream.at(tau).sample(np.random.default_rng(9), options.rows // 8, LENGTH)
                             for tau in np.linspace(0, 0.5, 8)])
    found = {"masked": [], "autoregressive": []}
    for seed in options.seeds:
        masked, causal = runs(options.workdir, seed, options)
        model = mdlm_jax.load(masked)
        target = loss(model, inside, options.draws)
        twins = {step: mdlm_jax.load(step) for step in sorted((causal / "checkpoints").glob("[0-9]*"))}
        apart = {step: abs(loss(twin, inside, 0) - target) for step, twin in twins.items()}
        chosen = min(apart, key=apart.get)
        print(f"seed {seed}: masked {target:.4f} nats inside the period; the twin at step {int(chosen.name)} is "
              f"{apart[chosen]:.4f} from it", flush=True)
        found["masked"].append([loss(model, rows[tau], options.draws) for tau in TIMES])
        found["autoregressive"].append([loss(twins[chosen], rows[tau], 0) for tau in TIMES])
    print("\n| nats a token at tau | " + " | ".join(f"{tau:g}" for tau in TIMES) + " |\n|---|" + "---|" * len(TIMES))
    for name, values in found.items():
        values = np.array(values)
        error = values.std(0, ddof=1) / np.sqrt(len(values)) if len(values) > 1 else np.full(len(TIMES), np.nan)
        print(f"| {name} | " + " | ".join(f"{m:.4f} +- {e:.4f}" for m, e in zip(values.mean(0), error, strict=True))
              + " |")
    middle = stream.at(0.25)
    print("| the law of tau = 0.25 | " + " | ".join(
        f"{-middle.log_prob(rows[tau]).mean() / LENGTH:.4f}" for tau in TIMES) + " |")
    print("| the law of the time itself | " + " | ".join(
        f"{-stream.at(tau).log_prob(rows[tau]).mean() / LENGTH:.4f}" for tau in TIMES) + " |")


if __name__ == "__main__":
    main()
