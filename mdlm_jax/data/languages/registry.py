"""Oracle languages by name, as a configuration writes them: `hmm`, `copy:noise=0.1`, `drift:last=0.5,seed=2`."""

import inspect
import math
from collections.abc import Callable

from mdlm_jax.config import ConfigError
from mdlm_jax.data.languages.base import Language
from mdlm_jax.data.languages.copy import Copy
from mdlm_jax.data.languages.drift import DriftStream
from mdlm_jax.data.languages.enumerated import Enumerated
from mdlm_jax.data.languages.hidden_markov import HiddenMarkov
from mdlm_jax.data.languages.lines import LINES

LANGUAGES: dict[str, Callable[..., Language | DriftStream]] = {
    "hmm": HiddenMarkov.random,
    "copy": Copy.random,
    "drift": DriftStream.random,
    "ring": HiddenMarkov.ring,
    "pairs": Copy.pairs,
    "shuffle": Enumerated.shuffle,
    "replace": Enumerated.replace,
    "parity": Enumerated.parity,
    "latin": Enumerated.latin,
    "sudoku": Enumerated.sudoku,
    **LINES,
}


def make(name: str) -> Language | DriftStream:
    """The language that `NAME` or `NAME:KEY=VALUE,...` stands for. ConfigError for an unknown name, key or value.

    Examples:
      >>> import numpy as np
      >>> language = make("pairs:vocab=4,noise=0.1")
      >>> rows = language.sample(np.random.default_rng(0), num=2, length=6)
      >>> rows.shape, language.log_prob(rows).shape, round(language.entropy(6).value, 3)
      ((2, 6), (2,), 5.464)
    """
    kind, _, settings = name.partition(":")
    if kind not in LANGUAGES:
        raise ConfigError(f"language {kind!r}: is unknown; choose one of {', '.join(LANGUAGES)}, as in 'hmm:states=8'")
    defaults = {key: p.default for key, p in inspect.signature(LANGUAGES[kind]).parameters.items()}
    chosen = {}
    for setting in settings.split(",") if settings else ():
        key, _, text = setting.partition("=")
        if key not in defaults:
            choices = ", ".join(f"{k}={v}" for k, v in defaults.items())
            raise ConfigError(f"language {name!r}: {setting!r} is not a setting of {kind}; its settings are {choices}")
        if key in chosen:
            raise ConfigError(f"language {name!r}: {key} is given twice; give it once")
        chosen[key] = _number(name, key, text, type(defaults[key]))
    try:
        return LANGUAGES[kind](**chosen)
    except ConfigError as error:
        raise ConfigError(f"language {name!r}: {error}") from None


def _number(name: str, key: str, text: str, kind: type) -> int | float:
    try:
        value = kind(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        what = "a whole number" if kind is int else "a finite number"
        raise ConfigError(f"language {name!r}: {key}={text!r} must be {what}")
    return value
