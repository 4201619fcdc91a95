"""Estimators of log p(answer | prompt) on an oracle language: ``python -m benchmarks.likelihood --checkpoint=RUN``.

RUN is a masked model of an oracle language (configs/oracle.py or xdlm_oracle with mixing 0). Rows of it are cut in the
middle: the exact value is log p(row) - log p(its first half). Every estimator measures the second halves under several
seeds:

    bias       mean of estimate - exact, nats a token: what the bound and the network lose; of the bound's own mean
               (very many masks) the network's share alone
    deviation  of one estimate from that mean over seeds, nats a token, root mean square over rows, the mean's own
               error taken off; and what the estimator itself gives as its standard error
    cost       deviation^2 x forwards, nats^2 a token: what a forward is worth

and then for 0.01 nats a token: as many forwards as a pilot says that takes (adaptive), against 1024 masks for all, with
the deviations reached.
"""

import argparse
from pathlib import Path

import numpy as np

import mdlm_jax
from mdlm_jax.data.languages.registry import make

SETTINGS = [("bound", 16), ("bound", 64), ("bound", 256), ("bound", 1024), ("any_order", 2), ("any_order", 8)]
GOAL = 0.01  # nats a token


def measured(model, prompts, answers, seeds, **how) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """[seeds, N] estimates and their own errors, nats a token; [seeds, N] forwards."""
    found = [model.log_likelihood(prompts, answers, seed=seed, batch_size=256, **how) for seed in seeds]
    return tuple(np.stack(part) for part in zip(*((one.nats / one.tokens, one.stderr / one.tokens, one.forwards)
                                                  for one in found), strict=True))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", type=Path, required=True)
    parser.add_argument("--language", default="hmm", help="that of the run")
    parser.add_argument("--rows", type=int, default=24)
    parser.add_argument("--length", type=int, default=64, help="tokens of a row, half of them the answer")
    parser.add_argument("--seeds", type=int, default=6)
    parser.add_argument("--reference", type=int, default=8192, help="masks an answer for the bound's own mean")
    options = parser.parse_args()
    language, model, half = make(options.language), mdlm_jax.load(options.checkpoint), options.length // 2
    rows = language.sample(np.random.default_rng(77), options.rows, options.length)
    prompts, answers = list(rows[:, :half]), list(rows[:, half:])
    exact = (language.log_prob(rows) - language.log_prob(rows[:, :half])) / half
    mean, own = (part[0] for part in measured(model, prompts, answers, [10**6], draws=options.reference)[:2])

    def deviation(nats: np.ndarray) -> float:
        """Root mean square of [seeds, N] from the bound's own mean."""
        return float(np.sqrt(max(((nats - mean) ** 2).mean() - (own**2).mean(), 0.0)))

    seeds = range(options.seeds)
    print(f"{options.rows} answers of {half} tokens; exact {exact.mean():.4f} nats a token, the bound's own mean "
          f"{mean.mean():.4f} (errors {np.sqrt((own**2).mean()):.4f}): {(mean - exact).mean():.4f} +- "
          f"{(mean - exact).std() / np.sqrt(len(exact)):.4f}\n")
    chain = measured(model, prompts, answers, [0], method="chain_rule")
    print("| estimator | forwards | bias | deviation | own error | cost |\n|---|---|---|---|---|---|")
    print(f"| chain rule | {chain[2].mean():.0f} | {(chain[0] - exact).mean():.4f} | 0 | 0 | |")
    for method, draws in SETTINGS:
        nats, stderr, forwards = measured(model, prompts, answers, seeds, method=method, draws=draws)
        print(f"| {method}, {draws} | {forwards.mean():.0f} | {(nats - exact).mean():.4f} | {deviation(nats):.4f} | "
              f"{np.sqrt((stderr**2).mean()):.4f} | {deviation(nats) ** 2 * forwards.mean():.4f} |", flush=True)
    print(f"\n| to {GOAL} nats a token | forwards, mean (5 % to 95 % of the answers) | deviation | own error |")
    print("|---|---|---|---|")
    for method, how in (("bound, adaptive", {"error": GOAL * half, "draws": 4096}), ("bound, 1024", {"draws": 1024}),
                        ("any_order, adaptive", {"method": "any_order", "error": GOAL * half, "draws": 128})):
        nats, stderr, forwards = measured(model, prompts, answers, seeds, **how)
        low, high = np.percentile(forwards, [5, 95])
        print(f"| {method} | {forwards.mean():.0f} ({low:.0f} to {high:.0f}) | "
              f"{deviation(nats):.4f} | {np.sqrt((stderr**2).mean()):.4f} |", flush=True)


if __name__ == "__main__":
    main()
