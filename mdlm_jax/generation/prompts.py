"""Prompts and texts with holes as rows to be written, checked before anything is compiled."""

import os
import re
from collections.abc import Mapping, Sequence

import numpy as np

from mdlm_jax.config.evaluation import NEW_TOKENS
from mdlm_jax.errors import ConfigError
from mdlm_jax.generation.options import Options, Sampler, is_whole
from mdlm_jax.models.conditioning import checked_classes
from mdlm_jax.sampling.rows import Row

_SURROGATE = re.compile(r"[\ud800-\udfff]")


def is_single(prompts) -> bool:
    """Whether this is one prompt and not several: a string, or one row of tokens."""
    return isinstance(prompts, str) or _is_tokens(prompts)


def prompt_rows(model, sampler: Sampler, prompts, new_tokens: int | None,
                options: Options) -> tuple[list[Row], list[int]]:
    """Rows of a prompt and ``new_tokens`` to be written, and their numbers; None: 128, or as many as fit the row.

    For a block-causal network the last block is filled up, as it was in training; what is beyond is cut off later.

    Args:
      prompts: strings or rows of token ids, one or several.
    Raises:
      ConfigError: no prompts, no tokenizer for strings, an empty prompt where the network needs one, ids outside the
        vocabulary or masks, too long for the model.
    """
    if new_tokens is not None and (not is_whole(new_tokens) or new_tokens < 1):
        raise ConfigError(f"new_tokens={new_tokens!r}: must be a whole number of at least 1")
    found = _encoded(model, "prompts", prompts, options)
    whole = sampler.block_length or 1 if sampler.denoise.contract == "block_causal" else 1
    learned = model.config.learned_positions // whole * whole
    most = min(filter(None, (learned, options.max_length or model.description.max_length)), default=0)
    rows, wanted = [], []
    for name, ids, row_id, condition in found:
        room = max(1, min(NEW_TOKENS, most - len(ids))) if most else NEW_TOKENS
        wanted.append(room if new_tokens is None else new_tokens)
        check_ids(name, ids, model, sampler.mask_id)
        if sampler.blind and not len(ids):
            raise ConfigError(f"{name}: is empty, and this network scores a token from the one before it; begin with a "
                              "token (its beginning of text, say)")
        if options.guidance and condition is None and not len(ids):
            raise ConfigError(f"{name}: is empty, and guidance={options.guidance} guides towards a prompt; leave it 0")
        length = len(ids) + wanted[-1]
        check_length(name, f"{len(ids)} tokens and {wanted[-1]} new ones", length, model, options)
        length = -(-length // whole) * whole
        if learned and length > learned:
            raise ConfigError(f"{name}: {len(ids)} tokens and {wanted[-1]} new ones are {length} in whole blocks of "
                              f"{whole}, and the network learned {model.config.learned_positions} positions; shorten "
                              "them")
        tokens = np.full(length, sampler.mask_id, np.int32)
        tokens[: len(ids)] = ids
        editable = np.arange(length) >= len(ids)
        if sampler.lead is not None:
            tokens, editable = np.insert(tokens, 0, sampler.lead), np.insert(editable, 0, False)
        rows.append(Row(tokens, editable, row_id, condition))
    return rows, wanted


def infill_rows(model, sampler: Sampler, texts, hole: str, options: Options) -> list[Row]:
    """Rows with holes: each ``hole`` in a string, or each mask in a row of tokens, is one token to be written.

    Raises:
      ConfigError: as `prompt_rows`; a row without a hole.
    """
    if not hole or not isinstance(hole, str):
        raise ConfigError(f"hole={hole!r}: must be a string that stands for one token to be written")
    rows = []
    for name, ids, row_id, condition in _encoded(model, "texts", texts, options, hole, sampler.mask_id):
        editable = ids == sampler.mask_id
        if not editable.any():
            raise ConfigError(f"{name}: has no hole; write {hole} for each token wanted, or the mask's id among tokens")
        if sampler.blind and editable[0]:
            raise ConfigError(f"{name}: begins with a hole, and this network scores a token from the one before it; "
                              "begin with a token")
        if options.guidance and condition is None and editable.all():
            raise ConfigError(f"{name}: is all holes, and guidance={options.guidance} guides towards what is given; "
                              "leave it 0")
        check_ids(name, ids[~editable], model, sampler.mask_id)
        check_length(name, f"{len(ids)} tokens", len(ids), model, options)
        rows.append(Row(ids, editable, row_id, condition))
    return rows


def _encoded(model, what: str, given, options: Options, hole: str = "", mask_id: int | None = None):
    """(name, ids [n] int32, row id, class or None) of each."""
    single = is_single(given)
    several = [given] if single else listed(what, given)
    if not several:
        raise ConfigError(f"{what}: there are none; give at least one")
    names = [what.removesuffix("s")] if single else [f"{what}[{i}]" for i in range(len(several))]
    row_ids = range(len(several)) if options.row_ids is None else list(options.row_ids)
    if len(row_ids) != len(several) or not all(is_whole(i) and 0 <= i < 2**32 for i in row_ids):
        raise ConfigError(f"row_ids: must be {len(several)} whole numbers in [0, 2^32), one for each of {what}")
    conditions = [None] * len(several)
    if options.label is not None:
        conditions = checked_classes(options.label, model.config.classes, len(several)).tolist()
    return [(name, encode(name, one, model.tokenizer, options.special, hole, mask_id), int(row_id), condition)
            for name, one, row_id, condition in zip(names, several, row_ids, conditions, strict=True)]


def listed(what: str, given) -> list:
    """Several of them as a list."""
    _check_kind(what, given)
    if isinstance(given, Mapping):
        raise ConfigError(f"{what}={given!r}: is a dict; give a string, a row of token ids, or a list of those")
    try:
        return list(given)
    except TypeError:
        raise ConfigError(f"{what}={given!r}: must be a string, a row of token ids, or a list of those") from None


def _check_kind(name: str, given) -> None:
    """ConfigError for what is nearly a prompt, with how to make one of it."""
    if isinstance(given, str) and (lone := _SURROGATE.search(given)):
        raise ConfigError(f"{name}: holds half a character, {lone[0]!r}, at {lone.start()}; give "
                          f"{name}.encode('utf-8', 'replace').decode()")
    if isinstance(given, (bytes, bytearray)):
        raise ConfigError(f"{name}={bytes(given[:40])!r}: is bytes; give text, as {name}.decode() does")
    if isinstance(given, os.PathLike):
        raise ConfigError(f"{name}={given!r}: is a path; give the text, as {name}.read_text() does")
    turns = [given] if isinstance(given, Mapping) else given if isinstance(given, list) else []
    if any(isinstance(turn, Mapping) and {"role", "content"} <= set(turn) for turn in turns):
        raise ConfigError(f"{name}: is a conversation; give mdlm_jax.data.chat.prompt(messages, template, "
                          "model.tokenizer)")


def encode(name: str, given, tokenizer, special: bool = False, hole: str = "", mask_id: int | None = None):
    """Token ids, int32 [n], of a string or of a row of ids; ``mask_id`` for every ``hole`` in a string.

    Raises:
      ConfigError: neither of both, a string without a tokenizer, or one that the tokenizer refuses.
    """
    _check_kind(name, given)
    if isinstance(given, str):
        if tokenizer is None:
            raise ConfigError(f"{name}: is text, and the model's files hold no tokenizer.json; give token ids")
        parts = given.split(hole) if hole else [given]
        try:
            pieces = [tokenizer.encode_special(parts[0]) if special else tokenizer.encode(parts[0])]
            pieces += [tokenizer.encode_next(part, special) for part in parts[1:]]
        except ValueError as error:  # oracle languages have numbers for text
            raise ConfigError(f"{name}: {error}") from None
        holes = [np.full(1, mask_id, np.int32)] * (len(pieces) - 1) if hole else []
        return np.concatenate([x for pair in zip(pieces, [*holes, pieces[-1][:0]], strict=True) for x in pair])
    if not _is_tokens(given):
        raise ConfigError(f"{name}={str(given)[:40]}: must be a string, or whole numbers, one for each token")
    ids = np.asarray(given)
    return ids.astype(np.int32) if ((0 <= ids) & (ids < 2**31)).all() else ids


def _is_tokens(given) -> bool:
    """Whether this is one row of token ids; an empty list is no row, but an empty array of integers is."""
    if isinstance(given, Sequence) and not isinstance(given, (str, bytes, bytearray)):
        return bool(given) and all(is_whole(x) for x in given)
    return getattr(given, "ndim", None) == 1 and np.issubdtype(given.dtype, np.integer)


def check_ids(name: str, ids: np.ndarray, model, mask_id: int) -> None:
    outside = (ids < 0) | (ids >= model.config.vocab_size)
    if outside.any():
        raise ConfigError(f"{name}: holds the id {ids[outside][0]}; ids must lie in 0..{model.config.vocab_size - 1}")
    if (ids == mask_id).any():
        raise ConfigError(f"{name}: holds the mask, {mask_id}; call infill, which writes between given tokens")


def check_length(name: str, what: str, length: int, model, options: Options) -> None:
    learned, made = model.config.learned_positions, model.description.max_length
    if learned and length > learned:
        raise ConfigError(f"{name}: {what} do not fit the {learned} positions that the network learned; shorten them")
    most = options.max_length or made
    if most and length > most:
        raise ConfigError(f"{name}: {what} do not fit max_length={most}; shorten them, or give max_length={length}")
