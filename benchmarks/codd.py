"""What a small circuit wins back of the joint law: ``python -m benchmarks.codd --workdir=DIR [--seeds 0 1 2]``.

On the five languages of `benchmarks.joint`, with its networks, circuits of several sizes (`models.circuit`, arXiv
2603.00045) are trained beside the network, which stays. Rows of the language are then scored exactly, written in 1, 2
and 4 forwards, K tokens in each at the masks of the least entropy: from the network's marginals, and from their product
with the circuit. KL and total variation are to the language, in nats a row; beside the marginals the closed form of a
perfect network. The second table is what training a circuit took: seconds a step as the runs measured them, beside the
network's own, the FLOPs of a step over those of the network's training, and the held-out losses, nats a masked token:
of the network by itself, whose marginals the circuit begins with, and with the circuit.

With the weight of an end two states hold parity, and few hold replace's one token; ring is itself a hidden Markov
model of four states. Shuffle takes a state for every set of symbols, 64 here, and pairs one for every first half, 8^6.
"""

import argparse
import json
import math
from pathlib import Path

import numpy as np

import mdlm_jax
from benchmarks.adaptation import train
from benchmarks.joint import LENGTHS, closed_form, distances, kept, means, network, rows_of
from mdlm_jax.models import flops
from mdlm_jax.sampling.codd import CoDD

FORWARDS = (1, 2, 4)


def circuit(folder: Path, name: str, seed: int, states: int, options) -> Path:
    """The run of a circuit beside the network."""
    base = network(folder, name, LENGTHS[name], seed, options)
    return train(folder / f"{name}_{seed}_codd{states}", f"codd:{states}", **{
        "train.init_from": base, "data.source": f"language:{name}", "data.length": LENGTHS[name], "data.seed": seed,
        "train.seed": seed, "train.steps": options.circuit_steps, "train.checkpoint_every": options.circuit_steps,
        "eval.every": options.circuit_steps})


def rules(model, length: int, label: str, max_masked: float) -> dict[str, CoDD]:
    """By title, at each number of forwards."""
    found = {}
    for forwards in FORWARDS:
        each = -(-length // forwards)
        found[f"{label}, {each}"] = CoDD(model.circuit, model.process.mask_id, each, max_masked)
    return found


def measured(options, name: str, seed: int, states: int) -> dict[str, list[float]]:
    """Decoder -> KL and total variation to the language; those of marginals with the first size alone."""
    model, rows = mdlm_jax.load(circuit(options.workdir, name, seed, states, options)), rows_of(name, options.rows)
    decoders = rules(model, LENGTHS[name], f"product, {states} states", 1.0)
    if states == options.states[0]:
        alone = CoDD(model.circuit, model.process.mask_id).one_by_one()
        decoders = {"one by one": alone} | rules(model, LENGTHS[name], "marginals", 0.0) | decoders
    return {title: distances(model, name, rule, rows) for title, rule in decoders.items()}


def results(options, name: str, seed: int) -> dict[str, list[float]]:
    """`measured` of all sizes."""
    found = {}
    for states in options.states:
        found |= kept(options.workdir / f"{name}_{seed}_codd{states}.json",
                      lambda states=states: measured(options, name, seed, states))
    return found


def cost(options, name: str, seed: int, states: int) -> list[float]:
    """Seconds a step of the circuit and of the network, FLOPs a step of the one over the other, and the held-out losses
    of the network and of both."""
    runs = [network(options.workdir, name, LENGTHS[name], seed, options),
            circuit(options.workdir, name, seed, states, options)]
    seconds = [_seconds(run) for run in runs]
    config, length = mdlm_jax.load(runs[1]).config, LENGTHS[name]
    share = (flops.circuit_train_flops(config, 1, length, states)
             / flops.train_flops(config, length, length, length))
    held = [json.loads((run / "summary.json").read_text())["held_out"]["nats_per_token"] for run in runs]
    return [seconds[1], seconds[0], share, *held]


def _seconds(run: Path) -> float:
    """The median over the records of a run."""
    records = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    found = [one["step_seconds"] for one in records if "step_seconds" in one]
    return float(np.median(found)) if found else math.nan


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workdir", type=Path, required=True)
    parser.add_argument("--languages", nargs="+", default=list(LENGTHS))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--states", type=int, nargs="+", default=[16, 64])
    parser.add_argument("--steps", type=int, default=3000, help="of the network")
    parser.add_argument("--circuit_steps", type=int, default=2500)
    parser.add_argument("--rows", type=int, default=8192)
    options = parser.parse_args()
    print("| language | decoder, tokens a forward | KL | TV | closed form |\n|---|---|---|---|---|", flush=True)
    for name in options.languages:
        found = [results(options, name, seed) for seed in options.seeds]
        for title in found[0]:
            (kl, kl_error), (tv, tv_error) = means([one[title] for one in found])
            form = closed_form(name, int(title.rpartition(", ")[2])) if title.startswith("marginals") else math.nan
            print(f"| {name} | {title} | {kl:.3f} +- {kl_error:.3f} | {tv:.3f} +- {tv_error:.3f} | "
                  f"{'' if math.isnan(form) else f'{form:.3f}'} |", flush=True)
    print("\n| language | states | seconds a step | of the network | FLOPs, share | loss, marginals | product |")
    print("|---|---|---|---|---|---|---|")
    for name in options.languages:
        for states in options.states:
            figures = means([cost(options, name, seed, states) for seed in options.seeds])
            print(f"| {name} | {states} | " + " | ".join(f"{mean:.4f}" for mean, _ in figures) + " |", flush=True)


if __name__ == "__main__":
    main()
