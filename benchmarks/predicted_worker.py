"""One model of `benchmarks.predicted` in a process of its own, driven over its pipes.

It writes a JSON line when it is built, warm and its memory measured, then one for every line of stdin: ceiling
(FLOP/s), copying (bytes/s), step (seconds).
"""

import gc
import json
import os
import sys
import time


def main(name: str) -> None:
    reply = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever libraries print goes to stderr
    import jax

    from benchmarks import predicted_models
    from launch._memory import keep_freed_memory
    from mdlm_jax.models.sharding import make_mesh
    from mdlm_jax.planning import step
    from mdlm_jax.training import optimizers
    from mdlm_jax.training.ceiling import matmul_ceiling
    from mdlm_jax.training.state import sharded_init

    if jax.default_backend() == "cpu":
        keep_freed_memory()  # as launch.train does
    config = predicted_models.MODELS[name]
    mesh = make_mesh({"fsdp": 1}, jax.devices()[:1])
    objective, _ = step.objective_of(config, mesh)
    compiled = step.lower(config, objective, mesh).compile()

    def fresh():
        return sharded_init(objective, optimizers.optimizer(config.train), config.train.ema_decay > 0, mesh, 0)

    batch = _batch(config, mesh)
    jax.block_until_ready(fresh())  # what compiling it leaves behind counts before, not after
    memory = _Memory()
    held = [fresh()]

    def run() -> float:
        begin = time.perf_counter()
        held[0], metrics = compiled(held[0], batch)
        jax.block_until_ready((held[0], metrics))
        return time.perf_counter() - begin

    memory.begin()
    for _ in range(3):
        run()
    stats = compiled.memory_analysis()
    calls = {"step": run, "copying": _copying, "ceiling": lambda: matmul_ceiling.__wrapped__(config.model.dtype, 0.3)}
    about = {
        "platform": jax.default_backend(), "versions": f"jax {jax.__version__} on {jax.devices()[0].device_kind}",
        "flops": _flops(compiled.as_text()),
        "peak": stats.argument_size_in_bytes + stats.output_size_in_bytes - stats.alias_size_in_bytes
        + stats.temp_size_in_bytes,
        "measured": memory.peak(), "memory_kind": memory.kind,
    }
    calls["ceiling"](), calls["copying"]()
    print(json.dumps(about), file=reply, flush=True)
    for line in sys.stdin:
        print(json.dumps(calls[line.strip()]()), file=reply, flush=True)


def _flops(text: str) -> float:
    """Of the compiled program; NaN where a loop with products, such as that over experts on CPU, tells no length."""
    from mdlm_jax.planning import hlo

    try:
        return float(sum(hlo.matmuls(hlo.parse(text)).values()))
    except ValueError:
        return float("nan")


def _batch(config, mesh) -> dict:
    """Random tokens, all of them noisy and counted."""
    import jax
    import numpy as np

    from mdlm_jax.models.sharding import batch_sharding

    shape = (config.train.batch_size, config.data.length)
    ones, layout = np.ones(shape, np.int32), batch_sharding(mesh)
    tokens = np.random.default_rng(0).integers(0, config.model.vocab_size - 1, shape, np.int32)
    positions = np.broadcast_to(np.arange(shape[1], dtype=np.int32), shape)
    batch = {"tokens": tokens, "attention_mask": ones, "positions": positions, "noise_mask": ones == 1,
             "loss_mask": ones == 1}
    return {key: jax.device_put(value, layout) for key, value in batch.items()}


def _copying() -> float:
    """Bytes a second read and written by ``x + 1`` over 256 MiB: the best of five."""
    import jax
    import jax.numpy as jnp

    if not hasattr(_copying, "run"):
        _copying.run = jax.jit(lambda x: x + 1)
        _copying.array = jnp.zeros(1 << 26, jnp.float32)
        jax.block_until_ready(_copying.run(_copying.array))
    best = float("inf")
    for _ in range(5):
        begin = time.perf_counter()
        jax.block_until_ready(_copying.run(_copying.array))
        best = min(best, time.perf_counter() - begin)
    return 2 * _copying.array.nbytes / best


class _Memory:
    """Made before the state exists, `begin` before the steps; `peak` in bytes."""

    def __init__(self):
        import jax

        self._device = jax.local_devices()[0]
        self._resident = self._device.platform == "cpu"
        self.kind = "growth of the resident set" if self._resident else "the allocator's peak"
        if self._resident:
            _trim()
            self._before = _status("VmRSS")

    def begin(self) -> None:
        if self._resident:
            _trim()
            with open("/proc/self/clear_refs", "w") as file:
                file.write("5")  # sets VmHWM back to VmRSS

    def peak(self) -> float:
        if self._resident:
            return _status("VmHWM") - self._before
        return self._device.memory_stats()["peak_bytes_in_use"]


def _trim() -> None:
    import ctypes

    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)


def _status(name: str) -> float:
    """A line of /proc/self/status in bytes."""
    with open("/proc/self/status") as file:
        return 1024.0 * next(int(line.split()[1]) for line in file if line.startswith(f"{name}:"))


if __name__ == "__main__":
    main(sys.argv[1])
