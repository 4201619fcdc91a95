"""Step-indexed batches: ``batch(step)`` is a pure function, so restarts and any number of hosts see the same rows."""

import dataclasses
import functools
import hashlib
import json
from typing import Any

import numpy as np

from mdlm_jax.config import ConfigError, DataConfig
from mdlm_jax.config.data import is_images, parse_prepared, parse_warmup, row_tokens
from mdlm_jax.data.cuts import Cut
from mdlm_jax.data.detokenizers import detokenized
from mdlm_jax.data.orders import InOrder, Mixed, Shuffled
from mdlm_jax.data.packing import Batch, make_batch, pack, tokenize
from mdlm_jax.data.sources import open_source
from mdlm_jax.data.tokenizers import LanguageTokenizer, Tokenizer, make_tokenizer


class Pipeline:
    """Batches of fixed-length rows, held in memory or read as they are needed.

    Row ``step * batch_size + i`` of an endless stream is row i of a batch. The stream is one epoch after another; each
    epoch shows every row exactly once, in an order of its own drawn from (seed, epoch), or, where the rows are
    ``in_order``, as they are stored. A batch may span two epochs. A mixture has epochs of its own for each source
    (``orders.Mixed``).

    Attributes:
      num_rows, length, batch_size: R rows of L tokens, B rows a batch.
      tokens_per_epoch: R * L.
    """

    def __init__(self, rows, *, batch_size: int, seed: int, packing: str, tokenizer: Tokenizer, in_order: bool = False,
                 mixed: Mixed | None = None, cut: Cut | None = None, labels: np.ndarray | None = None):
        """``rows``: integers [R, L], R >= 1: an array, or what can be indexed like one (``prepared.Rows``).

        ``labels``: int32 [R], the class of each row; None: they have none.
        """
        self._rows, self._seed, self._packing, self._labels = rows, seed, packing, labels
        self._eos_id, self._pad_id = tokenizer.eos_id, tokenizer.pad_id
        self._vocab_size = tokenizer.vocab_size
        self.num_rows, self.length = rows.shape
        self.batch_size = batch_size
        self.tokens_per_epoch = self.num_rows * self.length
        self._order = mixed or (InOrder(self.num_rows) if in_order else Shuffled(self.num_rows, seed))
        self._cut = cut if cut is not None and cut.cuts else None

    @functools.cached_property
    def fingerprint(self) -> str:
        """Hex sha256 of the rows and of every setting that decides what ``batch`` gives."""
        settings = [self.num_rows, self.length, self.batch_size, self._seed, self._packing, self._eos_id, self._pad_id,
                    self._vocab_size] + ["in order"] * isinstance(self._order, InOrder)
        if isinstance(self._order, Mixed):
            settings.append(self._order.describe())
        if self._cut:
            settings.append(dataclasses.astuple(self._cut))
        digest = hashlib.sha256(json.dumps(settings).encode())
        if isinstance(self._rows, np.ndarray):
            for start in range(0, self.num_rows, 4096):
                digest.update(self._rows[start : start + 4096].astype("<i4").tobytes())
        else:
            digest.update(self._rows.digest.encode())
        if self._labels is not None:
            digest.update(self._labels.astype("<i4").tobytes())
        return digest.hexdigest()

    def _positions(self, step: int, rows: slice | None) -> np.ndarray:
        if step < 0:
            raise ValueError(f"step={step}: must not be negative")
        wanted = range(self.batch_size)[rows or slice(None)]
        if not wanted or (rows and (rows.stop or 0) > self.batch_size):
            raise ValueError(f"rows={rows}: must be a non-empty slice of the {self.batch_size} rows of a batch")
        return step * self.batch_size + np.asarray(wanted, np.int64)

    def row_index(self, step: int, rows: slice | None = None) -> np.ndarray:
        """Which stored rows ``batch(step, rows)`` holds, int64 [b]. O(b), whatever the step."""
        return self._order(self._positions(step, rows))

    def batch(self, step: int, rows: slice | None = None) -> Batch:
        """The batch of a step, or the ``rows`` of it that one host needs.

        Args:
          step: from 0 on, without end.
          rows: a slice of the global batch; the slices of all hosts, put together, are ``batch(step)``.

        Returns:
          tokens, attention_mask, positions int32 [b, L]; noise_mask, loss_mask bool [b, L]; see ``make_batch``. Where
          rows have classes, also label int32 [b].

        Raises:
          ValueError: a negative step or rows outside the batch.
        """
        positions = self._positions(step, rows)
        index = self._order(positions)
        found = self._rows[index]
        if self._cut:
            behind = np.arange(self.length) >= self._cut.lengths(step, positions)[:, None]
            found = np.where(behind, self._pad_id, found)
        return self._batch(found, index)

    def sequential(self, start: int, count: int) -> Batch:
        """Rows start..start+count-1 in stored order, once each and never cut, for evaluation.

        ValueError beyond the last row.
        """
        if not 0 <= start < start + count <= self.num_rows:
            raise ValueError(f"start={start}, count={count}: must name rows among the {self.num_rows} there are")
        index = slice(start, start + count)
        return self._batch(self._rows[index], index)

    def _batch(self, rows: np.ndarray, index) -> Batch:
        batch = make_batch(rows, self._packing, self._eos_id, self._pad_id)
        return batch if self._labels is None else batch | {"label": self._labels[index]}


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
    if is_images(config.source):
        from mdlm_jax.data.images import build_images

        return build_images(config, batch_size, tokenizer)
    if config.source.startswith("trajectories:"):
        from mdlm_jax.data.trajectories import build_trajectories

        return build_trajectories(config, batch_size, tokenizer)
    if parse_prepared(config.source):
        from mdlm_jax.data.prepared import build_prepared

        return build_prepared(config, batch_size, tokenizer)
    if config.answers:
        from mdlm_jax.data.prompts import build_prompts

        return build_prompts(config, batch_size, tokenizer)
    source = open_source(config)
    read = lambda split: detokenized(source.documents(split), config.detokenizer)  # noqa: E731
    tokenizer = tokenizer or make_tokenizer(config.tokenizer, lambda: (d.text for d in read("train")))
    tokens = {split: tokenize(read(split), tokenizer) for split in ("train", "valid")}
    rows = {split: pack(tokens[split].ids, config.length, config.packing, tokenizer) for split in tokens}
    if len(rows["train"]) < batch_size or not len(rows["valid"]):
        raise too_small(config, batch_size, sum(tokens[split].bytes for split in tokens),
                        f"there are {len(rows['train'])} and {len(rows['valid'])}")
    each = row_tokens(config.length, config.packing)
    info = {split: _account(t.documents, t.bytes, len(t.ids), len(rows[split]), each) for split, t in tokens.items()}
    return make_built(config, make_pipelines(rows, config, batch_size, tokenizer), tokenizer, info, len(source.skipped))


def check_size(config: DataConfig, batch_size: int, size: int) -> None:
    """ConfigError where ``size`` bytes of text cannot even be one batch, at one token a byte."""
    if size < batch_size * row_tokens(config.length, config.packing):
        raise too_small(config, batch_size, size, "it is shorter even at one token a byte")


def too_small(config: DataConfig, batch_size: int, size: int, finding: str) -> ConfigError:
    """The error of a source with less than one batch and one held-out row."""
    return ConfigError(f"data.source={config.source!r}: {size:,} bytes of text are too few for {batch_size} training "
                       f"rows (train.batch_size) and one held-out row of {config.length} tokens (data.length): "
                       f"{finding}; lower one of the two, or give more text")


def _build_language(config: DataConfig, batch_size: int, tokenizer: Tokenizer | None) -> Built:
    from mdlm_jax.data.language_rows import account, in_order, language_rows

    rows, own = language_rows(config)
    if tokenizer is not None and (type(tokenizer), tokenizer.vocab_size) != (LanguageTokenizer, own.vocab_size):
        raise ConfigError(f"data.source={config.source!r}: has {own.vocab_size} ids, but the tokenizer given is a "
                          f"{type(tokenizer).__name__} of {tokenizer.vocab_size}; use the source it was made for")
    pipelines = make_pipelines(rows, config, batch_size, own, in_order=in_order(config))
    more = account(config)
    info = {split: _account(len(r), 0, r.size, len(r), config.length) | more[split] for split, r in rows.items()}
    return make_built(config, pipelines, own, info, 0)


def make_pipelines(rows: dict, config: DataConfig, batch_size: int, tokenizer: Tokenizer, *, in_order: bool = False,
                   mixed: Mixed | None = None, labels: dict | None = None) -> dict[str, Pipeline]:
    """A pipeline for the rows of each split, with their ``labels``; only those of ``train`` are mixed and cut."""
    settings: dict[str, Any] = {"batch_size": batch_size, "seed": config.seed, "packing": config.packing,
                                "tokenizer": tokenizer, "in_order": in_order}
    cut = Cut(config.length, config.random_length, *parse_warmup(config.length_warmup, config.length), config.seed)
    labels = labels or dict.fromkeys(rows)
    return {"train": Pipeline(rows["train"], **settings, mixed=mixed, cut=cut, labels=labels["train"]),
            "valid": Pipeline(rows["valid"], **settings, labels=labels["valid"])}


def _account(documents: int, size: int, tokens: int, rows: int, each: int) -> dict:
    return {"documents": documents, "bytes": size, "tokens": tokens, "bytes_per_token": size / tokens if size else None,
            "rows": rows, "dropped_tokens": tokens - rows * each}


def make_built(config: DataConfig, pipelines: dict, tokenizer: Tokenizer, info: dict, skipped: int) -> Built:
    """``Built`` with the account of the whole put before those of the splits."""
    info = {"source": config.source, "skipped_files": skipped, "vocab_size": tokenizer.vocab_size,
            "lossless": tokenizer.lossless, **info}
    return Built(pipelines["train"], pipelines["valid"], tokenizer, info)
