"""What the input costs: ``python -m benchmarks.input [--megabytes=20] [--json=FILE]``.

Preparing: tokens a second of one core, for each of the two passes, by the CPU seconds of this process, for bytes and
for a BPE of 32,768 tokens; the text is the Python files of this environment. Reading: tokens a second of
``batch(step)`` from prepared rows in the page cache, the best of three by the wall clock, for rows of 128 and of 4096
tokens and for one, two and four threads. Waiting: the share of a step that the quickstart's training waits for its
batch. Last, by arithmetic: tokens a second that a host of a pod must read to feed LLaDA-8B, beside the measured reader.
"""

import argparse
import concurrent.futures
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from mdlm_jax.config import DataConfig
from mdlm_jax.data.pipeline import Pipeline, build
from mdlm_jax.data.preparation import Preparation
from mdlm_jax.data.prepare import prepare
from mdlm_jax.models import flops, presets
from mdlm_jax.planning.chips import CHIPS

BPE = 32_768
MFU = 0.5
PODS = (("v5p", 512, 4), ("v5e", 256, 8), ("v6e", 256, 8))  # chips, and chips of a host


def collect_text(folder: Path, size: int) -> Path:
    """``size`` bytes of the Python files of this environment, in one file."""
    path, taken = folder / "text.txt", 0
    with open(path, "w", encoding="utf-8", newline="") as out:
        for name in sorted(Path(np.__file__).parents[1].rglob("*.py")):
            text = name.read_bytes().decode(errors="ignore").replace("\0", "")
            out.write(text)
            taken += len(text.encode())
            if taken >= size:
                break
    return path


def measure_prepare(source: Path, out: Path, tokenizer: str, length: int) -> dict:
    """CPU seconds of each part of a preparation in this one process."""
    seconds, last = {}, {"name": "start", "at": time.process_time()}

    def report(name, done, total):
        if name != last["name"]:
            now = time.process_time()
            seconds[last["name"]] = seconds.get(last["name"], 0.0) + now - last["at"]
            last.update(name=name, at=now)

    manifest = prepare(Preparation((str(source),), tokenizer=tokenizer, length=length), out, 1, "benchmark", report)
    report("end", 0, 0)
    splits = manifest["splits"].values()
    tokens, size = (sum(split[name] for split in splits) for name in ("tokens", "bytes"))
    passes = seconds["tokens"] + seconds["shards"]
    return {"tokenizer": tokenizer, "length": length, "bytes": size, "tokens": tokens,
            "survey_and_training_seconds": seconds["reading the sources"],
            "first_pass_tokens_per_s": tokens / seconds["tokens"],
            "second_pass_tokens_per_s": tokens / seconds["shards"],
            "tokens_per_s_per_core": tokens / passes, "bytes_per_s_per_core": size / passes,
            "bytes_on_disk": sum(shard["bytes"] for split in splits for shard in split["shards"])}


def measure_reader(pipeline: Pipeline, threads: int, tokens: int) -> dict:
    """Tokens a second of whole batches, in the order of the steps: by the wall clock, and of a core's CPU time."""
    steps = range(1, 1 + max(threads, tokens // (pipeline.batch_size * pipeline.length)))
    pipeline.batch(0)
    with concurrent.futures.ThreadPoolExecutor(threads) as pool:
        begun, cpu = time.perf_counter(), time.process_time()
        for _ in pool.map(pipeline.batch, steps):
            pass
        read = len(steps) * pipeline.batch_size * pipeline.length
        return {"tokens_per_s": read / (time.perf_counter() - begun),
                "tokens_per_s_per_core": read / (time.process_time() - cpu)}


def quickstart_wait(folder: Path, steps: int) -> dict:
    """Trains the quickstart from prepared rows for a while; the first record, which begins with nothing made, is left
    out."""
    rows = folder / "quickstart"
    prepare(Preparation(("stdlib",), tokenizer="bpe:2048", length=128), rows, 1, "benchmark", lambda *report: None)
    flags = {"data.source": f"prepared:{rows}", "train.steps": steps, "train.warmup_steps": 10, "eval.rows": 16,
             "eval.final_rows": 16, "eval.every": steps, "sample.steps": 2, "sample.num": 1}
    subprocess.run([sys.executable, "-m", "launch.train", "--config=quickstart", f"--workdir={folder / 'run'}",
                    *[f"--config.{name}={value}" for name, value in flags.items()]], check=True, capture_output=True)
    records = map(json.loads, (folder / "run" / "metrics.jsonl").read_text().splitlines())
    records = [record for record in records if "input_wait" in record and "step_seconds" in record][1:]
    wait, step = (float(np.mean([record[name] for record in records])) for name in ("input_wait", "step_seconds"))
    return {"steps": steps, "step_seconds": step, "input_wait_seconds": wait, "share": wait / step}


def pod_need(kind: str, chips: int, host_chips: int, length: int = 4096) -> dict:
    """Tokens a second that LLaDA-8B takes of each host at ``MFU``, by the model's FLOPs."""
    per_token = flops.train_flops(presets.get("llada-8b"), length, length, length) / length
    tokens = MFU * CHIPS[kind].flops * chips / per_token
    return {"pod": f"{kind}, {chips} chips", "flops_per_token": per_token, "tokens_per_s": tokens,
            "hosts": chips // host_chips, "tokens_per_s_per_host": tokens * host_chips / chips}


def measure(options, folder: Path) -> dict:
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # one core
    text = collect_text(folder, int(options.megabytes * 1e6))
    found = {"prepare": [], "reader": [], "pods": [pod_need(*pod) for pod in PODS]}
    for tokenizer in ("byte", f"bpe:{BPE}"):
        for length in (128, 4096):
            rows = folder / f"{tokenizer.partition(':')[0]}-{length}"
            if length == 4096 and tokenizer != "byte":
                tokenizer = str(folder / "bpe-128" / "tokenizer.json")
            found["prepare"].append(measure_prepare(text, rows, tokenizer, length))
            print(json.dumps(found["prepare"][-1]), flush=True)
    for length, batch_size in ((128, 64), (4096, 32)):
        spec = str(folder / f"bpe-{length}" / "tokenizer.json")
        pipeline = build(DataConfig(source=f"prepared:{folder / f'bpe-{length}'}", tokenizer=spec, length=length),
                         batch_size).train
        for threads in (1, 2, 4):
            runs = [measure_reader(pipeline, threads, options.read_tokens) for _ in range(3)]
            best = max(runs, key=lambda run: run["tokens_per_s"])
            found["reader"].append({"length": length, "batch": batch_size, "threads": threads} | best)
            print(json.dumps(found["reader"][-1]), flush=True)
    reader = found["reader"][3]["tokens_per_s"]  # rows of 4096, one thread
    for pod in found["pods"]:
        pod["share_of_one_thread"] = pod["tokens_per_s_per_host"] / reader
        print(json.dumps(pod), flush=True)
    if options.steps:
        found["quickstart"] = quickstart_wait(folder, options.steps)
        print(json.dumps(found["quickstart"]), flush=True)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--megabytes", type=float, default=20.0, help="of text to prepare")
    parser.add_argument("--read_tokens", type=int, default=4_000_000, help="read in each measurement")
    parser.add_argument("--steps", type=int, default=120, help="of the quickstart; 0: leave it out")
    parser.add_argument("--json", type=Path, help="write the numbers there, too")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        found = measure(options, Path(folder))
    if options.json:
        options.json.write_text(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
