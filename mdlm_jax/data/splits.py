"""Which documents are held out: by a hash of their names, or the last so many."""

import dataclasses
import hashlib

from mdlm_jax.config import DataConfig

_HELD_OUT_BYTES = 8  # for each token of a row: more than a token of ours stands for on average


def place(name: str) -> int:
    """Where a document stands between 0 and 2^64: the first 64 bits of sha256(name)."""
    return int.from_bytes(hashlib.sha256(name.encode("utf-8", "surrogateescape")).digest()[:8], "big")


@dataclasses.dataclass(frozen=True)
class Split:
    """Which documents are held out: those whose place, as a fraction of 2^64, lies below ``valid_fraction``.

    Where these are less than ``least_bytes``, and less than a fifth of the text, so are the documents that stand next,
    until they are not; one document is always left to train on. With ``last`` that many documents at the end are held
    out instead, empty ones counted.
    """

    valid_fraction: float
    least_bytes: int = 0
    last: int = 0

    @classmethod
    def of(cls, config: DataConfig) -> "Split":
        return cls(config.valid_fraction, _HELD_OUT_BYTES * config.length, config.valid_last)

    @property
    def usual_limit(self) -> float:
        return self.valid_fraction * 2.0**64

    def limit(self, sizes: dict[str, int]) -> float:
        """Below which place a document is held out, given the bytes of all documents of a small source."""
        target = min(self.least_bytes, sum(sizes.values()) // 5)
        limit, taken = self.usual_limit, 0
        for name in sorted(sizes, key=place)[:-1]:
            if place(name) >= self.usual_limit and taken >= target:
                break
            limit, taken = max(limit, place(name) + 1), taken + sizes[name]
        return limit


@dataclasses.dataclass(frozen=True)
class HeldOut:
    """Whether a document is held out: its name is one of ``names``, or its place lies below ``limit``."""

    limit: float = 0.0
    names: frozenset[str] = frozenset()

    def __call__(self, name: str) -> bool:
        return name in self.names or (self.limit > 0 and place(name) < self.limit)
