"""Diffusion language models in JAX: train, sample and measure them. Importing this costs next to nothing.

    import mdlm_jax
    model = mdlm_jax.load("path/to/LLaDA-8B-Base")   # a Hugging Face directory, or the workdir of a run
    model.logits(tokens)                              # row i scores token i
    print(model.generate("Once upon a time", new_tokens=64))
"""

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mdlm_jax.language_model import LanguageModel as LanguageModel
    from mdlm_jax.loading import load as load

__version__ = "0.1.0"
_LAZY = {"LanguageModel": "language_model", "load": "loading"}  # of modules that import jax


def __getattr__(name: str):
    if name in _LAZY:
        return getattr(importlib.import_module(f"mdlm_jax.{_LAZY[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return [*globals(), *_LAZY]
