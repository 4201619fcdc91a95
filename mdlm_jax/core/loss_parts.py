"""A loss as named per-token terms with their denominator, never only a scalar.

Sums and counts add over microbatches, hosts and steps; means do not. A bound in bits per byte is the sum of *all* its
terms over the bytes the counted tokens stand for.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class LossParts:
    """Per-token losses in nats.

    Attributes:
      terms: name -> [B, L]; ``diffusion``, and where the bound needs them ``reconstruction`` and ``prior``. Unbiased
        estimates, so single values may be large; zero outside ``loss_mask``.
      loss_mask: [B, L] bool, the tokens that count.
      surrogate: scalar to add to the differentiated sum and to no reported value (score-function gradients), or None.
      router: sums over tokens of the expert layers' routers (`models.moe.routing.RouterStats`), or None; they add.
      counts: [B], what each row counts in the denominator; None: its tokens.
    """

    terms: dict[str, jax.Array]
    loss_mask: jax.Array
    surrogate: jax.Array | None = None
    router: Any = None
    counts: jax.Array | None = None

    @classmethod
    def of(
        cls, loss_mask: jax.Array, surrogate: jax.Array | None = None, router: Any = None, **terms: jax.Array
    ) -> "LossParts":
        """Zeroes every term outside ``loss_mask``."""
        counted = {name: jnp.where(loss_mask, term, 0.0) for name, term in terms.items()}
        return cls(counted, loss_mask, surrogate, router)

    def per_row(self) -> jax.Array:
        """[B] nats a row, all terms."""
        return jnp.asarray(sum(term.sum(-1) for term in self.terms.values()))

    def row_counts(self) -> jax.Array:
        """[B] float32, the denominator of each row."""
        if self.counts is not None:
            return self.counts
        return self.loss_mask.sum(-1, dtype=jnp.int32).astype(jnp.float32)

    def per_answer(self) -> "LossParts":
        """Each row's terms divided by its number of counted tokens, and the row counted once: a mean of rows' means.

        The loss of supervised fine-tuning in LLaDA (arXiv 2502.09992), sum_r (1 / A_r) sum_i loss_i / B, with A_r the
        length of row r's answer. Rows without one count nothing. A ``surrogate`` must be a mean times the tokens.
        """
        tokens = self.row_counts()
        each = 1.0 / jnp.maximum(tokens, 1.0)
        rows = (tokens > 0).astype(jnp.float32)
        surrogate = self.surrogate
        if surrogate is not None:
            surrogate = surrogate * rows.sum() / jnp.maximum(tokens.sum(), 1.0)
        terms = {name: term * each[:, None] for name, term in self.terms.items()}
        return dataclasses.replace(self, terms=terms, surrogate=surrogate, counts=rows)

    def totals(self) -> "LossTotals":
        """Sums over the batch."""
        sums = {name: term.sum() for name, term in self.terms.items()}
        return LossTotals(sums, self.row_counts().sum())

    def objective(self) -> jax.Array:
        """The scalar whose gradient trains: the sum of all terms, and the surrogate. Divide by the total count."""
        total = jnp.asarray(sum(term.sum() for term in self.terms.values()))
        return total if self.surrogate is None else total + self.surrogate


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class LossTotals:
    """Sums of each term (nats) and the number of tokens they cover; `+` accumulates."""

    sums: dict[str, jax.Array]
    count: jax.Array

    def __add__(self, other: "LossTotals") -> "LossTotals":
        return jax.tree.map(lambda a, b: a + b, self, other)

    def mean(self) -> jax.Array:
        """Nats per token, all terms."""
        return sum(self.sums.values()) / self.count
