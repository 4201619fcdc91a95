"""ADJUST on text: ``python -m benchmarks.joint_text --workdir=DIR [--figure=PNG]``.

A masked network learns bytes of Python source in rows of 64, writes trajectories, and a joint layer learns from them
(seven passes, up to eight tokens a forward). 2,000 rows are written one token a forward, twice, and K a forward from
marginals and by the layer. Measured: cross-entropy under an autoregressive judge, pooled over tokens, with the entropy
of a row's bytes; MAUVE to the first set of rows written one by one, on the judge's final hidden states (their mean),
in 200 clusters, the mean over three clusterings; beside it the second such set: the ceiling. Tokens a second are
medians of rounds in which everybody writes once, in a random order, after a round that compiles.
"""

import argparse
import random
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

import mdlm_jax
from benchmarks.adaptation import train
from benchmarks.joint import kept, plain
from mdlm_jax.evaluation.features import hidden_features
from mdlm_jax.evaluation.judges import causal_judge, quality
from mdlm_jax.evaluation.mauve import mauve
from mdlm_jax.models.denoise import CausalDenoiser
from mdlm_jax.sampling.adjust import Adjust
from mdlm_jax.sampling.low_confidence import LowConfidence

LENGTH, TOKENS = 64, (2, 4, 8)
CAUSAL = {"model.attention": "causal", "model.logit_shift": True, "train.objective": "autoregressive",
          "sample.steps": 64}


def models(folder: Path, seed: int, options) -> tuple[mdlm_jax.LanguageModel, mdlm_jax.LanguageModel]:
    """The network with its joint layer, and the judge."""
    common = {"data.length": LENGTH, "train.batch_size": 32, "train.steps": options.steps, "process.mixing": 0.0,
              "train.checkpoint_every": options.steps, "eval.every": options.steps}
    judge = train(folder / "judge", "xdlm_text", **common, **CAUSAL)
    base = train(folder / f"base_{seed}", "xdlm_text", **common, **{"train.seed": seed, "data.seed": seed})
    written = folder / f"trajectories_{seed}"
    subprocess.run([sys.executable, "-m", "launch.trajectories", f"--checkpoint={base}", f"--output={written}",
                    f"--num={options.trajectories}", f"--seed={seed}"], check=True)
    layer = train(folder / f"joint_{seed}_{options.any_order}", "joint", **{
        "train.init_from": base, "data.source": f"trajectories:{written}", "data.length": LENGTH, "train.seed": seed,
        "train.any_order": options.any_order, "train.objective": "joint:7", "train.steps": options.joint_steps,
        "data.seed": seed,
        "train.checkpoint_every": options.joint_steps, "eval.every": options.joint_steps})
    return mdlm_jax.load(layer), mdlm_jax.load(judge)


def decoders(model) -> dict[str, Adjust]:
    mask_id, found = model.process.mask_id, {}
    found["one by one"] = found["one by one, again"] = Adjust(mask_id=mask_id, tokens=1)
    for each in TOKENS:
        found[f"marginal, {each}"], found[f"ADJUST, {each}"] = (Adjust(joint, mask_id, each)
                                                                for joint in (plain(model.joint), model.joint))
    return found


def written(model, decoder, rows: int, seed: int, **more) -> tuple[np.ndarray, float]:
    """[rows, LENGTH] bytes, and the seconds they took."""
    begin = time.perf_counter()
    found = model.generate([np.zeros(0, np.int32)] * rows, new_tokens=LENGTH, max_length=LENGTH, decoder=decoder,
                           stop_id=None, seed=seed, batch_size=min(rows, 256), **more)
    return np.stack([one.row for one in found]), time.perf_counter() - begin


def timed(model, rules: dict, options) -> dict[str, float]:
    """Median tokens a second. Marginals take one draw a forward, of the surest tokens: the layer that says nothing,
    which elsewhere gives those of least entropy exactly, would take a pass for each token."""
    steps = {f"marginal, {each}": LENGTH // each for each in TOKENS}
    plainly = LowConfidence(model.process.mask_id, temperature=1.0, remasking="top")
    seconds: dict[str, list[float]] = {name: [] for name in rules if not name.endswith("again")}
    order = list(seconds)
    for number in range(options.rounds + 1):
        random.Random(number).shuffle(order)
        for name in order:
            rule, more = (plainly, {"steps": steps[name]}) if name in steps else (rules[name], {})
            took = written(model, rule, 64, number, **more)[1]
            if number:
                seconds[name].append(took)
    return {name: 64 * LENGTH / float(np.median(taken)) for name, taken in seconds.items()}


def measured(folder: Path, seed: int, options) -> dict[str, dict[str, float]]:
    """By decoder: nats, entropy, mauve, speed."""
    model, judging = models(folder, seed, options)
    judge, rules = causal_judge("judge", judging, model.tokenizer), decoders(model)
    network = CausalDenoiser(judging.config, judging.process.mask_id, judge.network.columns)
    speed, found, reference = timed(model, rules, options), {}, None
    for number, (name, rule) in enumerate(rules.items()):
        rows = written(model, rule, options.rows, 1000 * number + seed)[0]
        told = quality(rows, model.process.vocab_size, [judge])
        vectors = hidden_features(network, judging.params, rows)
        if reference is None:
            reference = vectors
        else:
            clusters = min(200, options.rows // 10)
            alike = [mauve(vectors, reference, clusters=clusters, seed=s).value for s in range(3)]
        found[name] = {"nats": told.cross_entropy["judge"][0], "entropy": told.entropy[0],
                       "mauve": float(np.mean(alike)) if number else np.nan, "speed": speed.get(name, np.nan)}
    found["one by one"]["mauve"] = found["one by one, again"]["mauve"]  # the ceiling, not 1, which a set has to itself
    return found


def closed(values: dict[str, dict[str, float]], what: str, each: int) -> float:
    """Share of the gap between marginals and one by one that the layer closes."""
    best = values["one by one, again"][what]
    apart, layer = (values[f"{kind}, {each}"][what] for kind in ("marginal", "ADJUST"))
    return (layer - apart) / (best - apart)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workdir", type=Path, required=True)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--steps", type=int, default=4000, help="of network and judge")
    parser.add_argument("--trajectories", type=int, default=8192)
    parser.add_argument("--joint_steps", type=int, default=4000)
    parser.add_argument("--any_order", type=float, default=1.0, help="share of trajectories shown in a random order")
    parser.add_argument("--rows", type=int, default=2000, help="of a set")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--figure", type=Path)
    options = parser.parse_args()
    found = [kept(options.workdir / f"measured_{seed}_{options.any_order}.json",
                  lambda seed=seed: measured(options.workdir, seed, options)) for seed in options.seeds]
    print("| | nats a byte | entropy of a row | MAUVE | tokens a second |\n|---|---|---|---|---|")
    for name in found[0]:
        mean = {what: np.mean([one[name][what] for one in found]) for what in found[0][name]}
        print("| {} | {nats:.3f} | {entropy:.3f} | {mauve:.3f} | {speed:,.0f} |".format(name, **mean))
    for what in ("nats", "mauve"):
        shares = ", ".join(f"{np.mean([closed(one, what, each) for one in found]):.0%}" for each in TOKENS)
        print(f"\nshare of the gap in {what} that the layer closes at {', '.join(map(str, TOKENS))} tokens: {shares}")
    if options.figure:
        draw(found[0], options.figure)


def draw(values: dict[str, dict[str, float]], path: Path) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3.8), dpi=140, layout="constrained")
    titles = {"nats": "nats a byte, judge", "mauve": "MAUVE"}
    for axes, (what, title) in zip(figure.subplots(1, 2), titles.items(), strict=True):
        for kind in ("marginal", "ADJUST"):
            names = ["one by one", *(f"{kind}, {each}" for each in TOKENS)]
            axes.plot([values[n]["speed"] for n in names], [values[n][what] for n in names], marker="o", label=kind)
        axes.axhline(values["one by one, again"][what], color="#666666", linestyle=":", label="one by one, again")
        axes.set_xlabel("tokens a second")
        axes.set_title(title, fontsize=10)
        axes.legend(frameon=False)
    figure.savefig(path)


if __name__ == "__main__":
    main()
