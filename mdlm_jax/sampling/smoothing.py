"""dInfer's iteration smoothing (arXiv 2510.08666): a mask is fed with what the last forward expected to stand there."""

import dataclasses
from typing import Self

import jax
import jax.numpy as jnp

from mdlm_jax.core.draws import enough, over_wanted
from mdlm_jax.core.prediction import Asked, Prediction
from mdlm_jax.core.reduction import chunk_length
from mdlm_jax.models.denoise import Call
from mdlm_jax.models.vocabulary import lookup
from mdlm_jax.sampling.confidence import fraction
from mdlm_jax.sampling.decoder import Look, Plan, check, decoder
from mdlm_jax.sampling.threshold import Threshold


@decoder
class Smoothed(Threshold):
    """`Threshold` on softer masks: in place of E[mask] the network reads E[mask] + w sum_v p(v) E[v], with the law p
    of the last forward that ran on the position, and a threshold that begins at 1.

    In a row's forward number n = 0, 1, ... of all its blocks p is given the weight
    w = min(weight_start + weight_growth n, weight), and the threshold is max(1 - threshold_decay n, threshold). p is
    the network's own law, the mask's share in it; E its embedding table. Tokens that are written are read as usual.

    Attributes:
      embedding: [V, D], E.
      threshold: in the end.
      weight: of p, in the end.
      weight_start: of p, in the first forward.
      weight_growth: how much more it is in every further one.
      threshold_decay: how much lower the threshold is in every further one.
    """

    threshold: float = 0.9
    embedding: Asked = None
    weight: float = 0.3
    weight_start: float = 0.15
    weight_growth: float = 0.02
    threshold_decay: float = 0.02

    lasts = True

    def __post_init__(self):
        super().__post_init__()
        if self.embedding is None:
            raise ValueError(f"embedding=None: {type(self).__name__} needs the network's table of embeddings; give "
                             "embedding=[V, D]")
        for name in ("weight", "weight_start"):
            fraction(name, getattr(self, name))
        for name in ("weight_growth", "threshold_decay"):
            check(name, getattr(self, name), lambda x: x >= 0, "must be 0 or positive")

    def one_by_one(self) -> Self:
        return dataclasses.replace(super().one_by_one(), weight=0.0, weight_start=0.0)

    def check(self, call: Plan) -> None:
        super().check(call)
        if call.contract == "causal":
            raise ValueError("decoder: Smoothed makes masks softer, which a causal network never sees; take another")
        if call.guidance:
            raise ValueError(f"guidance={call.guidance}: masks are made softer by one law, and guidance has two; "
                             "leave it at 0")
        if call.cache == "block":
            raise ValueError("cache='block': the masks of later blocks are made softer by forwards that it leaves out, "
                             "so it would not be exact; use cache='none'")
        if call.shifted and call.cache != "none":
            raise ValueError(f"cache={call.cache!r}: a window of a shifted network does not score its first token, "
                             "which would be made softer all the same; use cache='none'")

    def begin(self, look: Look, hidden: Asked) -> jax.Array:
        """[B, L, D]: what is added to each mask of the canvas."""
        return jnp.zeros((*look.canvas.shape, self.embedding.shape[1]), self.embedding.dtype)

    def inputs(self, call: Call, look: Look, state: jax.Array) -> Call:
        index = jnp.minimum(call.index, state.shape[1] - 1)
        softer = jnp.take_along_axis(state, index[..., None], axis=1)
        masked = (call.tokens == self.mask_id) & (call.index < state.shape[1])
        plain = lookup(self.embedding, call.tokens, ("vocab", "embed"))
        return dataclasses.replace(call, embeddings=plain + jnp.where(masked[..., None], softer, 0))

    def heard(self, prediction: Prediction, call: Call, look: Look, state: jax.Array) -> jax.Array:
        rows, length = call.tokens.shape
        index = jnp.minimum(call.index, state.shape[1] - 1)
        editable = jnp.take_along_axis(look.canvas.editable, index, axis=1) & (call.index < state.shape[1])
        masked = editable & (call.tokens == self.mask_id)
        table = scored_rows(self.embedding, prediction)

        def expected(hidden):
            p = jax.nn.softmax(prediction.head(hidden))
            return jnp.einsum("bcv,vd->bcd", p.astype(table.dtype), table, preferred_element_type=p.dtype)

        chunk = min(length, enough(rows), chunk_length(rows, prediction.logits_held, self.head_budget))
        found = over_wanted(expected, prediction.hidden, masked, chunk)
        weight = jnp.minimum(self.weight_start + self.weight_growth * look.updates, self.weight)
        softer = (weight[:, None, None] * found).astype(state.dtype)
        put = jax.vmap(lambda row, at, new: row.at[at].set(new, mode="drop"))
        return put(state, jnp.where(masked, index, state.shape[1]), softer)

    def least(self, look: Look) -> jax.Array:
        return jnp.maximum(1 - self.threshold_decay * look.updates, self.threshold)[:, None]


def scored_rows(embedding: jax.Array, prediction: Prediction) -> jax.Array:
    """Rows of the table [V, D] that the head scores.

    Raises:
      ValueError: there are fewer.
    """
    table = embedding[: prediction.num_columns]
    if table.shape[0] < prediction.num_columns:
        raise ValueError(f"embedding: has {table.shape[0]} rows, and the head scores {prediction.num_columns} ids; "
                         "give the whole table")
    return table
