"""Short names with numbers: ``"name"``, ``"name:1.5"``, ``"name:1e-3,20"``."""

from collections.abc import Mapping


def parse(what: str, spec: str, takes: Mapping[str, int]) -> tuple[str, tuple[float, ...]]:
    """The name of ``spec`` and its numbers; ``takes`` says how many each name has.

    Raises:
      ValueError: an unknown name, something that is no number, too few or too many of them; ``what`` names the kind.
    """
    name, colon, tail = spec.partition(":")
    if name not in takes:
        raise ValueError(f"{what} {spec!r}: choose one of {', '.join(takes)}")
    try:
        numbers = tuple(float(part) for part in tail.split(",")) if colon else ()
    except ValueError:
        raise ValueError(f"{what} {spec!r}: what follows the colon must be numbers, as in '{name}:0.5'") from None
    if len(numbers) != takes[name]:
        raise ValueError(f"{what} {spec!r}: {name} takes {takes[name] or 'no'} number(s), not {len(numbers)}")
    return name, numbers
