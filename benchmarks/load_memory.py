"""Memory and time of loading a checkpoint: ``python -m benchmarks.load_memory --gb=2``.

Writes a synthetic LLaDA-format checkpoint in bfloat16, then loads it in fresh processes: with ours (whole, on a mesh of
8 CPU devices, converted to float32) and with the library safetensors (every tensor to numpy, nothing transposed).
Printed for each: seconds, CPU seconds of all threads, the bytes of the arrays, and the peak of resident memory above
its value before loading, less those bytes. Files are in the page cache. Ours transposes all matrices; the library none.
"""

import argparse
import dataclasses
import json
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

WAYS = ("safetensors", "ours", "ours_mesh", "ours_float32")


def make(folder: Path, gigabytes: float) -> None:
    """LLaDA-8B's proportions with as many layers as fit; random bits that are finite bfloat16."""
    import ml_dtypes

    from mdlm_jax.models import presets
    from mdlm_jax.models.hf import families, files
    from mdlm_jax.models.hf.rules import Description, bind, tensor_shapes
    from mdlm_jax.models.shapes import parameter_count

    config = dataclasses.replace(presets.get("llada-8b"), vocab_size=32768, head_size=32768, d_model=2048, heads=16,
                                 kv_heads=16, head_dim=128, d_ff=6144, layers=1)
    one = parameter_count(config)
    layer = parameter_count(dataclasses.replace(config, layers=2)) - one
    config = dataclasses.replace(config, layers=max(1, 1 + round((gigabytes * 5e8 - one) / layer)))
    description = Description(config, "llada", mask_id=5, dtype="bfloat16")
    shapes = tensor_shapes(bind(config, families.FAMILIES["llada"].tables(config)[0]))
    rng = np.random.default_rng(0)
    folder.mkdir(parents=True)
    dtype = np.dtype(ml_dtypes.bfloat16)

    def produce(name):
        count = int(np.prod(shapes[name]))
        return (rng.integers(0, 1 << 14, count, np.uint16)).view(dtype).reshape(shapes[name])

    files.write_file(folder / files.SINGLE, [(name, dtype, shape) for name, shape in shapes.items()], produce)
    (folder / "config.json").write_text(json.dumps(families.write_fields(description)))


def measure(way: str, folder: Path) -> dict:
    """In this process: loads once; imports and a first small load are done before the clock starts."""
    import jax

    jax.config.update("jax_platforms", "cpu")
    if way == "ours_mesh":
        jax.config.update("jax_num_cpu_devices", 8)
    from mdlm_jax.models.hf import families, reader
    from mdlm_jax.models.sharding import make_mesh

    description = families.describe(folder)
    mesh = make_mesh({"fsdp": 4, "tensor": 2}) if way == "ours_mesh" else None
    dtype = "float32" if way == "ours_float32" else None
    jax.block_until_ready(jax.numpy.zeros(8))
    before = _reset_peak()
    begin, cpu = time.perf_counter(), time.process_time()
    if way == "safetensors":
        loaded = _library(folder)
    else:
        loaded = jax.block_until_ready(reader.read(folder, description, mesh=mesh, dtype=dtype))
    seconds, cpu = time.perf_counter() - begin, time.process_time() - cpu
    size = sum(leaf.nbytes for leaf in jax.tree.leaves(loaded))
    return {"way": way, "seconds": seconds, "cpu": cpu, "arrays": size, "over": _peak() - before - size}


def _library(folder: Path) -> dict:
    from safetensors import safe_open

    with safe_open(folder / "model.safetensors", "np") as file:
        return {name: file.get_tensor(name) for name in file.keys()}


def _status(field: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1]) * 1024
    raise KeyError(field)


def _peak() -> int:
    return _status("VmHWM")


def _reset_peak() -> int:
    """Makes the peak start anew (Linux), and says what is resident now."""
    Path("/proc/self/clear_refs").write_text("5")
    return _status("VmRSS")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gb", type=float, default=2.0)
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--way", choices=WAYS)
    parser.add_argument("--folder", type=Path)
    options = parser.parse_args()
    if options.way:
        print(json.dumps(measure(options.way, options.folder)))
        return
    root = Path(tempfile.mkdtemp(prefix="mdlm_jax-load-"))
    try:
        make(root / "model", options.gb)
        size = (root / "model" / "model.safetensors").stat().st_size
        print(f"file: {size / 1e9:.2f} GB; best of {options.repeat} processes each, files in the page cache")
        for way in WAYS:
            runs = [_run(way, root / "model") for _ in range(options.repeat)]
            best = min(runs, key=lambda run: run["seconds"])
            over = max(run["over"] for run in runs)
            print(f"{way:>14}: {best['seconds']:6.2f} s ({best['cpu']:.2f} s of CPU), arrays "
                  f"{best['arrays'] / 1e9:5.2f} GB, peak beyond them {over / 1e6:7.1f} MB", flush=True)
    finally:
        shutil.rmtree(root)


def _run(way: str, folder: Path) -> dict:
    command = [sys.executable, "-m", "benchmarks.load_memory", f"--way={way}", f"--folder={folder}"]
    return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()[-1])


if __name__ == "__main__":
    main()
