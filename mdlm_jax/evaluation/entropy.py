"""Unigram entropy of samples: the figure that must stand beside every generative perplexity.

A sampler that repeats itself, or whose draws are imprecise, has a low generative perplexity and a low entropy
(arXiv 2409.02908); only the pair tells.
"""

import numpy as np


def unigram_entropy(tokens: np.ndarray, vocab_size: int) -> np.ndarray:
    """Entropy of the token counts within each sequence, -sum_v (n_v / L) log(n_v / L), in nats.

    At most log min(L, vocab_size). The papers report the mean over sequences.

    Args:
      tokens: [..., L] integer ids in [0, vocab_size).
      vocab_size: number of ids.
    Returns:
      float64 [...].
    Raises:
      ValueError: sequences are empty, or an id is outside the vocabulary.
      TypeError: tokens are not integers.
    """
    tokens = np.asarray(tokens)
    if not np.issubdtype(tokens.dtype, np.integer):
        raise TypeError(f"tokens: must be integers, not {tokens.dtype}")
    if tokens.ndim == 0 or tokens.shape[-1] == 0:
        raise ValueError(f"tokens: of shape {tokens.shape} hold no sequence; give one of at least one token")
    if tokens.size and not (0 <= tokens.min() and tokens.max() < vocab_size):
        raise ValueError(f"tokens: hold ids {tokens.min()}..{tokens.max()}; they must lie in [0, "
                         f"vocab_size={vocab_size})")
    rows = tokens.reshape(-1, tokens.shape[-1])
    return np.array([_entropy(row) for row in rows]).reshape(tokens.shape[:-1])


def _entropy(row: np.ndarray) -> float:
    shares = np.unique(row, return_counts=True)[1] / row.size
    return float(-(shares * np.log(shares)).sum())
