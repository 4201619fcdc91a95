"""Who sees whom: five contracts, one rule.

Every query has a number ``when`` and every key an interval [``first``, ``last``]; a query sees a key if its number lies
in the interval and both belong to the same segment (a number > 0; 0 is padding, which nothing sees and which sees
nothing). With i the index of a token in its row and b its block, i // block_length:

    contract        when        first       last
    bidirectional   0           0           0
    causal          i           i           inf      keys up to one's own
    block_causal    b           b           inf      blocks up to one's own (LLaDA2)
    permutation     r           r           inf      r the given order; equal numbers see each other (any-subset)
    two_stream      2r | 2r+1   2r | 2r+1   2r | inf noisy | clean half, r = b or the given order

In the two-stream contract the row is [noisy; clean] (BD3-LM, arXiv 2503.09573): a noisy token sees the noisy tokens of
its own block and the clean tokens of the blocks before; a clean token sees clean tokens up to its own block. With
blocks of one token, or any order given, that is the any-subset form: one forward pass scores every token given the
clean tokens before it in the order.

Behind the tokens of a row may stand shadows of some of them, which score a token as if it were not there (WINO, arXiv
2507.18578): a shadow is in the place of its token, and what the token sees it sees too, the token itself left out and
the shadows put in. No token sees a shadow. In the permutation contract shadows do not see each other either: each is
then a noisy token of the two-stream contract, at a place that is chosen.
"""

import dataclasses

import jax
import jax.numpy as jnp

from mdlm_jax.core.prediction import Asked

_LAST = jnp.iinfo(jnp.int32).max


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Places:
    """Where tokens stand: ``segment`` [B, L] int32 or None (all alike), ``order`` [B, L] int32 or None.

    ``order`` is i, b or r of the table above before it is cut into blocks; None: the index in the row.
    ``shadow``: [B, L] int32 or None, whose shadow each one is, an index in the row; -1: nobody's, but a token.
    ``index`` [B, L] int32: that index for those who need it whatever the order; None: 0, 1, ...
    """

    segment: Asked
    order: Asked
    shadow: jax.Array | None = None
    index: jax.Array | None = None


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Visibility:
    """What a backend must honour.

    Attributes:
      query, key: the places of queries and keys; the same object without a cache.
      contract, block_length: static.
    """

    query: Places
    key: Places
    contract: str = dataclasses.field(metadata={"static": True})
    block_length: int = dataclasses.field(default=1, metadata={"static": True})

    @property
    def indexed(self) -> bool:
        """Whether orders are indices in the row, so that the contract is known when compiling."""
        return self.query.order is None and self.key.order is None

    @property
    def everything(self) -> bool:
        """Whether every query sees every key."""
        return self.contract == "bidirectional" and self.key.segment is None and not self.shadowed

    @property
    def shadowed(self) -> bool:
        """Whether there are shadows."""
        return self.query.shadow is not None

    def mask(self, rows: int, queries: int, keys: int) -> jax.Array | None:
        """[B or 1, 1, Lq, Lk] bool, True where a query sees a key; None where all do."""
        if self.everything:
            return None
        seen = jnp.ones((1, 1, 1), bool)
        if self.contract != "bidirectional":
            when, _, _ = intervals(self.contract, self.block_length, self.query.order, queries)
            _, first, last = intervals(self.contract, self.block_length, self.key.order, keys)
            when = when[..., :, None]
            seen = (first[..., None, :] <= when) & (when <= last[..., None, :])
        if self.query.segment is not None and self.key.segment is not None:
            own, other = self.query.segment[:, :, None], self.key.segment[:, None, :]
            seen = seen & (own == other) & (other != 0)
        if self.query.shadow is not None and self.key.shadow is not None:
            own, other = self.query.shadow[:, :, None], self.key.shadow[:, None, :]
            seen = seen & (own != jnp.arange(keys)) & ((own >= 0) | (other < 0))
            if self.contract == "permutation":
                seen = seen & ((other < 0) | (own == other))
        return seen[:, None]


def intervals(
    contract: str, block_length: int, order: jax.Array | None, length: int
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """``when``, ``first``, ``last`` of the table, each [B, L] or [1, L] int32."""
    if contract == "two_stream":
        half = length // 2
        order = jnp.arange(length)[None] % half if order is None else order
        block = order // block_length
        clean = jnp.arange(length)[None] >= half
        number = 2 * block + clean
        return number, number, jnp.where(clean, _LAST, number)
    number = jnp.arange(length)[None] if order is None else order
    if contract == "block_causal":
        number = number // block_length
    return number, number, jnp.full_like(number, _LAST)
