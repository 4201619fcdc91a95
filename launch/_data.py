"""Are the text and the tokenizer there? Answered without jax and without a pass over the text."""

import logging
from pathlib import Path

from mdlm_jax.config import DataConfig
from mdlm_jax.config.data import is_images, parse_prepared
from mdlm_jax.data import trajectories
from mdlm_jax.data.chat import check_markers
from mdlm_jax.data.images import check_images
from mdlm_jax.data.language_rows import check_rows
from mdlm_jax.data.pipeline import check_size
from mdlm_jax.data.prepared import check_prepared
from mdlm_jax.data.sources import open_source
from mdlm_jax.data.tokenizers import make_tokenizer


def check_data(config: DataConfig, batch_size: int, classes: int = 0) -> None:
    """ConfigError for a source, data_dir, field, language or tokenizer file that does not exist or cannot be used, for
    a file that is too small, and for images of more classes than the network's ``classes``, unless it has none."""
    if config.source.startswith("language:"):
        check_rows(config)
        return
    if is_images(config.source):
        check_images(config, classes)
        return
    if config.source.startswith(trajectories.PREFIX):
        trajectories.check(config)
        return
    if parse_prepared(config.source):
        check_prepared(config, batch_size)
        return
    logging.disable(logging.WARNING)  # an error is one line; libraries that look for data warn as well
    try:
        open_source(config)
    finally:
        logging.disable(logging.NOTSET)
    path = Path(config.source).expanduser()
    if path.is_file() and path.suffix not in (".gz", ".parquet"):
        check_size(config, batch_size, path.stat().st_size)
    if config.tokenizer.startswith("bpe:"):
        return
    tokenizer = make_tokenizer(config.tokenizer, lambda: ())
    if config.messages_field:
        check_markers(config.chat_template, tokenizer, config.tokenizer)
