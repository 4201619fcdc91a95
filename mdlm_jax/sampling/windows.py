"""Blocks and caches: which part of the canvas every forward runs on.

    cache     first forward of a block         the others             what it is
    none      whole canvas                     whole canvas           exact
    prefix    whole canvas                     from the block on      approximate: tokens before the block stay as they
                                                                      saw it when it began (Fast-dLLM, 2505.22618)
    dual      whole canvas                     the block              approximate: so do the masks after it
    vicinity  whole canvas                     the block, BACK        approximate: so does what is further away (dInfer,
                                               before, AHEAD behind   2510.08666)
    dkv_      whole canvas, as the block's     masks, and what the    approximate: a token stays as it saw the canvas
    decode    second forward                   last step wrote        one step after it was written (dKV-Cache,
                                                                      2505.15781)
    dkv_      whole canvas                     what the last step     approximate: so do masks that are far from what
    greedy                                     wrote and this one     is written
                                               will, WINDOW masks
                                               around each of these
    block     the block before and this one    the block              exact, for block-causal networks: a token never
                                                                      sees later blocks (BD3-LM 2503.09573, LLaDA2);
                                                                      for causal ones, whose blocks are tokens

The first forward of the first block under ``block`` runs from 0 on, which fills the cache with the prompt. That a
block's first forward carries the finished one before it along saves the forward that would only store its keys.

The approximate ones can be refreshed: of a block's forwards every REFRESH-th runs on the whole canvas again
(``prefix:8``, ``dual:8``, ``vicinity:16,16,4,8``, ``dkv_decode:8``, ``dkv_greedy:2,4``; `sampling.caching`), and under
vicinity the first WARMUP + 1 of the first block do. Rows are in step with each other in a block and nowhere else, so
both count a block's forwards; dInfer counts those of the generation, and its warm-up may go on in the second block.
Near the beginning, where fewer than BACK tokens stand before a block, as many more behind it are run. dkv_greedy has to
know before the forward where the decoder will write, as it does of random remasking alone.
A decoder that reaches back, or writes ahead, has those blocks in its windows too. Where positions share a pool of
experts (``moe.block``), under ``prefix`` and ``dual`` those of the window that do have theirs alone.
"""

import dataclasses
from typing import Any

import numpy as np

from mdlm_jax.sampling.caching import Caching, parse
from mdlm_jax.sampling.canvas import Canvas
from mdlm_jax.sampling.state import Program, Scattered, Window

_SUFFIXES = 8  # lengths of suffix windows that are compiled at most
_BUCKET = 32  # lengths of prompts that share a program


@dataclasses.dataclass(frozen=True)
class Layout:
    """The blocks of a canvas.

    Attributes:
      block: length; blocks: how many the longest row has; start: [B], where they begin.
      length: of the canvas; slots: of the cache, 0 for none; cache: as it was named.
      quota: tokens that a step writes at most where they are spread evenly over the steps.
    """

    model: Any
    block: int
    blocks: int
    start: np.ndarray
    length: int
    reach: int
    ahead: int
    cache: str
    guided: bool
    quota: int = 1

    def low(self, number: int) -> np.ndarray:
        """[B] int32: where block ``number`` begins."""
        return (self.start + number * self.block).astype(np.int32)

    @property
    def caching(self) -> Caching:
        return parse(self.cache)

    @property
    def slots(self) -> int:
        if self.cache == "none":
            return 0
        ends = [(0 if window.back is None else max(int(self.low(number).max()) - window.back, 0)) + window.length
                for number in range(self.blocks) for window in self._windows(number) if isinstance(window, Window)]
        return max(self.length, *ends)

    def program(self, number: int) -> Program:
        """What block ``number`` runs."""
        enter, inner = self._windows(number)
        told = self.caching
        first = told.first + (0 if number else told.warmup)
        return Program(self.model, self.block, self.reach, self.ahead, enter, inner, self.cache != "none", self.guided,
                       first, told.refresh)

    def _windows(self, number: int) -> tuple[Window | None, Window | Scattered]:
        whole, told, written = Window(self.length), self.caching, self.reach + self.ahead
        back = (self.reach - 1) * self.block
        reached = Window(written * self.block, back)
        if told.name == "none":
            return None, whole
        if told.name == "prefix":
            return whole, Window(self._suffix(number) + back, back)
        if told.name in ("dual", "vicinity"):
            return whole, Window(reached.length + told.back + told.ahead, back + told.back)
        if told.name == "dkv_decode":
            return whole, Scattered(min(self._suffix(number), self.length))
        if told.name == "dkv_greedy":
            most = self.quota * (2 + told.window)
            return whole, Scattered(min(most, self.length), self.quota, told.window)
        if number == 0:
            end = int(self.low(0).max()) + (1 + self.ahead) * self.block
            return Window(min(_rounded(end, _BUCKET), max(end, self.length))), reached
        return Window((written + 1) * self.block, self.reach * self.block), reached

    def _suffix(self, number: int) -> int:
        """Tokens from the block to the end, rounded up so that few lengths occur."""
        whole = self.length - int(self.start.min())
        unit = _rounded(-(-whole // _SUFFIXES), self.block)
        return _rounded(self.length - int(self.low(number).min()), unit)


def lay_out(model, canvas: Canvas, decoder, *, block_length: int | None, cache: str, guided: bool) -> Layout:
    """The blocks of a canvas.

    Raises:
      ValueError: an unknown cache, one that the model's contract does not allow, a block length below 1.
    """
    length, editable = canvas.shape[1], np.asarray(canvas.editable)
    check_cache(cache, model, block_length, decoder)
    start = np.asarray(canvas.start)
    if block_length is None:
        if decoder.reach > 1:
            raise ValueError(f"reach={decoder.reach}: counts blocks; give block_length, or leave it at 1")
        if decoder.ahead:
            raise ValueError(f"ahead={decoder.ahead}: counts blocks; give block_length, or set it to 0")
        return Layout(model, length, 1, np.zeros_like(start), length, 0, 0, cache, guided)
    if block_length < 1:
        raise ValueError(f"block_length={block_length}: must be at least 1")
    if model.contract == "block_causal":
        own = model.network.block_length
        if block_length % own and own % block_length:
            raise ValueError(f"block_length={block_length}: the network attends in blocks of {own}; give {own}")
        start = start // block_length * block_length
    end = length - editable[:, ::-1].argmax(1)
    written = editable.any(1)
    blocks = -(-(end - start)[written] // block_length)
    return Layout(model, block_length, int(blocks.max(initial=1)), start, length, decoder.reach, decoder.ahead, cache,
                  guided)


def check_cache(cache: str, model, block_length: int | None, decoder) -> None:
    """Refuses a cache that would not be what it says."""
    told = parse(cache)
    name = told.name
    if name == "none":
        return
    if not hasattr(model, "cache"):
        raise ValueError(f"cache={cache!r}: {type(model).__name__} keeps none; use cache='none'")
    wanted = ("block_causal", "causal") if name == "block" else ("bidirectional",)
    if model.contract not in wanted:
        fitting = {"bidirectional": "prefix, dual, vicinity or none", "block_causal": "block or none",
                   "causal": "block or none"}
        raise ValueError(f"cache={cache!r}: is for {' and '.join(wanted)} networks, and this one is {model.contract}; "
                         f"use {fitting.get(model.contract, 'none')}")
    if decoder.reach == 0:
        raise ValueError(f"cache={cache!r}: {type(decoder).__name__} looks beyond the block; use cache='none'")
    if block_length is None:
        raise ValueError(f"cache={cache!r}: works block after block; give block_length")
    if model.shifted and (told.scattered or name == "vicinity"):
        raise ValueError(f"cache={cache!r}: is for networks whose row i scores token i, and this one scores a token "
                         "from the row before it; use prefix, dual or none")
    if cache == "block" and model.timed:
        raise ValueError("cache='block': the network reads the noise level, so the keys of a finished block would be "
                         "those of one moment; use cache='none'")
    if cache == "block" and model.contract == "causal" and block_length != 1:
        raise ValueError(f"block_length={block_length}: a causal network writes one token after another; give 1")
    if cache == "block" and block_length % model.network.block_length:
        raise ValueError(f"cache='block': blocks of {block_length} must be whole blocks of the network, "
                         f"{model.network.block_length}")
    if told.scattered and not decoder.reads_masks:
        raise ValueError(f"cache={cache!r}: {type(decoder).__name__} reads, or writes, tokens that are no masks, which "
                         "are not run again; use prefix, dual, vicinity or none")
    if name == "dkv_greedy" and not decoder.foresees:
        raise ValueError(f"cache={cache!r}: runs on what is to be written, and {type(decoder).__name__} tells that "
                         "only after the forward; use low_confidence with remasking='random', or dkv_decode")
    pool = 0 if model.network.moe is None else model.network.moe.block
    if cache == "block" and pool and model.network.block_length % pool:
        raise ValueError(f"cache='block': {pool} positions share a pool of experts (moe.block), and later blocks of "
                         f"{model.network.block_length} would choose those of finished ones; use cache='none'")


def _rounded(number: int, unit: int) -> int:
    return -(-number // unit) * unit
