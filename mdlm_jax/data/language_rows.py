"""Rows of an oracle language as training data: a fixed sample, the same for every run of that language and length."""

import numpy as np

from mdlm_jax.config import ConfigError, DataConfig
from mdlm_jax.data.tokenizers import LanguageTokenizer

TOKENS = 1 << 23  # drawn for both splits together
_SEEDS = {"train": 1, "valid": 2}


def open_language(config: DataConfig):
    """The language that ``config.source`` names.

    Raises:
      ConfigError: an unknown language, or a text setting that has no meaning for it.
    """
    from mdlm_jax.data.languages.registry import make

    for field, default in (("tokenizer", "byte"), ("packing", "concat")):
        if getattr(config, field) != default:
            raise ConfigError(f"data.{field}={getattr(config, field)!r}: has no meaning with data.source="
                              f"{config.source!r}, whose rows are single texts of ready tokens; leave it at {default}")
    return make(config.source.removeprefix("language:"))


def language_rows(config: DataConfig) -> tuple[dict[str, np.ndarray], LanguageTokenizer]:
    """Independent rows int32 [R, length] for ``train`` and ``valid``, and the tokenizer of the language's ids.

    ``valid_fraction`` of the rows are held out. The draws depend on the language and the length alone, not on
    ``data.seed``, which is only the order of the rows. Raises what ``open_language`` raises.
    """
    language = open_language(config)
    total = max(2, TOKENS // config.length)
    valid = min(total - 1, max(1, round(config.valid_fraction * total)))
    counts = {"train": total - valid, "valid": valid}
    rows = {split: language.sample(np.random.default_rng(seed), counts[split], config.length)
            for split, seed in _SEEDS.items()}
    return rows, LanguageTokenizer(language.vocab_size)
