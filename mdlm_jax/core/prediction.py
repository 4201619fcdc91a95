"""What a denoiser returns: hidden states and the head that would turn them into logits.

Logits over the vocabulary exist only where someone asks for them: losses and decoders reduce (hidden, head) in chunks
(`core.reduction`, `core.draws`). `from_logits` adapts a foreign function that already made its logits.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from mdlm_jax.core.guidance import guide

# The type of what is an array where it was asked for, or where a mode needs it, and None elsewhere. Who reads it knows
# the mode; a checker of types cannot, and takes it for an array (as it does the result of `re.Match.group`).
Asked = jax.Array | Any


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Head:
    """Logits = (hidden @ kernel)[..., :V] + bias.

    Attributes:
      kernel: [D, at least V] or None for the identity. ``bias``: [V] or None.
      columns: V where the kernel is wider, 0: all of it. The logits of a chunk are cut, not the kernel: that would be
        a second one, kept for as long as a loop runs.
      guidance: [], strength of `core.guidance`, or None. Hidden states are then two side by side, [..., 2 D], the
        conditional and the unconditional one, and logits are guided. Guided hidden states would give the same in
        exact arithmetic, but only float32 holds the extrapolation, and the product would need a float32 kernel.
    """

    kernel: jax.Array | None = None
    bias: jax.Array | None = None
    columns: int = dataclasses.field(default=0, metadata={"static": True})
    guidance: jax.Array | None = None

    def __call__(self, hidden: jax.Array) -> jax.Array:
        """Logits [..., V], accumulated and returned in float32 (float64 stays float64)."""
        if self.guidance is None:
            logits = self._product(hidden)
        else:
            conditional, unconditional = map(self._product, jnp.split(hidden, 2, axis=-1))
            logits = guide(conditional, unconditional, self.guidance)
        return logits if self.bias is None else logits + self.bias.astype(logits.dtype)

    def _product(self, hidden: jax.Array) -> jax.Array:
        wide = jnp.promote_types(hidden.dtype, jnp.float32)
        if self.kernel is None:
            logits = hidden.astype(wide)
        else:
            kernel = self.kernel.astype(hidden.dtype)
            logits = jnp.einsum("...d,dv->...v", hidden, kernel, preferred_element_type=wide)
        return logits[..., : self.columns] if self.columns else logits

    def num_columns(self, width: int) -> int:
        """V, for hidden states [..., width]."""
        if self.columns:
            return self.columns
        branches = 1 if self.guidance is None else 2
        return width // branches if self.kernel is None else self.kernel.shape[-1]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Prediction:
    """``hidden`` [B, L, D] (or logits where the head is the identity) and ``head``."""

    hidden: jax.Array
    head: Head

    @classmethod
    def from_logits(cls, logits: jax.Array) -> "Prediction":
        """Wraps ready-made logits [B, L, V].

        Examples:
          >>> prediction = Prediction.from_logits(jax.numpy.zeros((2, 7, 12)))
          >>> prediction.num_columns, prediction.logits().shape
          (12, (2, 7, 12))
        """
        return cls(logits, Head())

    @property
    def num_columns(self) -> int:
        """Number of ids the head scores."""
        return self.head.num_columns(self.hidden.shape[-1])

    @property
    def logits_held(self) -> int:
        """Logits that the head makes for a position at once."""
        return self.num_columns * (1 if self.head.guidance is None else 2)

    def narrowed(self, columns: int) -> "Prediction":
        """The first ``columns`` ids alone; 0: all."""
        if not 0 < columns < self.num_columns:
            return self
        bias = None if self.head.bias is None else self.head.bias[:columns]
        return dataclasses.replace(self, head=dataclasses.replace(self.head, bias=bias, columns=columns))

    def tempered(self, temperature: float) -> "Prediction":
        """With logits divided by ``temperature``; not for guided ones. In half precision the hidden states are rounded,
        unless the temperature is a power of two."""
        bias = None if self.head.bias is None else self.head.bias / temperature
        return Prediction(self.hidden / temperature, dataclasses.replace(self.head, bias=bias))

    def guided(self, unconditional: jax.Array, scale: jax.Array) -> "Prediction":
        """Guided by the hidden states [B, L, D] of the unconditional branch, with strength ``scale`` []."""
        hidden = jnp.concatenate([self.hidden, unconditional], axis=-1)
        head = dataclasses.replace(self.head, guidance=jnp.asarray(scale))
        return dataclasses.replace(self, hidden=hidden, head=head)

    def logits(self) -> jax.Array:
        """[B, L, V] in float32. For tests and small models; losses and decoders do without."""
        return self.head(self.hidden)
