"""Feature vectors: what is pooled, in whatever batches."""

import jax.numpy as jnp
import numpy as np
import pytest

from mdlm_jax.config import ConfigError
from mdlm_jax.core.prediction import Prediction
from mdlm_jax.evaluation.features import hidden_features

ROWS = np.random.default_rng(0).integers(0, 9, (7, 5))


def network(params, tokens):
    """Hidden states [token, token^2 + position]."""
    tokens = tokens.astype(jnp.bfloat16)
    places = jnp.arange(tokens.shape[1], dtype=tokens.dtype)
    return Prediction.from_logits(params * jnp.stack([tokens, tokens**2 + places], -1))


@pytest.mark.parametrize("batch", [1, 3, 7, 64])
def test_mean_and_last_of_the_final_states(batch):
    hidden = np.stack([ROWS, ROWS**2 + np.arange(5)], axis=-1) * 2.0
    for pooling, expected in (("mean", hidden.mean(1)), ("last", hidden[:, -1])):
        found = hidden_features(network, jnp.bfloat16(2), ROWS, pooling=pooling, batch=batch)
        assert found.dtype == np.float32
        np.testing.assert_allclose(found, expected, rtol=1e-6)


@pytest.mark.parametrize(("rows", "pooling", "said"), [
    (ROWS, "first", "pooling='first': choose one of mean, last"),
    (ROWS[0], "mean", r"rows: have shape \(5,\); they must be \[N, L\]"),
    (ROWS[:0], "mean", r"rows: have shape \(0, 5\)"),
])
def test_mistakes_are_named(rows, pooling, said):
    with pytest.raises(ConfigError, match=said):
        hidden_features(network, jnp.bfloat16(2), rows, pooling=pooling)
