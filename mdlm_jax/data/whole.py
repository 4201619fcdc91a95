"""A text as rows, all of it, for measuring: nothing is held back for training.

As in the zero-shot protocol of MDLM and XDLM, documents are joined without end tokens, and rows are not wrapped.
"""

import dataclasses

import numpy as np

from mdlm_jax.config import ConfigError, DataConfig
from mdlm_jax.data.detokenizers import detokenized
from mdlm_jax.data.packing import encode, make_batch, split_rows
from mdlm_jax.data.sources import open_source
from mdlm_jax.data.tokenizers import Tokenizer


def whole_text(config: DataConfig, source: str, tokenizer: Tokenizer, detokenizer: str = "") -> dict[str, np.ndarray]:
    """Every whole row of ``source``, [R, L] each; see `make_batch`.

    Args:
      config: data section of the run; of it the length counts.
      source: a folder, a text file, a .jsonl, .jsonl.gz or .parquet, tfds:NAME.
      detokenizer: of `data.detokenizers`; "": none. That of ``config`` is for the run's own text.
    Raises:
      ConfigError: no such text, or less of it than one row.
    """
    plain = DataConfig()
    usual = ("packing", "text_field", "prompt_field", "messages_field", "chat_template", "prompt_loss",
             "answer_multiple", "data_dir", "random_length", "length_warmup", "valid_fraction", "valid_last",
             "detokenizer")
    fields = {name: getattr(plain, name) for name in usual}
    documents = open_source(dataclasses.replace(config, source=source, **fields)).read(lambda name: True)
    documents = detokenized((document for document in documents if document.text), detokenizer)
    ids = np.concatenate([np.zeros(0, np.int32), *(ids for _, ids in encode(documents, tokenizer))])
    rows = split_rows(ids, config.length)
    if not len(rows):
        raise ConfigError(f"text {source}: holds {len(ids)} tokens, which is less than one row of {config.length}; "
                          "give more text")
    return make_batch(rows, "concat", tokenizer.eos_id, tokenizer.pad_id)
