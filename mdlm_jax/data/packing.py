"""Documents to fixed-length rows of tokens, and rows to the batch that every objective takes.

Documents are joined, each followed by the end-of-document token, and cut every ``length`` tokens; or, ``wrapped``,
every ``length`` - 2, which the token that begins a text and the end token are put around (the OpenWebText and LM1B
rows of SEDD and MDLM). The rows alone are stored: a document ends exactly where the end token stands, so the masks and
positions of a batch follow from its rows.
"""

import dataclasses
from collections.abc import Iterable, Iterator

import numpy as np

from mdlm_jax.config import ConfigError
from mdlm_jax.config.data import row_tokens
from mdlm_jax.data.sources import Document
from mdlm_jax.data.tokenizers import Tokenizer

Batch = dict[str, np.ndarray]
_CHUNK_CHARS = 1 << 20  # text tokenised in one call


@dataclasses.dataclass(frozen=True)
class Tokens:
    """A tokenised split: ids [n] in the narrowest dtype, ``eos_id`` after each document; UTF-8 bytes of its text."""

    ids: np.ndarray
    documents: int
    bytes: int


def tokenize(documents: Iterable[Document], tokenizer: Tokenizer) -> Tokens:
    """Joins the documents into one stream of tokens.

    Raises:
      ConfigError: a text encodes to a special token, which noise and document ends could not be told from.
    """
    dtype = np.uint16 if tokenizer.vocab_size <= 1 << 16 else np.int32
    end = np.array([tokenizer.eos_id], dtype)
    parts, count, size = [], 0, 0
    for document, ids in encode(documents, tokenizer):
        parts += [ids.astype(dtype), end]
        count += 1
        size += len(document.text.encode())
    return Tokens(np.concatenate(parts) if parts else end[:0], count, size)


def encode(documents: Iterable[Document], tokenizer: Tokenizer) -> Iterator[tuple[Document, np.ndarray]]:
    """Each document with its ids int32 [n], the end token not among them; a few megabytes at a time.

    Raises:
      ConfigError: a text encodes to a special token.
    """
    special = (tokenizer.mask_id, tokenizer.eos_id, tokenizer.pad_id)
    for chunk in _chunks(documents):
        for document, ids in zip(chunk, tokenizer.encode_batch([d.text for d in chunk]), strict=True):
            if any((ids == token).any() for token in special):
                raise ConfigError(f"data.tokenizer: turns text of the document {document.name!r} into one of its "
                                  f"special tokens {special}; choose a tokenizer that keeps them apart")
            yield document, ids


def _chunks(documents: Iterable[Document]) -> Iterator[list[Document]]:
    chunk, size = [], 0
    for document in documents:
        chunk.append(document)
        size += len(document.text)
        if size >= _CHUNK_CHARS:
            yield chunk
            chunk, size = [], 0
    if chunk:
        yield chunk


def split_rows(ids: np.ndarray, length: int) -> np.ndarray:
    """The stream [n] as rows [n // length, length]; the last ``n % length`` tokens are dropped."""
    return ids[: len(ids) // length * length].reshape(-1, length)


def pack(ids: np.ndarray, length: int, packing: str, tokenizer: Tokenizer) -> np.ndarray:
    """The joined documents [n] as rows [R, length] for ``data.packing``; what does not fill a row is dropped."""
    rows = split_rows(ids, row_tokens(length, packing))
    if packing != "wrapped":
        return rows
    return np.pad(rows, ((0, 0), (1, 1)), constant_values=((0, 0), (tokenizer.bos_id, tokenizer.eos_id)))


def make_batch(rows: np.ndarray, packing: str, eos_id: int, pad_id: int) -> Batch:
    """The batch of some rows.

    Args:
      rows: integers [B, L]; with packing ``prompts`` a token of the prompt is stored as -1 - id (`data.prompts`).
      packing: ``concat``, ``wrapped``: attention crosses document ends, positions are 0..L-1. ``documents``:
        attention_mask numbers the documents of a row 1, 2, ... (an end token belongs to the document it ends) and
        positions restart at each; a document that a row's start cuts restarts there as well. ``prompts``: a row is a
        prompt and its answer; the prompt is seen, but neither noised nor counted.
      eos_id: ends a document.
      pad_id: stands for nothing: not attended to, neither noised nor counted.

    Returns:
      tokens, attention_mask, positions int32 [B, L]; noise_mask, loss_mask bool [B, L].
    """
    prompt = rows < 0 if packing == "prompts" else np.zeros(rows.shape, bool)
    tokens = np.where(prompt, -1 - rows.astype(np.int32), rows).astype(np.int32)
    index = np.arange(tokens.shape[1], dtype=np.int32)
    first = np.zeros(tokens.shape, bool)
    first[:, 0] = True
    if packing == "documents":
        first[:, 1:] = tokens[:, :-1] == eos_id
    real = tokens != pad_id
    start = np.maximum.accumulate(np.where(first, index, 0), axis=1)
    return {
        "tokens": tokens,
        "attention_mask": np.where(real, np.cumsum(first, axis=1), 0).astype(np.int32),
        "positions": (index - start).astype(np.int32),
        "noise_mask": real & ~prompt,
        "loss_mask": real & ~prompt,
    }
