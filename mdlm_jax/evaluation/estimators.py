"""Under which masks an answer is measured: what a forward pass hides, and what a hidden token counts.

An estimate is the mean over samples of a sum over passes. With A tokens in the answer (for a block-causal network: in a
block of it, whose passes are those of all blocks at once):

    Counts      one pass: k ~ U{1..A} tokens hidden at random, each counts A / k. LLaDA's estimate of the bound
                (arXiv 2502.09992, appendix B; arXiv 2409.02908, prop. 3.1)
    Subsets     every set of tokens hidden once, 2^A - 1 passes; each token of a set of k counts 1 / (k C(A, k)).
                The mean of Counts itself, without any noise
    AnyOrder    A passes along a random order: all tokens are hidden but the first A - k of it, k = A..1, and count
                1 / k each. The same mean, for more forwards: the masks of an order hang together
    ChainRule   A passes from left to right: pass j hides the tokens from the j-th on, the j-th counts alone
                (SMDM, arXiv 2410.18514). The log-probability of writing from left to right, exactly
    Causal      one pass, nothing hidden, everything counts, of a network that reads from left to right
"""

import dataclasses
from typing import NamedTuple, Protocol

import jax
import jax.numpy as jnp

from mdlm_jax.core import block_counts, counts, levels


class Masks(NamedTuple):
    """Of one pass over rows [B, L]: what is hidden, bool, and what each token counts, float32; 0 is not computed."""

    hidden: jax.Array
    weight: jax.Array


class Estimator(Protocol):
    """Frozen and hashable: a program is compiled for it."""

    def passes(self, tokens: int) -> int:
        """Of a sample, where the largest block of the answer has so many."""

    def masks(self, keys: jax.Array, sample: jax.Array, step: jax.Array, answer: jax.Array, blocks: int) -> Masks:
        """Pass ``step`` [B] of ``sample`` [B], whose keys [B] these are; ``answer``: [B, L] bool, in blocks of equal
        length."""


@dataclasses.dataclass(frozen=True)
class Causal:
    """One pass."""

    def passes(self, tokens: int) -> int:
        return 1

    def masks(self, keys, sample, step, answer, blocks) -> Masks:
        return Masks(jnp.zeros_like(answer), answer.astype(jnp.float32))


@dataclasses.dataclass(frozen=True)
class Counts:
    """``strata``: sample j has its level in part j % strata of so many equal ones."""

    strata: int

    def passes(self, tokens: int) -> int:
        return 1

    def masks(self, keys, sample, step, answer, blocks) -> Masks:
        level, order = jax.vmap(jax.random.split)(keys).T
        part = sample % self.strata
        u = jax.vmap(lambda k, j: levels.unit_levels(k, self.strata, "stratified", j[None])[0])(level, part)
        unit = block_counts.block_levels(u, blocks, paired=False)
        (draw,) = block_counts.draw_block_counts(order, unit, answer)
        return Masks(draw.masked, jnp.where(draw.masked, draw.weight, 0.0))


@dataclasses.dataclass(frozen=True)
class Subsets:
    """Pass j hides the tokens whose bits are set in j + 1, of blocks that have so many."""

    def passes(self, tokens: int) -> int:
        return (1 << tokens) - 1

    def masks(self, keys, sample, step, answer, blocks) -> Masks:
        parts, rank, size = _ranked(answer, blocks)
        number = (step + 1)[:, None, None]
        hidden = parts & ((number >> jnp.minimum(rank, 30)) & 1).astype(bool) & (number < 1 << jnp.minimum(size, 30))
        k, size = hidden.sum(-1, keepdims=True), size.astype(jnp.float32)
        log_sets = _log_factorial(size) - _log_factorial(k) - _log_factorial(size - k)
        weight = jnp.where(hidden, jnp.exp(-log_sets) / jnp.maximum(k, 1), 0.0)
        return Masks(hidden.reshape(answer.shape), weight.reshape(answer.shape))


@dataclasses.dataclass(frozen=True)
class AnyOrder:
    """Pass j hides what is not among the first j of the sample's order."""

    def passes(self, tokens: int) -> int:
        return tokens

    def masks(self, keys, sample, step, answer, blocks) -> Masks:
        parts, _, size = _ranked(answer, blocks)
        scores = counts.random_scores(keys, answer.shape[1]).reshape(parts.shape)
        order = jnp.argsort(jnp.argsort(jnp.where(parts, scores, jnp.uint32(2**32 - 1)), axis=-1), axis=-1)
        hidden = parts & (order >= step[:, None, None])
        weight = jnp.where(hidden, 1.0 / jnp.maximum(size - step[:, None, None], 1), 0.0)
        return Masks(hidden.reshape(answer.shape), weight.reshape(answer.shape))


@dataclasses.dataclass(frozen=True)
class ChainRule:
    """Pass j scores the j-th token."""

    def passes(self, tokens: int) -> int:
        return tokens

    def masks(self, keys, sample, step, answer, blocks) -> Masks:
        parts, rank, _ = _ranked(answer, blocks)
        step = step[:, None, None]
        hidden, scored = parts & (rank >= step), parts & (rank == step)
        return Masks(hidden.reshape(answer.shape), scored.reshape(answer.shape).astype(jnp.float32))


def _ranked(answer: jax.Array, blocks: int) -> tuple[jax.Array, jax.Array, jax.Array]:
    """[B, blocks, K]: the answer, its tokens' places in their block; and how many each block has, [B, blocks, 1]."""
    parts = answer.reshape(len(answer), blocks, -1)
    rank = jnp.cumsum(parts, axis=-1) - 1
    return parts, rank, parts.sum(-1, keepdims=True)


def _log_factorial(n: jax.Array) -> jax.Array:
    return jax.lax.lgamma(n.astype(jnp.float32) + 1.0)
