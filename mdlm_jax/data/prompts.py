"""Rows of a prompt and its answer, for supervised fine-tuning.

A row is [prompt, answer, end token, end tokens ..., padding]. Noise touches the answer alone and the loss counts it
alone; the end tokens that fill it up are part of it, masked and learnt (LLaDA, arXiv 2502.09992, appendix B: they teach
the length), up to the row's end or to a multiple of ``answer_multiple`` of the whole row (LLaDA2, 2512.15745: the block
length). What is behind is padding: unseen, neither noised nor counted. Pairs that do not fit are left out and counted.
With ``prompt_loss`` the prompt is noised and counted too: the pair is one text, as where SMDM learns facts
(2410.18514).
"""

from collections.abc import Iterable
from typing import Any

import numpy as np

from mdlm_jax.config import ConfigError, DataConfig
from mdlm_jax.data.chat import check_markers, encoded
from mdlm_jax.data.pipeline import Built, Pipeline
from mdlm_jax.data.sources import Document, open_source
from mdlm_jax.data.tokenizers import Tokenizer, make_tokenizer


def build_prompts(config: DataConfig, batch_size: int, tokenizer: Tokenizer | None = None) -> Built:
    """`pipeline.build` for a source with a ``prompt_field``; ``info`` also counts the ``too_long`` pairs of a split,
    and may hold a ``note`` to be printed.

    Raises:
      ConfigError: as there; too few pairs fit; or a chat template whose markers a given tokenizer lacks.
    """
    source = open_source(config)
    texts = lambda: (text for d in source.documents("train")  # noqa: E731
                     for text in (d.prompt, *(piece for piece, _ in d.pieces), d.text))
    tokenizer = tokenizer or make_tokenizer(config.tokenizer, texts)
    note = check_markers(config.chat_template, tokenizer, config.tokenizer) if config.messages_field else ""
    pipelines: dict[str, Pipeline] = {}
    info: dict[str, Any] = {}
    for split in ("train", "valid"):
        documents = list(source.documents(split))
        rows = answer_rows(documents, tokenizer, config.length, config.answer_multiple, config.prompt_loss)
        if len(rows) < (batch_size if split == "train" else 1):
            raise ConfigError(f"data.source={config.source!r}: {len(rows)} of {len(documents)} pairs of its {split} "
                              f"split fit data.length={config.length}, too few for train.batch_size={batch_size} and "
                              "one held-out row; raise data.length, or give more pairs")
        size = sum(len((d.prompt * config.prompt_loss + d.text).encode()) for d in documents)
        answers = int(((rows >= 0) & (rows != tokenizer.pad_id)).sum())
        info[split] = {"documents": len(documents), "bytes": size, "tokens": answers,
                       "bytes_per_token": size / answers if size else None, "rows": len(rows), "dropped_tokens": 0,
                       "too_long": len(documents) - len(rows)}
        pipelines[split] = Pipeline(rows, batch_size=batch_size, seed=config.seed, packing="prompts",
                                    tokenizer=tokenizer)
    info = {"source": config.source, "skipped_files": len(source.skipped), "vocab_size": tokenizer.vocab_size,
            "lossless": tokenizer.lossless, **({"note": note} if note else {}), **info}
    return Built(pipelines["train"], pipelines["valid"], tokenizer, info)


def answer_rows(documents: Iterable[Document], tokenizer: Tokenizer, length: int, multiple: int,
                prompt_loss: bool = False) -> np.ndarray:
    """int32 [R, length]: a token of a prompt as -1 - id, all others as they are; pairs that do not fit are left out.

    ``prompt_loss``: a prompt's tokens as all others.

    Raises:
      ConfigError: a text encodes to a special token.
    """
    rows = []
    for document in documents:
        prompt, answer = _encoded(document, tokenizer)
        used = len(prompt) + len(answer) + 1
        if used > length:
            continue
        end = min(length, -(-used // multiple) * multiple) if multiple else length
        row = np.full(length, tokenizer.pad_id, np.int32)
        row[:end] = tokenizer.eos_id
        row[: used - 1] = np.concatenate([prompt if prompt_loss else -1 - prompt, answer])
        rows.append(row)
    return np.stack(rows) if rows else np.zeros((0, length), np.int32)


def _encoded(document: Document, tokenizer: Tokenizer) -> tuple[np.ndarray, np.ndarray]:
    """Ids of the prompt and of the answer. ConfigError where a text becomes a token that means something else."""
    special: tuple = (tokenizer.mask_id, tokenizer.eos_id, tokenizer.pad_id)
    if document.pieces:
        special = special[::2]  # templates may end a turn with the end of text
        asked = encoded(document.pieces, tokenizer)
        said = [tokenizer.encode_next(document.text), tokenizer.encode_next(document.end, special=True)]
    else:
        asked, said = ([ids] for ids in tokenizer.encode_batch([document.prompt, document.text]))
    prompt, answer = (np.concatenate([np.zeros(0, np.int32), *ids]).astype(np.int32) for ids in (asked, said))
    if np.isin(answer, special).any() or np.isin(prompt, special).any():
        raise ConfigError(f"data.tokenizer: turns text of the document {document.name!r} into one of its special "
                          f"tokens {special}; choose a tokenizer that keeps them apart")
    return prompt, answer
