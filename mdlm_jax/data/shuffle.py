"""A pseudo-random permutation that is computed index by index, so that a data order needs no memory and no replay."""

import numpy as np

ROUNDS = 16  # with 8, orders of a handful of items are measurably not uniform

_ROUND_CONSTANTS = np.arange(1, ROUNDS + 1, dtype=np.uint64) * np.uint64(0xD1B54A32D192ED03)


def permute(index: np.ndarray, epoch: np.ndarray, size: int, seed: int) -> np.ndarray:
    """Where ``index`` stands in the order of its epoch: for each epoch a bijection of ``0..size-1``.

    A balanced Feistel network on the smallest even number of bits that holds ``size``, walked along its cycle until
    the value falls below ``size`` (Black and Rogaway 2002, "Ciphers with arbitrary finite domains"); the round
    function is SplitMix64 (Steele, Lea and Flood 2014). Written here and not taken from grain, whose import pulls in
    jax, and so that an order never changes with a library's version.

    Args:
      index: integers [n] in 0..size-1.
      epoch: non-negative integers [n].
      size: how many items there are.
      seed: any integer; each (seed, epoch) has its own order.

    Returns:
      int64 [n] in 0..size-1. O(n) work, whatever ``size`` and ``epoch``.
    """
    half = max(1, ((size - 1).bit_length() + 1) // 2)
    value = np.asarray(index, np.uint64)
    root = mix(np.full(value.shape, seed & (2**64 - 1), np.uint64))
    keys = mix(root ^ np.asarray(epoch, np.uint64))
    value = _feistel(value, keys, half)
    while (outside := value >= np.uint64(size)).any():
        value[outside] = _feistel(value[outside], keys[outside], half)
    return value.astype(np.int64)


def _feistel(value: np.ndarray, keys: np.ndarray, half: int) -> np.ndarray:
    low = np.uint64((1 << half) - 1)
    left, right = value >> np.uint64(half), value & low
    for number in range(ROUNDS):
        left, right = right, left ^ (mix(keys ^ (right + _ROUND_CONSTANTS[number])) & low)
    return (left << np.uint64(half)) | right


def mix(x: np.ndarray) -> np.ndarray:
    """SplitMix64: adds its increment and scrambles; uint64 arrays wrap around."""
    x = x + np.uint64(0x9E3779B97F4A7C15)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))
