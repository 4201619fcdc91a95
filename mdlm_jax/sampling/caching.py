"""Caches by name, with their numbers, as in ``vicinity:16,16``. Free of jax; `sampling.windows` says what each is."""

import dataclasses

# name -> its numbers in order, with what they are unless given
_NUMBERS: dict[str, dict[str, int]] = {
    "none": {},
    "prefix": {"refresh": 0},
    "dual": {"refresh": 0},
    "vicinity": {"back": 16, "ahead": 16, "warmup": 4, "refresh": 0},
    "dkv_decode": {"refresh": 8},
    "dkv_greedy": {"refresh": 2, "window": 4},
    "block": {},
}
_FIXED = {"dkv_decode": {"first": 2}}  # what is no number of it
CACHES = tuple(_NUMBERS)
FORMS = tuple(name + ("[:" + ",".join(numbers).upper() + "]" if numbers else "") for name, numbers in _NUMBERS.items())


@dataclasses.dataclass(frozen=True)
class Caching:
    """A cache as it was named.

    Attributes:
      first: forwards at the beginning of every block that run on the whole canvas.
      refresh: a block's forwards 0, n, 2 n, ... run on the whole canvas; 0: of these the first alone.
      back, ahead: tokens before and behind the block that are run with it.
      warmup: as many more as ``first`` of the first block.
      window: masks that are run around each that is to be written.
    """

    name: str
    first: int = 1
    refresh: int = 0
    back: int = 0
    ahead: int = 0
    warmup: int = 0
    window: int = 0

    @property
    def scattered(self) -> bool:
        """Whether the tokens of its windows stand apart."""
        return self.name.startswith("dkv_")


def parse(spec: str) -> Caching:
    """``"name"`` or ``"name:8,4"``; numbers left out at the end are as usual.

    Raises:
      ValueError: no such cache, more numbers than it has, or what is no whole number of at least 0.
    Examples:
      >>> parse("vicinity:8").back, parse("vicinity:8").ahead
      (8, 16)
    """
    name, colon, tail = spec.partition(":")
    if name not in _NUMBERS:
        raise ValueError(f"cache={spec!r}: choose one of {', '.join(CACHES)}")
    usual, given = _NUMBERS[name], tail.split(",") if colon else []
    if len(given) > len(usual):
        takes = f"takes {', '.join(usual)}" if usual else "takes no numbers"
        raise ValueError(f"cache={spec!r}: {name} {takes}; leave the rest out")
    for text in given:
        if not text.isascii() or not text.isdigit():
            raise ValueError(f"cache={spec!r}: {text!r} must be a whole number of at least 0, as in "
                             f"'{name}:{','.join(map(str, usual.values()))}'")
    return Caching(name, **(_FIXED.get(name, {}) | usual | dict(zip(usual, map(int, given), strict=False))))
