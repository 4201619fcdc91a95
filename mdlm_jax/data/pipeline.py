"""Step-indexed batches: ``batch(step)`` is a pure function, so restarts and any number of hosts see the same rows."""

import collections
import concurrent.futures
import dataclasses
import functools
import hashlib
import json
from collections.abc import Iterator

import numpy as np

from mdlm_jax.config import ConfigError, DataConfig
from mdlm_jax.data.packing import Batch, make_batch, split_rows, tokenize
from mdlm_jax.data.shuffle import permute
from mdlm_jax.data.sources import open_source
from mdlm_jax.data.tokenizers import LanguageTokenizer, Tokenizer, make_tokenizer


class Pipeline:
    """Batches of fixed-length rows held in memory.

    Row ``step * batch_size + i`` of an endless stream is row i of a batch. The stream is one epoch after another; each
    epoch shows every row exactly once, in an order of its own drawn from (seed, epoch), or, where the rows are
    ``in_order``, as they are stored. A batch may span two epochs.

    Attributes:
      num_rows, length, batch_size: R rows of L tokens, B rows a batch.
      tokens_per_epoch: R * L.
    """

    def __init__(self, rows: np.ndarray, *, batch_size: int, seed: int, packing: str, tokenizer: Tokenizer,
                 in_order: bool = False):
        """``rows``: integers [R, L], R >= 1."""
        self._rows, self._seed, self._packing, self._in_order = rows, seed, packing, in_order
        self._eos_id, self._pad_id = tokenizer.eos_id, tokenizer.pad_id
        self._vocab_size = tokenizer.vocab_size
        self.num_rows, self.length = rows.shape
        self.batch_size = batch_size
        self.tokens_per_epoch = rows.size

    @functools.cached_property
    def fingerprint(self) -> str:
        """Hex sha256 of the rows and of every setting that decides what ``batch`` gives."""
        settings = [self.num_rows, self.length, self.batch_size, self._seed, self._packing, self._eos_id, self._pad_id,
                    self._vocab_size] + ["in order"] * self._in_order
        digest = hashlib.sha256(json.dumps(settings).encode())
        for start in range(0, self.num_rows, 4096):
            digest.update(self._rows[start : start + 4096].astype("<i4").tobytes())
        return digest.hexdigest()

    def row_index(self, step: int, rows: slice | None = None) -> np.ndarray:
        """Which stored rows ``batch(step, rows)`` holds, int64 [b]. O(b), whatever the step."""
        if step < 0:
            raise ValueError(f"step={step}: must not be negative")
        wanted = range(self.batch_size)[rows or slice(None)]
        if not wanted or (rows and (rows.stop or 0) > self.batch_size):
            raise ValueError(f"rows={rows}: must be a non-empty slice of the {self.batch_size} rows of a batch")
        place = [divmod(step * self.batch_size + i, self.num_rows) for i in wanted]
        epoch, index = np.array(place, np.uint64).T
        return index.astype(np.int64) if self._in_order else permute(index, epoch, self.num_rows, self._seed)

    def batch(self, step: int, rows: slice | None = None) -> Batch:
        """The batch of a step, or the ``rows`` of it that one host needs.

        Args:
          step: from 0 on, without end.
          rows: a slice of the global batch; the slices of all hosts, put together, are ``batch(step)``.

        Returns:
          tokens, attention_mask, positions int32 [b, L]; noise_mask, loss_mask bool [b, L]; see ``make_batch``.

        Raises:
          ValueError: a negative step or rows outside the batch.
        """
        return self._batch(self._rows[self.row_index(step, rows)])

    def sequential(self, start: int, count: int) -> Batch:
        """Rows start..start+count-1 in stored order, once each, for evaluation. ValueError beyond the last row."""
        if not 0 <= start < start + count <= self.num_rows:
            raise ValueError(f"start={start}, count={count}: must name rows among the {self.num_rows} there are")
        return self._batch(self._rows[start : start + count])

    def _batch(self, rows: np.ndarray) -> Batch:
        return make_batch(rows, self._packing, self._eos_id, self._pad_id)


@dataclasses.dataclass(frozen=True)
class Built:
    """Both pipelines, the tokenizer, and ``info``: a JSON-able account of each split (see ``build``)."""

    train: Pipeline
    valid: Pipeline
    tokenizer: Tokenizer
    info: dict


def build(config: DataConfig, batch_size: int, tokenizer: Tokenizer | None = None) -> Built:
    """Reads the source, tokenises and packs both splits.

    Args:
      config: the data section of a run.
      batch_size: rows a step, over all hosts.
      tokenizer: that of a checkpoint; otherwise ``config.tokenizer`` is loaded, or trained on the training split.

    Returns:
      ``Built``; ``info`` holds ``source``, ``skipped_files``, ``vocab_size``, ``lossless``, and for ``train`` and for
      ``valid``: ``documents``, ``bytes`` (UTF-8, of the text), ``tokens`` (end tokens included), ``bytes_per_token``
      (None where tokens stand for no text), ``rows`` and ``dropped_tokens`` (those of the last, partial row).

    Raises:
      ConfigError: a missing or unusable source or tokenizer, or too little text for one batch and one held-out row.
    """
    if config.source.startswith("language:"):
        return _build_language(config, batch_size, tokenizer)
    if config.prompt_field:
        from mdlm_jax.data.prompts import build_prompts

        return build_prompts(config, batch_size, tokenizer)
    source = open_source(config)
    tokenizer = tokenizer or make_tokenizer(config.tokenizer, lambda: (d.text for d in source.documents("train")))
    tokens = {split: tokenize(source.documents(split), tokenizer) for split in ("train", "valid")}
    rows = {split: split_rows(tokens[split].ids, config.length) for split in tokens}
    if len(rows["train"]) < batch_size or not len(rows["valid"]):
        raise _too_small(config, batch_size, sum(tokens[split].bytes for split in tokens),
                         f"there are {len(rows['train'])} and {len(rows['valid'])}")
    info = {split: _account(t.documents, t.bytes, len(t.ids), rows[split]) for split, t in tokens.items()}
    pipelines = {split: _pipeline(rows[split], config, batch_size, tokenizer) for split in rows}
    return _built(config, pipelines, tokenizer, info, len(source.skipped))


def check_size(config: DataConfig, batch_size: int, size: int) -> None:
    """ConfigError where ``size`` bytes of text cannot even be one batch, at one token a byte."""
    if size < batch_size * config.length:
        raise _too_small(config, batch_size, size, "it is shorter even at one token a byte")


def _too_small(config: DataConfig, batch_size: int, size: int, finding: str) -> ConfigError:
    return ConfigError(f"data.source={config.source!r}: {size:,} bytes of text are too few for {batch_size} training "
                       f"rows (train.batch_size) and one held-out row of {config.length} tokens (data.length): "
                       f"{finding}; lower one of the two, or give more text")


def _build_language(config: DataConfig, batch_size: int, tokenizer: Tokenizer | None) -> Built:
    from mdlm_jax.data.language_rows import account, in_order, language_rows

    rows, own = language_rows(config)
    if tokenizer is not None and (type(tokenizer), tokenizer.vocab_size) != (LanguageTokenizer, own.vocab_size):
        raise ConfigError(f"data.source={config.source!r}: has {own.vocab_size} ids, but the tokenizer given is a "
                          f"{type(tokenizer).__name__} of {tokenizer.vocab_size}; use the source it was made for")
    pipelines = {split: _pipeline(rows[split], config, batch_size, own, in_order(config)) for split in rows}
    more = account(config)
    info = {split: _account(len(rows[split]), 0, rows[split].size, rows[split]) | more[split] for split in rows}
    return _built(config, pipelines, own, info, 0)


def _pipeline(rows: np.ndarray, config: DataConfig, batch_size: int, tokenizer: Tokenizer, in_order=False) -> Pipeline:
    return Pipeline(rows, batch_size=batch_size, seed=config.seed, packing=config.packing, tokenizer=tokenizer,
                    in_order=in_order)


def _account(documents: int, size: int, tokens: int, rows: np.ndarray) -> dict:
    return {"documents": documents, "bytes": size, "tokens": tokens, "bytes_per_token": size / tokens if size else None,
            "rows": len(rows), "dropped_tokens": tokens - rows.size}


def _built(config: DataConfig, pipelines: dict, tokenizer: Tokenizer, info: dict, skipped: int) -> Built:
    info = {"source": config.source, "skipped_files": skipped, "vocab_size": tokenizer.vocab_size,
            "lossless": tokenizer.lossless, **info}
    return Built(pipelines["train"], pipelines["valid"], tokenizer, info)


class Prefetcher:
    """An iterator of (step, batch) whose batches are made ahead in one background thread; see ``prefetch``."""

    def __init__(self, pipeline: Pipeline, start_step: int, rows: slice | None, depth: int):
        if depth < 1:
            raise ValueError(f"depth={depth}: must be at least 1")
        self._pipeline, self._rows, self._next_step = pipeline, rows, start_step
        self._executor = concurrent.futures.ThreadPoolExecutor(1, thread_name_prefix="prefetch")
        self._pending = collections.deque()
        self._closed = False
        for _ in range(depth):
            self._submit()

    def _submit(self) -> None:
        step, self._next_step = self._next_step, self._next_step + 1
        self._pending.append((step, self._executor.submit(self._pipeline.batch, step, self._rows)))

    def __iter__(self) -> Iterator[tuple[int, Batch]]:
        return self

    def __next__(self) -> tuple[int, Batch]:
        if self._closed:
            raise StopIteration
        step, future = self._pending.popleft()
        try:
            batch = future.result()
        except BaseException:
            self.close()
            raise
        self._submit()
        return step, batch

    def close(self) -> None:
        """Ends the thread; unused batches are dropped. Iteration stops. Closing twice is fine."""
        self._closed = True
        self._executor.shutdown(wait=True, cancel_futures=True)
        self._pending.clear()

    def __enter__(self) -> "Prefetcher":
        return self

    def __exit__(self, *exception) -> None:
        self.close()


def prefetch(pipeline: Pipeline, start_step: int, rows: slice | None = None, depth: int = 2) -> Prefetcher:
    """Endless (step, batch) from ``start_step`` on, ``depth`` batches ahead; use it in a ``with`` block.

    An error of the background thread is raised again by ``next``, after which the iterator is closed.
    """
    return Prefetcher(pipeline, start_step, rows, depth)
