"""What a denoiser returns: hidden states and the head that would turn them into logits.

Logits over the vocabulary exist only where someone asks for them: losses and decoders reduce (hidden, head) in chunks
(`core.reduction`, `core.draws`). `from_logits` adapts a foreign function that already made its logits.
"""

import dataclasses

import jax
import jax.numpy as jnp


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Head:
    """Logits = hidden @ kernel + bias. ``kernel`` [D, V] or None for the identity; ``bias`` [V] or None."""

    kernel: jax.Array | None = None
    bias: jax.Array | None = None

    def __call__(self, hidden: jax.Array) -> jax.Array:
        """Logits [..., V], accumulated and returned in float32 (float64 stays float64)."""
        wide = jnp.promote_types(hidden.dtype, jnp.float32)
        if self.kernel is None:
            logits = hidden.astype(wide)
        else:
            kernel = self.kernel.astype(hidden.dtype)
            logits = jnp.einsum("...d,dv->...v", hidden, kernel, preferred_element_type=wide)
        return logits if self.bias is None else logits + self.bias.astype(wide)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Prediction:
    """``hidden`` [B, L, D] (or logits where the head is the identity) and ``head``."""

    hidden: jax.Array
    head: Head

    @classmethod
    def from_logits(cls, logits: jax.Array) -> "Prediction":
        """Wraps ready-made logits [B, L, V]."""
        return cls(logits, Head())

    @property
    def num_columns(self) -> int:
        """Number of ids the head scores."""
        return self.hidden.shape[-1] if self.head.kernel is None else self.head.kernel.shape[-1]

    def logits(self) -> jax.Array:
        """[B, L, V] in float32. For tests and small models; losses and decoders do without."""
        return self.head(self.hidden)
