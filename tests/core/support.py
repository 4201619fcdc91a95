"""What the core's truth tests share: golden arrays, the two precisions, comparison, small laws."""

import functools
import pathlib

import jax
import numpy as np
from scipy import stats

from mdlm_jax.core.prediction import Prediction
from mdlm_jax.core.reduction import reduce

TOLERANCE = {np.dtype("float64"): 1e-9, np.dtype("float32"): 1e-4}
FOLDER = pathlib.Path(__file__).parents[1] / "golden"


@functools.cache
def golden(name: str) -> dict[str, np.ndarray]:
    with np.load(FOLDER / f"{name}.npz") as arrays:
        return {key: arrays[key] for key in arrays.files}


class Reference:
    """Golden arrays read for a run of ours in ``dtype``: the reference's float32 run where there is one."""

    def __init__(self, name: str, dtype):
        self.arrays, self.dtype = golden(name), np.dtype(dtype)
        self.tolerance = TOLERANCE[self.dtype]

    def __getitem__(self, key):
        """An input: ids as int32, everything else in the run's dtype."""
        array = self.arrays[key]
        return array.astype(np.int32 if array.dtype.kind == "i" else self.dtype)

    def compare(self, key, actual, where=True, select=..., own_error=2.0, **how):
        """``actual`` against array ``key`` (``select``ed), and in float32 also against the reference's own float32 run.

        ``own_error``: how far that run may be off, in units of the tolerance: 1.04e-4 is seen for XDLM at alpha = 1e-3.
        """
        assert_close(actual, self.arrays[key][select], self.tolerance, where, **how)
        if self.dtype == np.float32 and f"{key}_f32" in self.arrays:
            assert_close(actual, self.arrays[f"{key}_f32"][select], own_error * self.tolerance, where, **how)


def assert_close(actual, expected, tolerance, where=True, vectors=False):
    """|actual - expected| <= tolerance max(1, |expected|); NaN anywhere in ``where`` fails.

    ``vectors``: with the largest of |expected| along the last axis instead, for gradients, whose entries cancel.
    """
    actual, expected = np.asarray(actual, np.float64), np.asarray(expected, np.float64)
    assert actual.shape == expected.shape, (actual.shape, expected.shape)
    where = np.broadcast_to(where, expected.shape)
    size = np.abs(expected).max(-1, keepdims=True) if vectors else np.abs(expected)
    scale = np.maximum(1.0, np.broadcast_to(size, expected.shape)[where])
    np.testing.assert_allclose(actual[where] / scale, expected[where] / scale, rtol=0, atol=tolerance, equal_nan=False)


def reduced(process, logits, tokens, noisy, offset=None):
    """All that a loss may ask for, from ready-made logits."""
    return reduce(
        Prediction.from_logits(logits), suppress=process.mask_id, target=tokens, current=noisy, offset=offset
    )


def one_hot(ids, size, dtype):
    return np.eye(size, dtype=dtype)[ids]


def row_keys(count: int, seed: int) -> jax.Array:
    """[count] typed keys."""
    return jax.random.split(jax.random.key(seed), count)


def assert_law(draws, probs, p_value=1e-6):
    """Chi-square of ids [n] against their law [V]. The seeds are fixed; by chance this fails once in a million.

    Impossible ids must not occur; ids expected fewer than five times are pooled.
    """
    counts, probs = np.bincount(np.asarray(draws).reshape(-1), minlength=len(probs)), np.asarray(probs, np.float64)
    assert counts.shape == probs.shape and counts[probs == 0].sum() == 0, (counts, probs)
    expected = counts.sum() * probs
    rare = expected < 5
    counts = np.append(counts[~rare], counts[rare].sum())
    expected = np.append(expected[~rare], expected[rare].sum())
    used = expected > 0
    statistic = ((counts - expected)[used] ** 2 / expected[used]).sum()
    assert stats.chi2.sf(statistic, max(1, used.sum() - 1)) > p_value, (counts, expected)
