"""What mixed noise costs a train step: ``python -m benchmarks.mixing_cost [--rounds=N] [--json=FILE]``.

For each vocabulary a network of the published small width (D = 768, two layers: deeper ones only dilute what the head
costs) with four objectives: masked with half the head (as shipped), masked with the whole head, and the continuous-time
bound at mixing 0 and 0.1. Scratch bytes of the compiled loss and gradient are to be set against the V-sized float32
buffers of the published code, 4 B L V bytes each. Seconds are those of a loss and its gradient (the optimiser, which
all share, left out), by the processor's time and by the clock, interleaved in rounds, as ratios to the masked loss with
the whole head: medians over rounds, with the 95 % interval of the median by its order statistics. On a busy machine the
processor's time is the one to read.
"""

import argparse
import json
import time
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from mdlm_jax.core.process import Process
from mdlm_jax.models import api
from mdlm_jax.models.config import TransformerConfig
from mdlm_jax.training.objectives.base import Objective
from mdlm_jax.training.objectives.continuous import ContinuousObjective
from mdlm_jax.training.objectives.count import CountObjective

MASKS = ("noise_mask", "loss_mask")
NAMES = ("tokens", "attention_mask", "positions", *MASKS)
BASE = "masked, whole head"


def objectives(vocab: int, options) -> dict[str, Objective]:
    width = options.d_model
    network = TransformerConfig(vocab, vocab, options.layers, width, width // 64, width // 64, 4 * width,
                                dtype=options.dtype)
    masked, mixed = Process(vocab, vocab - 1), Process(vocab, vocab - 1, 0.1)
    return {
        "masked, half head (as shipped)": CountObjective(network, masked, half_head=True),
        BASE: CountObjective(network, masked, half_head=False),
        "continuous, mixing 0": ContinuousObjective(network, masked),
        "continuous, mixing 0.1": ContinuousObjective(network, mixed),
    }


def batch_of(rows: int, length: int) -> dict[str, np.ndarray]:
    tokens = np.random.default_rng(0).integers(0, 1000, (rows, length)).astype(np.int32)
    ones = np.ones_like(tokens)
    positions = np.broadcast_to(np.arange(length, dtype=np.int32), tokens.shape)
    return dict(zip(NAMES, (tokens, ones, positions, ones == 1, ones == 1), strict=True))


def gradient_of(objective: Objective) -> Callable[[dict, dict], jax.Array]:
    """(weights, batch) -> mean loss and its gradient, compiled."""
    def mean(weights, batch):
        rows = batch["tokens"].shape[0]
        return objective.loss(weights, batch, jax.random.key(0), jnp.arange(rows), rows).totals().mean()

    return jax.jit(jax.value_and_grad(mean))


def scratch_bytes(objective: Objective, options) -> int:
    """Of the compiled loss and gradient."""
    weights = jax.eval_shape(objective.init, jax.random.key(0))
    lowered = gradient_of(objective).lower(weights, batch_of(options.rows, options.length))
    return lowered.compile().memory_analysis().temp_size_in_bytes


def seconds(found: dict[str, Objective], options) -> dict[str, list[tuple[float, float]]]:
    """By objective, processor's and clock's time a round; every round runs each once, in an order that turns."""
    weights = jax.jit(next(iter(found.values())).init)(jax.random.key(0))
    runs = {name: gradient_of(objective) for name, objective in found.items()}
    batch = batch_of(options.timed_rows, options.timed_length)
    for run in runs.values():
        jax.block_until_ready(run(weights, batch))
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in runs}
    order = list(runs)
    for number in range(options.rounds):
        for name in order[number % len(order) :] + order[: number % len(order)]:
            start = time.process_time(), time.perf_counter()
            jax.block_until_ready(runs[name](weights, batch))
            times[name].append((time.process_time() - start[0], time.perf_counter() - start[1]))
    return times


def ratio(times: dict[str, list[tuple[float, float]]], name: str, clock: int) -> str:
    """Median over rounds of the time over that of `BASE`, and the 95 % interval of the median."""
    own, base = (np.array(times[one])[:, clock] for one in (name, BASE))
    found = np.sort(own / base)
    low = max(0, int(np.floor(len(found) / 2 - 0.98 * np.sqrt(len(found)))))
    return f"{np.median(found):.3f} ({found[low]:.3f} to {found[-1 - low]:.3f})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--vocabs", type=int, nargs="+", default=[50_258, 126_464])
    parser.add_argument("--d_model", type=int, default=768)
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--rows", type=int, default=8, help="of the compiled step")
    parser.add_argument("--length", type=int, default=1024)
    parser.add_argument("--timed_rows", type=int, default=2)
    parser.add_argument("--timed_length", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=9, help="0: no times")
    parser.add_argument("--json", default="", help="also write the numbers here")
    options = parser.parse_args()
    print(f"{options.layers} layers, D = {options.d_model}, {options.dtype}, {jax.default_backend()}, jax "
          f"{jax.__version__}; scratch at {options.rows} x {options.length} tokens, times at "
          f"{options.timed_rows} x {options.timed_length}\n")
    print("| V | objective | scratch | over the masked | processor time over the masked (95 %) | by the clock (95 %) | "
          "processor seconds |")
    print("|---|---|---|---|---|---|---|", flush=True)
    told = []
    for vocab in options.vocabs:
        found = objectives(vocab, options)
        scratch = {name: scratch_bytes(objective, options) for name, objective in found.items()}
        times = seconds(found, options) if options.rounds else {}
        for name in found:
            cells = [f"{vocab:,}", name, f"{scratch[name] / 1e6:,.0f} MB", f"{scratch[name] / scratch[BASE]:.3f}"]
            if times:
                cells += [ratio(times, name, 0), ratio(times, name, 1), f"{np.median(times[name], axis=0)[0]:.2f}"]
            print(f"| {' | '.join(cells)} |", flush=True)
        buffer = 4 * options.rows * options.length * vocab
        size = api.num_parameters(found[BASE].network)
        print(f"| {vocab:,} | one [B, L, V] float32 buffer | {buffer / 1e6:,.0f} MB | | | | |", flush=True)
        told.append({"vocab": vocab, "parameters": size, "scratch": scratch, "seconds": times, "buffer": buffer})
    if options.json:
        with open(options.json, "w", encoding="utf-8") as file:
            json.dump({"options": vars(options), "found": told}, file, indent=1)


if __name__ == "__main__":
    main()
