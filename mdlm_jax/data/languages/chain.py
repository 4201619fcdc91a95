"""Exact inference on a chain of hidden states: the forward and backward messages, in log space.

One chain serves all the languages: evidence[n, i, s] = log p(what is seen at position i | state s), zero where nothing
is seen. The sum-product recursions are those of Rabiner (1989), "A Tutorial on Hidden Markov Models", section III.
"""

import numpy as np

from mdlm_jax.data.languages.base import log_sum_exp, safe_log

_SAFE = 1e-280  # above it, no term that matters can have underflowed in a float64 product
_BLOCK = 1 << 22  # numbers alive at once in the careful path


def log_matmul(x: np.ndarray, matrix: np.ndarray) -> np.ndarray:
    """log(exp(x) @ matrix), float64 [num, T], for log-weights x [num, S] and a non-negative matrix [S, T].

    A matrix product after subtracting each row's maximum; the rows where a term may have underflowed are done again as
    a log-sum-exp over every pair, so that the answer is right at any ratio of the weights.
    """
    top = np.max(x, axis=-1, keepdims=True)
    top = np.where(np.isfinite(top), top, 0.0)
    product = np.exp(x - top) @ matrix
    out = safe_log(product) + top
    unsafe = np.flatnonzero(np.any(product < _SAFE, axis=-1))
    step = max(1, _BLOCK // matrix.size)
    for rows in (unsafe[i : i + step] for i in range(0, unsafe.size, step)):
        out[rows] = log_sum_exp(x[rows][:, :, None] + safe_log(matrix), axis=1)
    return out


def forward_messages(initial: np.ndarray, transition: np.ndarray, evidence: np.ndarray) -> np.ndarray:
    """log p(s_i, evidence before i), float64 [num, L, S]; position i's own evidence is left out."""
    messages = np.empty_like(evidence)
    messages[:, 0] = safe_log(initial)
    for i in range(1, evidence.shape[1]):
        messages[:, i] = log_matmul(messages[:, i - 1] + evidence[:, i - 1], transition)
    return messages


def backward_messages(transition: np.ndarray, evidence: np.ndarray) -> np.ndarray:
    """log p(evidence after i | s_i), float64 [num, L, S]."""
    messages = np.zeros_like(evidence)
    for i in range(evidence.shape[1] - 2, -1, -1):
        messages[:, i] = log_matmul(messages[:, i + 1] + evidence[:, i + 1], transition.T)
    return messages


def state_weights(initial: np.ndarray, transition: np.ndarray, evidence: np.ndarray) -> np.ndarray:
    """log p(s_i, all the evidence), float64 [num, L, S]."""
    return forward_messages(initial, transition, evidence) + evidence + backward_messages(transition, evidence)


def one_hot_log(tokens: np.ndarray, size: int) -> np.ndarray:
    """0 at the token and -inf elsewhere, float64 [..., size]: the evidence of a token that is seen."""
    return np.where(np.arange(size) == tokens[..., None], 0.0, -np.inf)


def stationary(transition: np.ndarray) -> np.ndarray:
    """The stationary law [S] of a transition matrix with a single recurrent class: p A = p, sum p = 1."""
    size = len(transition)
    system = np.vstack([transition.T - np.eye(size), np.ones(size)])
    law = np.linalg.lstsq(system, np.append(np.zeros(size), 1.0), rcond=None)[0]
    law = np.maximum(law, 0.0)
    return law / law.sum()
