"""Forward and train step beside md4 and PyTorch: ``python -m benchmarks.peers --md4=DIR --md4_python=... ...``.

One process a contender, all on the same cores, all built and warm before the first timing. Then, round after round,
each runs one forward pass or one train step while the others wait, in a fresh random order: what else the machine does
hits all of them alike. Printed: medians and quartiles of the wall times, medians of the process's CPU times, and each
contender's time over the first one's: medians of the ratios within a round, with 95 % bootstrap intervals over rounds.

A forward pass is tokens -> logits. What a step contains is printed for each contender. A contender that does not start,
or stops, is listed with the end of what it said.
"""

import argparse
import os
import sys
import time

import numpy as np

from benchmarks import peer_worker
from benchmarks.peer_process import Failed, Worker, add_arguments, finish, interval, measure
from mdlm_jax.models import flops
from mdlm_jax.models.config import TransformerConfig

CONTENDERS = {  # name -> (module, its options, which python)
    "ours": ("benchmarks.peer_ours", ["--head=half"], "python"),
    "ours_full_head": ("benchmarks.peer_ours", ["--head=full"], "python"),
    "md4": ("benchmarks.peer_md4", [], "md4_python"),
    "torch": ("benchmarks.peer_torch", [], "torch_python"),
    "torch_onednn": ("benchmarks.peer_torch", ["--onednn"], "torch_python"),
    "torch_compile": ("benchmarks.peer_torch", ["--compile"], "torch_python"),
    "torch_bf16": ("benchmarks.peer_torch", ["--bf16"], "torch_python"),
}


def launch(name: str, options, sizes: list[str]) -> Worker:
    """A contender's process, built and warm."""
    module, extra, python = CONTENDERS[name]
    if name == "md4":
        if not options.md4:
            raise Failed("no checkout given; pass --md4=DIR")
        extra = [*extra, f"--md4={options.md4}"]
    command = [getattr(options, python) or sys.executable, "-m", module, *extra, *sizes, *options.extra.get(name, [])]
    return Worker(command, options.start_seconds, options.keep_freed_memory == "all")


def start(options, sizes) -> tuple[dict[str, Worker], dict[str, str]]:
    """The running contenders and the errors of the others, one after the other."""
    workers, failed = {}, {}
    for name in options.contenders:
        begin = time.perf_counter()
        try:
            workers[name] = launch(name, options, sizes)
        except Failed as error:
            failed[name] = str(error)
            print(f"  {name}: not started: {error}", flush=True)
            continue
        about = workers[name].about
        print(f"  {name} ({time.perf_counter() - begin:.0f} s): {about['parameters']:,} parameters; "
              f"{about['versions']}; {about['contains']}", flush=True)
    return workers, failed


def table(call: str, found: dict, work: dict[str, float]) -> list[dict]:
    rows = []
    base = next(iter(found), None)
    print(f"\n{call}: seconds; ratio to {base}")
    print(f"{'':>16} {'median':>8} {'quartiles':>15} {'CPU':>8}  {'ratio':>6} {'95 %':>15}  {'CPU ratio':>9}  "
          f"{'GFLOP':>7} {'GFLOP/s':>8} {'GB':>5}")
    for name, results in found.items():
        wall, cpu = (np.array([r[key] for r in results]) for key in ("seconds", "cpu_seconds"))
        base_wall, base_cpu = (np.array([r[key] for r in found[base]]) for key in ("seconds", "cpu_seconds"))
        low, high = interval(wall / base_wall)
        row = {
            "contender": name, "call": call, "seconds": wall.tolist(), "cpu_seconds": cpu.tolist(),
            "median": float(np.median(wall)), "quartiles": np.quantile(wall, (0.25, 0.75)).tolist(),
            "cpu_median": float(np.median(cpu)), "ratio": float(np.median(wall / base_wall)), "interval": [low, high],
            "cpu_ratio": float(np.median(cpu / base_cpu)), "gflop": work[name] / 1e9,
            "resident_bytes": max(r["resident_bytes"] for r in results), "value": results[-1]["value"],
        }
        rows.append(row)
        print(f"{name:>16} {row['median']:8.3f} {row['quartiles'][0]:7.3f} {row['quartiles'][1]:7.3f} "
              f"{row['cpu_median']:8.3f}  {row['ratio']:6.3f} {low:7.3f} {high:7.3f}  {row['cpu_ratio']:9.3f}  "
              f"{row['gflop']:7.1f} {row['gflop'] / row['median']:8.1f} {row['resident_bytes'] / 1e9:5.1f}", flush=True)
    return rows


def _extra(text: str) -> tuple[str, str]:
    name, _, option = text.partition(":")
    if name not in CONTENDERS or not option:
        raise argparse.ArgumentTypeError(f"{text!r}: write NAME:--option=value with NAME of {', '.join(CONTENDERS)}")
    return name, option


def main() -> None:
    sizes = peer_worker.parser()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter,
                                     parents=[sizes], conflict_handler="resolve")
    parser.add_argument("--contenders", nargs="+", default=list(CONTENDERS), choices=list(CONTENDERS),
                        help="who runs; the first is what the others are compared with")
    parser.add_argument("--calls", nargs="+", default=["forward", "step"], choices=["forward", "step"])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--keep_freed_memory", choices=("ours", "all"), default="ours",
                        help="ours: each as it ships; all: glibc keeps freed memory for every contender")
    parser.add_argument("--extra", type=_extra, action="append", default=[], help="NAME:--option=value for one worker")
    add_arguments(parser, pause=0.3)
    options = parser.parse_args()
    extras = options.extra
    options.extra = {name: [option for other, option in extras if other == name] for name in CONTENDERS}
    names = [action.dest for action in sizes._actions if action.dest != "help"]
    passed = [f"--{name}={getattr(options, name)}" for name in names]

    tokens, length = options.rows * options.length, options.length
    network = TransformerConfig(options.vocab + 1, options.vocab, options.layers, options.d_model, options.heads,
                                options.heads, options.d_ff)
    print(f"{options.layers} layers, D={options.d_model}, {options.heads} heads, F={options.d_ff}, V={options.vocab}, "
          f"{options.rows} x {length} tokens, {options.threads} threads, {options.rounds} rounds, "
          f"load {os.getloadavg()[0]:.1f}", flush=True)
    workers, failed = start(options, passed)
    results = []
    try:
        for call in options.calls:
            cost = flops.forward_flops if call == "forward" else flops.train_flops
            found = measure(options, workers, failed, call)
            work = {}
            for name in found:
                head = workers[name].about.get("head_positions", tokens) if call == "step" else tokens
                work[name] = cost(network, tokens, length, head)
            results += table(call, found, work)
    finally:
        for worker in workers.values():
            worker.stop()
    finish(options, workers, failed, results)


if __name__ == "__main__":
    main()
