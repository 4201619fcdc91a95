"""Decoding beside the PyTorch references and md4: ``python -m benchmarks.decoders --llada=DIR --fast_dllm=DIR ...``.

One process a contender, all on the same cores, all warm; round after round each makes one whole generation while the
others wait, in a fresh random order (`benchmarks.peers`). The decoders, on one checkpoint in LLaDA's format and the
same prompt, batch 1, temperature 0:

    llada       LLaDA's generate.py: steps with a quota, block after block, against ours
    quota_*     the same from Fast-dLLM: without a cache, with its prefix cache, with its dual cache
    threshold_* its threshold decoder, likewise
    chain       the reverse chain on md4's cosine grid, without a prompt, several rows, random weights, against md4's
    chain_reuse ours, leaving out forwards that would see nothing new

Printed: medians and quartiles of the wall times, and the others' times over ours: medians of the ratios within a round,
with 95 % bootstrap intervals over rounds, wall and CPU; forwards of each; whether the tokens are the same; and, apart,
the first call, compilation included.
"""

import argparse
import os
import sys
import tempfile
import time

import numpy as np

from benchmarks import decode_worker
from benchmarks.peer_process import Failed, Worker, add_arguments, finish, interval, measure

LLADA = [f"{rule}_{cache}" for cache in ("none", "prefix", "dual") for rule in ("quota", "threshold")]
CALLS = ["llada", *LLADA, "chain", "chain_reuse"]
CONTENDERS = {  # name -> (module, its options, which python, calls)
    "ours": ("benchmarks.decode_ours", (), "python", ["llada", *LLADA]),
    "torch": ("benchmarks.decode_torch", ("llada", "fast_dllm"), "torch_python", ["llada", *LLADA]),
    "ours_chain": ("benchmarks.decode_ours", (), "python", ["chain", "chain_reuse"]),
    "md4": ("benchmarks.decode_md4", ("md4",), "md4_python", ["chain"]),
}


def make_checkpoint(folder: str, options) -> None:
    """Random weights whose laws are uneven: some probabilities are above the threshold, and few are alike."""
    import jax
    import jax.numpy as jnp

    from mdlm_jax.models import api
    from mdlm_jax.models.config import TransformerConfig
    from mdlm_jax.models.hf import writer
    from mdlm_jax.models.hf.rules import Description

    network = TransformerConfig(options.vocab, options.vocab, options.layers, options.d_model, options.heads,
                                options.heads, options.d_ff)
    params = api.init(network, jax.random.key(0))
    params["embedding"] = jax.random.normal(jax.random.key(1), params["embedding"].shape)
    params["layers"] = jax.tree.map(lambda x: 2.0 * x if x.ndim > 2 else x, params["layers"])
    columns = jax.random.normal(jax.random.key(2), params["head"].shape) * options.sharpness / options.d_model**0.5
    params["head"] = columns.at[:, options.vocab - 1].set(jnp.float32(0.0))  # the mask is never the likeliest
    ids = {"mask_id": options.vocab - 1, "eos_id": 0, "pad_id": 0}
    writer.write(folder, Description(network, "llada", **ids, max_length=options.prompt + options.generate), params)


def start(options, passed: list[str]) -> tuple[dict[str, Worker], dict[str, str]]:
    """The running contenders and the errors of the others."""
    workers, failed = {}, {}
    for name in options.contenders:
        module, needs, python, _ = CONTENDERS[name]
        begin = time.perf_counter()
        try:
            if absent := [need for need in needs if not getattr(options, need)]:
                raise Failed(f"no checkout given; pass --{absent[0]}=DIR")
            extra = [f"--{need}={getattr(options, need)}" for need in needs]
            extra += ["--chain"] if name == "ours_chain" else []
            command = [getattr(options, python) or sys.executable, "-m", module, *passed, *extra]
            workers[name] = Worker(command, options.start_seconds)
        except Failed as error:
            failed[name] = str(error)
            print(f"  {name}: not started: {error}", flush=True)
            continue
        about = workers[name].about
        print(f"  {name} ({time.perf_counter() - begin:.0f} s): {about['parameters']:,} parameters; "
              f"{about['versions']}; {about['contains']}", flush=True)
    return workers, failed


def row(call: str, name: str, found: list[dict], base: list[dict], first_seconds: float) -> dict:
    """One contender's line for one call, with its times over those of ``base``."""
    wall, cpu = (np.array([r[key] for r in found]) for key in ("seconds", "cpu_seconds"))
    base_wall, base_cpu = (np.array([r[key] for r in base]) for key in ("seconds", "cpu_seconds"))
    low, high = interval(wall / base_wall)
    value = found[-1]["value"]
    result = {
        "call": call, "contender": name, "seconds": wall.tolist(), "cpu_seconds": cpu.tolist(),
        "median": float(np.median(wall)), "quartiles": np.quantile(wall, (0.25, 0.75)).tolist(),
        "ratio": float(np.median(wall / base_wall)), "interval": [low, high],
        "cpu_median": float(np.median(cpu)), "cpu_ratio": float(np.median(cpu / base_cpu)),
        "forwards": value["forwards"], "same_tokens": value["tokens"] == base[-1]["value"]["tokens"],
        "first_seconds": first_seconds,
    }
    print(f"{call:>15} {name:>10} {result['median']:8.4f} {result['quartiles'][0]:8.4f} {result['quartiles'][1]:8.4f}  "
          f"{result['ratio']:7.2f} {low:6.2f} {high:6.2f}  {result['cpu_median']:8.4f} {result['cpu_ratio']:7.2f}  "
          f"{result['forwards']:8} {'yes' if result['same_tokens'] else 'no':>5} {first_seconds:7.1f}", flush=True)
    return result


def rounds(options, workers, failed, call: str) -> list[dict]:
    """The lines of one call."""
    able = {name: worker for name, worker in workers.items() if call in CONTENDERS[name][3]}
    found = measure(options, able, failed, call)
    if not found:
        return []
    base = next((name for name in found if name.startswith("ours")), next(iter(found)))
    return [row(call, name, results, found[base], workers[name].about["first_seconds"][call])
            for name, results in found.items()]


def main() -> None:
    shared = decode_worker.parser()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter,
                                     parents=[shared], conflict_handler="resolve")
    parser.add_argument("--contenders", nargs="+", default=list(CONTENDERS), choices=list(CONTENDERS))
    parser.add_argument("--calls", nargs="+", default=CALLS, choices=CALLS)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--sharpness", type=float, default=5.0, help="standard deviation of the logits made here")
    parser.add_argument("--llada", default="", help="a checkout of github.com/ML-GSAI/LLaDA")
    parser.add_argument("--fast_dllm", default="", help="a checkout of github.com/NVlabs/Fast-dLLM")
    add_arguments(parser, pause=0.1)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        if not options.checkpoint:
            options.checkpoint = os.path.join(folder, "checkpoint")
            make_checkpoint(options.checkpoint, options)
        names = [action.dest for action in shared._actions if action.dest != "help"]
        print(f"{options.checkpoint}: {options.prompt} + {options.generate} tokens, blocks of {options.block}, "
              f"{options.threads} threads, {options.rounds} rounds, load {os.getloadavg()[0]:.1f}", flush=True)
        workers, failed = start(options, [f"--{name}={getattr(options, name)}" for name in names])
        print(f"{'':>15} {'':>10} {'seconds':>8} {'quartiles':>17}  {'ratio':>7} {'95 %':>13}  {'CPU':>8} "
              f"{'ratio':>7}  {'forwards':>8} {'same':>5} {'first':>7}")
        try:
            results = [line for call in options.calls for line in rounds(options, workers, failed, call)]
        finally:
            for worker in workers.values():
                worker.stop()
    finish(options, workers, failed, results)


if __name__ == "__main__":
    main()
