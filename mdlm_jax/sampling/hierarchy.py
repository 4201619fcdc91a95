"""dInfer's hierarchical rule (arXiv 2510.08666): what is sure, and the surest of every run of masks."""

import dataclasses
from typing import Self

import jax
import jax.numpy as jnp

from mdlm_jax.core.draws import Drawn
from mdlm_jax.sampling.confidence import fraction
from mdlm_jax.sampling.decoder import Look, decoder
from mdlm_jax.sampling.threshold import Threshold


@decoder
class Hierarchy(Threshold):
    """As `Threshold`, and of every run of neighbouring masks the surest one too, if its probability is above ``low``.

    What is written splits the runs, so that the next step has more of them and tokens written together lie apart.

    Attributes:
      threshold: probability from which a mask is revealed wherever it is.
      low: for the surest of a run; above ``threshold`` it changes nothing.
    """

    threshold: float = 0.92
    low: float = 0.62

    def __post_init__(self):
        super().__post_init__()
        fraction("low", self.low)

    def one_by_one(self) -> Self:
        return dataclasses.replace(super().one_by_one(), low=1.0)

    def reveal(self, drawn: Drawn, look: Look) -> jax.Array:
        split = surest_of_runs(drawn.top_log_prob, look.masked) & (jnp.exp(drawn.top_log_prob) > self.low)
        return super().reveal(drawn, look) | split


def surest_of_runs(score: jax.Array, candidates: jax.Array) -> jax.Array:
    """[B, W] bool: of every run of neighbouring candidates that of the largest score; of equal ones the leftmost."""
    starts = candidates & ~jnp.pad(candidates, ((0, 0), (1, 0)))[:, :-1]
    run = jnp.where(candidates, jnp.cumsum(starts, axis=1), 0)
    order = jax.vmap(lambda run, worse: jnp.lexsort((worse, run)))(run, -score)  # runs together, their best first
    sorted_runs = jnp.take_along_axis(run, order, axis=1)
    first = sorted_runs != jnp.pad(sorted_runs, ((0, 0), (1, 0)))[:, :-1]  # 0, what is no candidate, has none
    return jnp.take_along_axis(first, jnp.argsort(order, axis=1), axis=1)
