"""What a name that does not exist may have meant."""

import difflib
from collections.abc import Iterable


def nearest(name: str, known: Iterable[str]) -> list[str]:
    """Those of ``known`` that ``name`` abbreviates (bs: batch_size), else the most similar one, if there is any."""
    known = sorted(known)
    short = [one for one in known if "_" in one and name == "".join(word[:1] for word in one.split("_"))]
    return short or difflib.get_close_matches(name, known, n=1)
