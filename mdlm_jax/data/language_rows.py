"""Rows of an oracle language as training data: the same rows for every run of that language and length.

Most languages give independent rows, which a run takes in an order of its own. `drift` gives a stream in the order of
time: a run trains on its earlier rows in that order, tau rising with the steps (and from the beginning again where it
outlasts them), and is measured on the last ``valid_fraction`` of the stream, which lies in the future of everything it
was trained on.
"""

import numpy as np

from mdlm_jax.config import ConfigError, DataConfig
from mdlm_jax.data.languages.base import Language
from mdlm_jax.data.languages.drift import DriftStream
from mdlm_jax.data.tokenizers import LanguageTokenizer

TOKENS = 1 << 23  # drawn for both splits together
_MOST_TOKENS = 1 << 28  # that a stream may be asked for
_SEEDS = {"train": 1, "valid": 2}


def open_language(config: DataConfig) -> Language | DriftStream:
    """The language that ``config.source`` names.

    Raises:
      ConfigError: an unknown language, a setting that has no meaning for it, or more rows than memory should hold.
    """
    from mdlm_jax.data.languages.registry import make

    for field, default in (("tokenizer", "byte"), ("packing", "concat"), ("detokenizer", ""), ("valid_last", 0)):
        if getattr(config, field) != default:
            raise ConfigError(f"data.{field}={getattr(config, field)!r}: has no meaning with data.source="
                              f"{config.source!r}, whose rows are single texts of ready tokens; leave it out")
    language = make(config.source.removeprefix("language:"))
    if isinstance(language, DriftStream):
        if config.seed != DataConfig.seed:
            raise ConfigError(f"data.seed={config.seed}: has no meaning with data.source={config.source!r}, whose rows "
                              "come in the order of time; leave it out")
        if language.num_rows * config.length > _MOST_TOKENS:
            raise ConfigError(f"data.source={config.source!r}: {language.num_rows} rows of data.length={config.length} "
                              f"are more than {_MOST_TOKENS} tokens; lower one of the two")
    return language


def language_rows(config: DataConfig) -> tuple[dict[str, np.ndarray], LanguageTokenizer]:
    """Rows int32 [R, length] for ``train`` and ``valid``, and the tokenizer of the language's ids.

    ``valid_fraction`` of the rows are held out: of a stream the last ones. The draws depend on the language and the
    length alone, not on ``data.seed``, which is only the order of the rows. Raises what ``open_language`` raises.
    """
    language = open_language(config)
    return _draw(language, split_sizes(config, language), config.length), LanguageTokenizer(language.vocab_size)


def in_order(config: DataConfig) -> bool:
    """Whether the rows are a stream, to be taken as they come."""
    return isinstance(open_language(config), DriftStream)


def split_sizes(config: DataConfig, language: Language | DriftStream) -> dict[str, int]:
    """How many rows each split has."""
    total = max(2, TOKENS // config.length)
    if isinstance(language, DriftStream):
        total = language.num_rows or total
    valid = min(total - 1, max(1, round(config.valid_fraction * total)))
    return {"train": total - valid, "valid": valid}


def check_rows(config: DataConfig) -> None:
    """ConfigError where the language has no rows of ``config.length``, or for what ``open_language`` refuses."""
    _draw(open_language(config), {"train": 1, "valid": 1}, config.length)


def _draw(language: Language | DriftStream, sizes: dict[str, int], length: int) -> dict[str, np.ndarray]:
    if isinstance(language, DriftStream):
        total = sum(sizes.values())
        return {"train": language.rows(0, sizes["train"], total, length),
                "valid": language.rows(sizes["train"], sizes["valid"], total, length)}
    return {split: language.sample(np.random.default_rng(seed), sizes[split], length) for split, seed in _SEEDS.items()}


def references(config: DataConfig, tokens: np.ndarray, index: np.ndarray, trained_rows: int) -> dict[str, float]:
    """What held-out rows cost one who knows the language, in nats per token, by name.

    Of a stream: one who knows the time of every row as well, and one who knows the language as it was at the latest row
    trained on; the difference is what the shift since then costs one who did not foresee it.

    Args:
      tokens: [n, length], the rows ``index`` [n] of the held-out split.
      trained_rows: rows that the run has taken from the training split, repetitions included.
    """
    language = open_language(config)
    if not isinstance(language, DriftStream):
        return {"the language itself (exact)": float(-language.log_prob(tokens).mean() / config.length)}
    sizes = split_sizes(config, language)
    total = sum(sizes.values())
    times = {"the language, time known": language.times(sizes["train"] + np.asarray(index), total)}
    if not language.mixed:
        latest = language.times(np.full(len(tokens), min(trained_rows, sizes["train"]) - 1), total)
        times["the language last trained on"] = latest
    return {name: float(-language.log_prob(tokens, tau).mean() / config.length) for name, tau in times.items()}


def account(config: DataConfig) -> dict[str, dict]:
    """What is to be known of each split of a stream: ``tau`` of its first and its last row (mixed: the least and the
    largest), and of the held-out one
    ``nats_per_token``, the exact mean entropy of its rows, their times known. Nothing for independent rows."""
    language = open_language(config)
    if not isinstance(language, DriftStream):
        return {"train": {}, "valid": {}}
    sizes = split_sizes(config, language)
    times = language.times(np.arange(sum(sizes.values())), sum(sizes.values()))
    train, valid = np.split(times, [sizes["train"]])
    nats = language.entropy(valid, config.length).value / config.length
    ends = {split: {"tau": [float(t.min()), float(t.max())] if language.mixed else [float(t[0]), float(t[-1])]}
            for split, t in (("train", train), ("valid", valid))}
    return ends | {"valid": ends["valid"] | {"nats_per_token": nats}}
