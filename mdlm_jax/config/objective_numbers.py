"""What the numbers of ``train.objective``, as in ``sdtt:64``, may be."""

from collections.abc import Callable

from mdlm_jax.errors import require

_COUNTS = {  # objectives of one whole number: what it counts, and a usual one
    "discrete": ("steps", 100), "joint": ("passes", 3), "planner": ("layers", 1), "prism": ("revealed tokens", 1),
    "codd": ("states", 16), "sdtt": ("teacher's steps", 64), "duo": ("teacher's steps", 64),
}


def check_numbers(name: str, numbers: tuple[float, ...], spec: str) -> None:
    """Raises ConfigError where an objective's numbers cannot be; ``spec``: as the field was given."""
    def must(valid: bool, remedy: str) -> None:
        require(valid, "train.objective", spec, remedy)

    if name in _COUNTS:
        what, like = _COUNTS[name]
        must(_whole(numbers[0]), f"the {what} must be a whole number of at least 1, as in {name}:{like}")
    if name in _CHECKS:
        _CHECKS[name](must, *numbers)


Must = Callable[[bool, str], None]


def _whole(number: float) -> bool:
    return number >= 1 and number == int(number)


def _joint(must: Must, passes: float) -> None:
    must(passes <= 64, "the passes must be at most 64, as in joint:3")


def _codd(must: Must, states: float) -> None:
    must(states >= 2, "one state says nothing of how tokens hang together; take at least 2")


def _genmd4(must: Must, power: float) -> None:
    must(power > 0, "the initial power must be positive")


def _any_subset(must: Must, low: float, high: float) -> None:
    must(0 <= low <= high <= 1, "LOW and HIGH are shares of a row, 0 <= LOW <= HIGH <= 1, as in any_subset:0.01,0.1")


def _sdtt(must: Must, steps: float) -> None:
    must(steps % 2 == 0, "the teacher's steps must be an even number, as in sdtt:64, since each two become one")


def _duo(must: Must, steps: float) -> None:
    must(steps >= 2, "the teacher's steps must be a whole number of at least 2, as in duo:64")


def _di4c(must: Must, steps: float, latents: float, delta: float, power: float) -> None:
    for value, what in ((steps, "steps"), (latents, "latents")):
        must(_whole(value), f"the {what} must be a whole number of at least 1, as in di4c:1024,16,0.1,1")
    must(0 < delta < 1, "DELTA, a time, must lie in (0, 1)")
    must(power >= 0, "POWER must not be negative")


def _draft_edit(must: Must, rate: float, weight: float, turns: float) -> None:
    must(0 <= rate <= 1 and weight >= 0, "RATE must lie in [0, 1] and WEIGHT must not be negative")
    must(_whole(turns), "TURNS must be a positive integer")


def _levenshtein(must: Must, weight: float, turns: float) -> None:
    must(weight >= 0 and _whole(turns), "WEIGHT must not be negative, TURNS a positive integer")


def _dparallel(must: Must, block: float, beta: float, temperature: float) -> None:
    must(_whole(block), "BLOCK must be a positive integer")
    must(beta >= 0 and temperature > 0, "BETA must not be negative, and T must be positive")


def _dmax(must: Must, masked: float, own: float, temperature: float) -> None:
    must(min(masked, own, temperature) >= 0 and max(masked, own) > 0,
         "MASKED, OWN and T must not be negative, and of MASKED and OWN one must be positive")


_CHECKS: dict[str, Callable[..., None]] = {
    "joint": _joint, "codd": _codd, "genmd4": _genmd4, "any_subset": _any_subset, "sdtt": _sdtt, "duo": _duo,
    "di4c": _di4c, "draft_edit": _draft_edit, "levenshtein": _levenshtein, "dparallel": _dparallel, "dmax": _dmax,
}
