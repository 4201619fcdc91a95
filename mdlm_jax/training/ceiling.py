"""What this machine can do: the matrix-multiply rate that a training step's FLOP/s are measured against."""

import functools
import time

import jax
import jax.numpy as jnp

_SIZES = {"cpu": (512, 1024, 2048)}
_ACCELERATOR_SIZES = (4096, 8192)
_BURST_SECONDS = 0.02  # multiplications are queued in bursts at least this long, so that dispatch does not count


@functools.cache
def matmul_ceiling(dtype: str, seconds: float = 1.0) -> float:
    """FLOP/s of the best measured matrix product on the first local device; measured once a process.

    Square matrices [M, M] @ [M, M] -> [M, M] in ``dtype`` at jax's default precision, which is how a model multiplies
    too; a product counts 2 M^3 FLOP. The sizes M are 512, 1024 and 2048 on a CPU and 4096 and 8192 elsewhere, summed
    in the default way and in float32; the fastest burst wins. For several accelerators multiply by their number;
    virtual CPU devices share one machine, so there the number is the machine's.

    Args:
      dtype: of the matrices, such as ``"float32"`` or ``"bfloat16"``.
      seconds: time to spend on measuring, compilation not counted.
    """
    device = jax.local_devices()[0]
    sizes = _SIZES.get(device.platform, _ACCELERATOR_SIZES)
    sums = (None,) if dtype == "float32" else (None, "float32")
    trials = [(size, accumulator) for size in sizes for accumulator in sums]
    return max(_best_rate(size, dtype, accumulator, device, seconds / len(trials)) for size, accumulator in trials)


def _best_rate(size: int, dtype: str, accumulator: str | None, device: jax.Device, seconds: float) -> float:
    matrix = jax.random.normal(jax.random.key(0), (size, size), jnp.float32) * size**-0.5  # its powers stay in range
    matrix = jax.device_put(matrix.astype(dtype), device)
    multiply = jax.jit(lambda a, b: jnp.matmul(a, b, preferred_element_type=accumulator).astype(dtype))
    multiply(matrix, matrix).block_until_ready()  # compiles
    best, end = _burst_seconds(multiply, matrix, 1), time.perf_counter() + seconds
    count = max(1, round(_BURST_SECONDS / best))
    while time.perf_counter() < end:
        best = min(best, _burst_seconds(multiply, matrix, count) / count)
    return 2.0 * size**3 / best


def _burst_seconds(multiply, matrix: jax.Array, count: int) -> float:
    """Each product needs the one before, as a model's layers do, so all are done when the last is."""
    product = matrix
    begin = time.perf_counter()
    for _ in range(count):
        product = multiply(product, matrix)
    product.block_until_ready()
    return time.perf_counter() - begin
