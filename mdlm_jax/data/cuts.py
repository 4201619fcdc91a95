"""Training rows of random and of rising length, under static shapes: what lies behind the cut becomes padding.

The shape of a batch never changes, and the padding is neither attended to, noised nor counted: what stood behind the
cut has no part in the loss. Shorter rows cost what whole ones cost; nothing is saved here.
"""

import dataclasses

import numpy as np

from mdlm_jax.data.shuffle import mix

_TAG = 0x6C656E677468  # keeps these draws apart from the order's


@dataclasses.dataclass(frozen=True)
class Cut:
    """Where rows end.

    Attributes:
      length: tokens of a row, L.
      share: of the rows that end at a uniform random length, as 1 % of LLaDA's (arXiv:2502.09992, section 2.2).
      first, steps: rows end no later than a limit that rises linearly from ``first`` at step 0 to L at step ``steps``.
      seed: of the draws; each depends on it and on the row's position in the stream alone.
    """

    length: int
    share: float
    first: int
    steps: int
    seed: int

    @property
    def cuts(self) -> bool:
        return self.share > 0 or self.steps > 0

    def limit(self, step: int) -> int:
        """The longest row of a step."""
        if step >= self.steps:
            return self.length
        return self.first + (self.length - self.first) * step // self.steps

    def lengths(self, step: int, positions: np.ndarray) -> np.ndarray:
        """Tokens that count of the rows at ``positions`` [n] of the stream, all of one step: int64 [n] in 1..limit.

        A random length is uniform on 1..limit(step); as 2^64 draws fall on them, to within a factor 1 + L / 2^64.
        """
        limit = self.limit(step)
        root = mix(np.full(positions.shape, (self.seed + _TAG) & (2**64 - 1), np.uint64))
        chosen = mix(root ^ positions.astype(np.uint64))
        random = 1 + (mix(chosen) % np.uint64(limit)).astype(np.int64)
        return np.where((chosen >> np.uint64(11)) * 2.0**-53 < self.share, random, limit)
