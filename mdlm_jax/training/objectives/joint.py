"""ADJUST's joint layer (arXiv 2509.22738): what a frozen network would say after each further token, told by one layer.

A row of training data is a trajectory: the tokens that the network itself wrote, one a forward, and the rank of each in
the order of writing. State j of it shows the tokens of rank below j. From a state s drawn uniformly, the layer
(`models.joint`) is told of k further tokens, one pass each, and the loss is

    sum over positions still masked in state s + k of  KL(network at state s + k || layer after k passes),

over the number of tokens that were written. By the chain rule the layer's own part of KL(p_one-by-one || p_joint) is
that of the position to be written next alone; here are all, since the order of writing goes by all entropies. Depths
k = 1..S have the probabilities softmax(2^0, 2^-1, ..., 2^{1-S}), as in the published code.

The network's order of writing leads to few of all states. Where the layer is a little off it writes elsewhere, and what
it was never shown it may get all wrong; two remedies that the paper does not have:

    any_order   tokens are shown in a random order, so that every state occurs
    on_policy   the k tokens are what the layer itself would write, drawn from its law after each pass at the masked
                position of least entropy
"""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from mdlm_jax.core.loss_parts import LossParts
from mdlm_jax.core.prediction import Prediction
from mdlm_jax.data.trajectories import NEVER
from mdlm_jax.models import flops, joint
from mdlm_jax.training.objectives.base import EDIT, LEVEL, NOISE, SECOND, Objective, scored


class _State(NamedTuple):
    """tokens [B, L], masks included; left [B, L] bool: the masks that are to be written, in the block where there are
    blocks."""

    tokens: jax.Array
    left: jax.Array


@dataclasses.dataclass(frozen=True)
class JointObjective(Objective):
    """Trains the joint layer; the network's weights stay as they are.

    The batch also holds ``rank`` [B, L] int32, see `data.trajectories`: negative for what was given, `NEVER` for what
    was never written.

    Attributes:
      passes: S, the most passes that are unrolled; tokens a forward may then be S + 1.
      block_length: the layer sees the block of so many tokens that is being written alone, as beside a cache; 0: the
        whole row.
      any_order: the share of rows that are shown in a random order, of each block where there are blocks.
      on_policy: the share of windows whose tokens the layer draws, at temperature 1. ``suppress``: ids that it never
        draws, as trajectories were written.
    """

    coupling: str = "iid"
    passes: int = 3
    block_length: int = 0
    any_order: float = 0.0
    on_policy: float = 0.0
    suppress: tuple[int, ...] = ()

    one_level = False

    def __post_init__(self):
        super().__post_init__()
        if self.passes < 1:
            raise ValueError(f"passes={self.passes}: must be at least 1")
        for name in ("any_order", "on_policy"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name}={getattr(self, name)}: must lie in [0, 1], a share")
        if self.network.attention not in ("bidirectional", "block_causal"):
            raise ValueError(f"network.attention={self.network.attention!r}: must be bidirectional or block_causal, "
                             "whose networks fill in masks")

    def init(self, key: jax.Array) -> dict:
        return super().init(key) | {"joint": joint.init(self.network, jax.random.fold_in(key, 1))}

    def train_flops(self, rows: int, length: int) -> int:
        """Two forwards of the network, and the passes with their gradient and the head's; the head once more a pass
        where tokens are drawn."""
        return flops.joint_train_flops(self.network, rows, length, self.passes, self.on_policy > 0)

    def depths(self) -> np.ndarray:
        """[S], the probabilities of k = 1..S."""
        weights = np.exp(0.5 ** np.arange(self.passes))
        return weights / weights.sum()

    def loss_at(self, trainable, batch, key, rows, u):
        del u
        batch = batch | {"rank": self.ranks(batch["rank"], key, rows)}
        first, depth = self.window(batch["rank"], key, rows)
        prediction, target, left = self.unrolled(trainable, batch, first, depth, key, rows)
        kl = self.reduce(prediction, teacher=target).kl
        return LossParts.of(scored(batch), joint=jnp.where(left & (depth > 0)[:, None], kl, 0.0))

    def ranks(self, rank: jax.Array, key: jax.Array, rows: jax.Array) -> jax.Array:
        """[B, L]: the ranks in which the tokens are shown."""
        if not self.any_order:
            return rank
        length, written = rank.shape[1], (rank >= 0) & (rank < NEVER)
        block = jnp.arange(length) // (self.block_length or length)

        def shown(key, rank, written):
            use, order = jax.random.split(key)
            drawn = jnp.lexsort((jax.random.uniform(order, (length,)), block, ~written))  # what was written first
            own = jnp.where(written, jnp.argsort(drawn), rank)
            return jnp.where(jax.random.bernoulli(use, self.any_order), own, rank).astype(rank.dtype)

        return jax.vmap(shown)(self.noise_keys(key, rows, LEVEL), rank, written)

    def window(self, rank: jax.Array, key: jax.Array, rows: jax.Array) -> tuple[jax.Array, jax.Array]:
        """[B] each: the state to begin with, and the passes from it, so few that a mask is left: of the block, where
        there are blocks."""
        keys, rank = self.noise_keys(key, rows, NOISE), jnp.where(rank < NEVER, rank, -1)
        ends = jnp.maximum(rank.max(1), 0)
        first = jax.vmap(lambda key, end: jax.random.randint(key, (), 0, end + 1))(keys, ends)
        if self.block_length:
            ends = jnp.where(self._now(rank, first), rank, 0).max(1)
        keys, law = self.noise_keys(key, rows, SECOND), jnp.asarray(self.depths())
        depth = 1 + jax.vmap(lambda key: jax.random.choice(key, self.passes, p=law))(keys)
        return first, jnp.minimum(depth, ends - first)

    def unrolled(self, trainable, batch, first, depth, key, rows):
        """The layer's prediction after ``depth`` [B] passes from state ``first`` [B], the network's own there, and what
        is still masked, [B, L] bool."""
        frozen = jax.lax.stop_gradient({"network": trainable["network"]})
        state, segment = self._begin(batch, first), self.seen(batch, first)
        base = jax.lax.stop_gradient(self.denoise(frozen, batch, state.tokens, None, key, rows))
        hidden = found = base.hidden
        own = self._on_policy(key, rows) if self.on_policy else None
        for j in range(1, self.passes + 1):
            place, token = batch["rank"] == (first + j - 1)[:, None], batch["tokens"]
            if own is not None:
                chosen, drawn = self._written_itself(Prediction(hidden, base.head), state.left, key, rows, j)
                place, token = jnp.where(own, chosen, place), jnp.where(own, drawn, token)
            place = place & (j <= depth)[:, None]
            state = _State(jnp.where(place, token, state.tokens), state.left & ~place)
            hidden = joint.step(self.network, trainable["joint"], frozen["network"]["embedding"], state.tokens, hidden,
                                attention_mask=segment, positions=batch["positions"])
            found = jnp.where((depth == j)[:, None, None], hidden, found)
        target = self.denoise(frozen, batch, state.tokens, None, key, rows)
        return Prediction(found, base.head), jax.lax.stop_gradient(target), state.left

    def seen(self, batch: dict, first: jax.Array) -> jax.Array:
        """[B, L] int32, the layer's segments: its positions see those with the same number, and none with 0."""
        segment = batch["attention_mask"]
        return jnp.where(self._now(batch["rank"], first), segment, 0) if self.block_length else segment

    def _begin(self, batch: dict, first: jax.Array) -> _State:
        """The tokens of rank below ``first`` [B], masks elsewhere."""
        tokens, rank = batch["tokens"], batch["rank"]
        masked = rank >= first[:, None]
        left = masked & (rank < NEVER)
        if self.block_length:
            left = left & self._now(rank, first)
        return _State(jnp.where(masked, jnp.asarray(self.process.mask_id, tokens.dtype), tokens), left)

    def _on_policy(self, key: jax.Array, rows: jax.Array) -> jax.Array:
        """[B, 1] bool: whose tokens the layer draws."""
        keys = self.noise_keys(key, rows, EDIT)
        return jax.vmap(lambda key: jax.random.bernoulli(key, self.on_policy))(keys)[:, None]

    def _written_itself(self, prediction: Prediction, left: jax.Array, key, rows, j: int):
        """Where the layer would write next, [B, L] bool, and draws [B, L]; no gradient."""
        never = jnp.asarray(self.suppress, jnp.int32)
        drawn = self.drawn(prediction, key, rows, j, ("sample", "entropy"),
                           sharpen=lambda logits: logits.at[..., never].set(-jnp.inf))
        index = jnp.where(left, drawn.entropy, jnp.inf).argmin(1)
        return (jnp.arange(left.shape[1]) == index[:, None]) & left, drawn.sample

    def _now(self, rank: jax.Array, first: jax.Array) -> jax.Array:
        """[B, L] bool: the block in which the token of rank ``first`` [B] stands."""
        block = jnp.arange(rank.shape[1]) // self.block_length
        return block == jnp.where(rank == first[:, None], block, -1).max(1, keepdims=True)
