"""MAUVE: how far apart two sets of texts are, from vectors of them (Pillutla et al., arXiv 2102.01454 and 2212.14578).

Vectors of both sets, of any extractor, are scaled to length 1, turned to their principal axes and gathered in k
clusters together; p and q are the shares of each set in the clusters. With r = w p + (1 - w) q for w in (0, 1)

    (exp(-c KL(q | r)),  exp(-c KL(p | r)))

is a curve from one set to the other, and MAUVE the area under it: 1 of equal shares, c B(c, c + 1) = 1/252 of disjoint
ones for c = 5. Few texts look alike more than many, and two sets of one law never reach 1: a value says something only
beside the `ceiling` of the same sizes, and beside values of the same extractor, k, c and lengths.

Numpy; the clusters are scikit-learn's (pip install "mdlm_jax[eval]").
"""

import dataclasses
import math

import numpy as np

from mdlm_jax.config import ConfigError

_FEWEST = 4  # texts of each set


@dataclasses.dataclass(frozen=True)
class Mauve:
    """What two sets have in common.

    Attributes:
      value: MAUVE, in (0, 1].
      smoothed: the same with half a text more in every cluster of both (MAUVE*), which few texts flatter less.
      frontier_integral: in [0, 1], 0 of equal shares.
      clusters: k.
    """

    value: float
    smoothed: float
    frontier_integral: float
    clusters: int


def mauve(p, q, *, clusters: int | None = None, scale: float = 5.0, points: int = 25, seed: int = 0) -> Mauve:
    """Of two sets of feature vectors, [N, D] and [M, D], one a text.

    Args:
      clusters: k; a tenth of the smaller set unless given.
      scale: c. points: of the curve, but for its two ends.
      seed: of the clusters, which are the best of five beginnings.

    Raises:
      ConfigError: sets of other shapes, too few texts, values that are not finite, or no scikit-learn.
    """
    p, q = _checked("p", p), _checked("q", q)
    if p.shape[1] != q.shape[1]:
        raise ConfigError(f"mauve: vectors of {p.shape[1]} and of {q.shape[1]} numbers; take both from one extractor")
    fewest = min(len(p), len(q))
    k = max(2, round(fewest / 10)) if clusters is None else clusters
    if not 2 <= k <= len(p) + len(q):
        raise ConfigError(f"mauve: clusters={k}: must lie in [2, {len(p) + len(q)}], the number of texts")
    labels = _clusters(np.concatenate([q, p]), k, seed)
    counts = [np.bincount(part, minlength=k).astype(np.float64) for part in (labels[len(q) :], labels[: len(q)])]
    a, b = (count / count.sum() for count in counts)
    smooth_a, smooth_b = ((count + 0.5) / (count + 0.5).sum() for count in counts)
    return Mauve(area(a, b, scale=scale, points=points), area(smooth_a, smooth_b, scale=scale, points=points),
                 frontier_integral(a, b), k)


def ceiling(p, *, pairs: int = 3, seed: int = 0, **how) -> tuple[float, float]:
    """MAUVE between halves of one set [N, D], drawn anew ``pairs`` times: mean and standard deviation.

    What sets of N / 2 texts of one law reach. To be compared with it, samples must be N / 2, against N / 2 of the law.
    """
    p, rng = _checked("p", p), np.random.default_rng(seed)
    found, half = [], len(p) // 2
    for number in range(pairs):
        order = rng.permutation(len(p))
        found.append(mauve(p[order[:half]], p[order[half : 2 * half]], seed=seed + number, **how).value)
    return float(np.mean(found)), float(np.std(found, ddof=1)) if pairs > 1 else math.nan


def area(p: np.ndarray, q: np.ndarray, scale: float = 5.0, points: int = 25) -> float:
    """Under the divergence curve of two laws [K]: mean of the trapezoids along either axis."""
    weights = np.linspace(1e-6, 1 - 1e-6, points)[:, None]
    between = weights * p + (1 - weights) * q
    x, y = (np.exp(-scale * _kl(law, between)) for law in (q, p))
    x, y = np.concatenate([[1.0], x, [0.0]]), np.concatenate([[0.0], y, [1.0]])  # from q, w = 0, to p
    return float((np.trapezoid(x, y) - np.trapezoid(y, x)) / 2)


def frontier_integral(p: np.ndarray, q: np.ndarray) -> float:
    """2 sum [(p + q) / 4 - p q (ln p - ln q) / (2 (p - q))] of two laws [K] (Liu et al., arXiv 2106.07898)."""
    total = p + q
    with np.errstate(divide="ignore", invalid="ignore"):
        product = np.where(np.isclose(p, q, rtol=1e-9), p, p * q * (np.log(p) - np.log(q)) / (p - q))
    product = np.where((p == 0) | (q == 0), 0.0, product)
    return float(2 * np.sum(total / 4 - product / 2))


def _kl(law: np.ndarray, others: np.ndarray) -> np.ndarray:
    """KL(law | each of others [R, K]), [R]."""
    with np.errstate(divide="ignore", invalid="ignore"):
        terms = np.where(law > 0, law * (np.log(law) - np.log(others)), 0.0)
    return terms.sum(-1)


def _checked(name: str, features) -> np.ndarray:
    features = np.asarray(features, np.float64)
    if features.ndim != 2 or len(features) < _FEWEST:
        raise ConfigError(f"mauve: {name} has shape {features.shape}; it must be a vector a text, [N, D], of at least "
                          f"{_FEWEST} texts (thousands, to say something)")
    if not np.isfinite(features).all():
        raise ConfigError(f"mauve: {name} holds values that are not finite; look at the extractor")
    return features


def _clusters(features: np.ndarray, k: int, seed: int, variance: float = 0.9) -> np.ndarray:
    """The cluster of every row."""
    try:
        from sklearn.cluster import KMeans
    except ImportError:
        raise ConfigError('mauve: needs scikit-learn; pip install "mdlm_jax[eval]"') from None
    features = features / np.maximum(np.linalg.norm(features, axis=1, keepdims=True), 1e-30)
    features = features - features.mean(0)
    left, singular, _ = np.linalg.svd(features, full_matrices=False)
    explained = np.cumsum(singular**2) / max((singular**2).sum(), 1e-300)
    kept = int(np.searchsorted(explained, variance)) + 1
    return KMeans(k, n_init=5, max_iter=500, random_state=seed).fit(left[:, :kept] * singular[:kept]).labels_
