"""Are the text and the tokenizer there? Answered without jax and without a pass over the text."""

import logging
from pathlib import Path

import numpy as np

from mdlm_jax.config import ConfigError, DataConfig
from mdlm_jax.data.language_rows import open_language
from mdlm_jax.data.pipeline import check_size
from mdlm_jax.data.sources import open_source
from mdlm_jax.data.tokenizers import load_tokenizer


def check_data(config: DataConfig, batch_size: int) -> None:
    """ConfigError for a source, data_dir, field, language or tokenizer file that does not exist or cannot be used, and
    for a file that is too small."""
    if config.source.startswith("language:"):
        _check_language(config)
        return
    logging.disable(logging.WARNING)  # an error is one line; libraries that look for data warn as well
    try:
        open_source(config)
    finally:
        logging.disable(logging.NOTSET)
    path = Path(config.source).expanduser()
    if path.is_file() and path.suffix != ".gz":
        check_size(config, batch_size, path.stat().st_size)
    if config.tokenizer != "byte" and not config.tokenizer.startswith("bpe:"):
        load_tokenizer(config.tokenizer)


def _check_language(config: DataConfig) -> None:
    language = open_language(config)
    try:
        language.sample(np.random.default_rng(0), 1, config.length)
    except ValueError as error:
        raise ConfigError(f"data.length={config.length}: {config.source} cannot have it ({error}); change it") from None
