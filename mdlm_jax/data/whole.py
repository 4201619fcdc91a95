"""A text as rows, all of it, for measuring: nothing is held back for training."""

import dataclasses

import numpy as np

from mdlm_jax.config import ConfigError, DataConfig
from mdlm_jax.data.detokenizers import detokenized
from mdlm_jax.data.packing import make_batch, pack, tokenize
from mdlm_jax.data.sources import open_source
from mdlm_jax.data.tokenizers import Tokenizer


def whole_text(config: DataConfig, source: str, tokenizer: Tokenizer, detokenizer: str = "") -> dict[str, np.ndarray]:
    """Every whole row of ``source``, packed as a run with ``config`` packs its own, [R, L] each; see `make_batch`.

    Args:
      config: data section of the run; length and packing count.
      source: a folder, a text file, a .jsonl, .jsonl.gz or .parquet, tfds:NAME.
      detokenizer: of `data.detokenizers`; "": none. That of ``config`` is for the run's own text.
    Raises:
      ConfigError: no such text, or less of it than one row.
    """
    plain = DataConfig()
    fields = {name: getattr(plain, name) for name in ("text_field", "prompt_field", "answer_multiple", "data_dir",
                                                      "random_length", "length_warmup", "valid_fraction", "valid_last",
                                                      "detokenizer")}
    documents = open_source(dataclasses.replace(config, source=source, **fields)).read(lambda name: True)
    documents = detokenized((document for document in documents if document.text), detokenizer)
    tokens = tokenize(documents, tokenizer)
    rows = pack(tokens.ids, config.length, config.packing, tokenizer)
    if not len(rows):
        raise ConfigError(f"--text={source}: holds {len(tokens.ids)} tokens, which is less than one row of "
                          f"{config.length}; give more text")
    return make_batch(rows, config.packing, tokenizer.eos_id, tokenizer.pad_id)
