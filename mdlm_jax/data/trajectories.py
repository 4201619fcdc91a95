"""Trajectories: what a network wrote one token a forward, and in which order (`launch.trajectories`).

A folder holds shards of rows, NNNNN.npz, each with

    tokens  [R, L] int32, the finished rows
    rank    [R, L] int16: the how-manieth token of its row each one was, from 0; `GIVEN` for a prompt, `PADDING` for
            what fills a row up, `NEVER` for masks that were left

and meta.json, the settings that made them. State j of a trajectory shows the tokens of rank below j: no states are
stored. Training reads them as ``data.source=trajectories:DIR``: `training.objectives.joint` goes by the ranks,
`dparallel` and `dmax` take the rows as text.
"""

import json
from pathlib import Path

import numpy as np

from mdlm_jax.config import ConfigError, DataConfig
from mdlm_jax.data.files import appearing
from mdlm_jax.data.images import held_out
from mdlm_jax.data.packing import Batch
from mdlm_jax.data.pipeline import Built, Pipeline, make_built
from mdlm_jax.data.tokenizers import Tokenizer, load_tokenizer

GIVEN, PADDING, NEVER = -1, -2, np.iinfo(np.int16).max
META, SHARD = "meta.json", "{:05d}.npz"
PREFIX = "trajectories:"


def write_shard(path: Path, tokens: np.ndarray, rank: np.ndarray) -> None:
    """Whole or not at all. ValueError: ranks that NNNNN.npz has no room for."""
    if tokens.shape[1] >= NEVER:
        raise ValueError(f"rows of {tokens.shape[1]} tokens: must have fewer than {NEVER}")
    with appearing(path, path.parent) as partial, open(partial, "wb") as file:
        np.savez(file, tokens=tokens.astype(np.int32), rank=rank.astype(np.int16))


def read_meta(folder: Path) -> dict:
    """The settings; ConfigError where there are none."""
    try:
        return json.loads((folder / META).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(f"{PREFIX}{folder}: there are no trajectories; make some with launch.trajectories") from None
    except (OSError, ValueError) as error:
        raise ConfigError(f"{PREFIX}{folder}: {META} cannot be read ({error}); make the trajectories again") from None


def folder_of(source: str) -> Path:
    """Of ``data.source``."""
    return Path(source.removeprefix(PREFIX)).expanduser()


def read(folder: Path) -> tuple[np.ndarray, np.ndarray]:
    """tokens int32 and rank int32, [R, L] each. ConfigError: shards that are missing or damaged."""
    meta, pieces = read_meta(folder), []
    for number in range(meta["shards"]):
        path = folder / SHARD.format(number)
        try:
            with np.load(path, allow_pickle=False) as arrays:
                pieces.append((arrays["tokens"], arrays["rank"].astype(np.int32)))
        except (OSError, ValueError, KeyError, EOFError) as error:
            raise ConfigError(f"{PREFIX}{folder}: {path.name} cannot be read ({error}); run the command that makes the "
                              "trajectories again, it goes on where it stopped") from None
    tokens, rank = (np.concatenate(part) for part in zip(*pieces, strict=True))
    return tokens, rank


class Trajectories(Pipeline):
    """Batches with ``rank`` [b, L] int32; what was not written is neither noised nor counted, padding is not seen. What
    was never written, as behind an end token, is a mask, as the network saw it while it wrote."""

    def __init__(self, tokens: np.ndarray, rank: np.ndarray, **settings):
        both = np.concatenate([tokens, rank], axis=1)  # one array, so that the fingerprint is of both
        super().__init__(both, packing="concat", **settings)
        self.length, self._mask_id = tokens.shape[1], settings["tokenizer"].mask_id
        self.tokens_per_epoch = self.num_rows * self.length

    def _batch(self, rows: np.ndarray, index) -> Batch:
        del index
        tokens, rank = np.split(np.asarray(rows, np.int32), 2, axis=1)
        written = (rank >= 0) & (rank < NEVER)
        tokens = np.where(rank == NEVER, self._mask_id, tokens).astype(np.int32)
        positions = np.broadcast_to(np.arange(self.length, dtype=np.int32), tokens.shape)
        return {"tokens": tokens, "rank": rank, "attention_mask": (rank != PADDING).astype(np.int32),
                "positions": positions, "noise_mask": written, "loss_mask": written}


def check(config: DataConfig) -> Path:
    """The folder. ConfigError where it holds no trajectories, or rows of another length, and for fields of text."""
    folder = folder_of(config.source)
    meta = read_meta(folder)
    if meta["length"] != config.length:
        raise ConfigError(f"data.length={config.length}: the trajectories have rows of {meta['length']}; set it so")
    for name in ("tokenizer", "detokenizer", "packing", "valid_last", "random_length", "length_warmup"):
        value = getattr(config, name)
        if value != getattr(DataConfig, name):
            raise ConfigError(f"data.{name}={value!r}: has no meaning for trajectories, whose rows are ready; leave it "
                              "out")
    return folder


def build_trajectories(config: DataConfig, batch_size: int, tokenizer: Tokenizer | None = None) -> Built:
    """`pipeline.build` for trajectories.

    Raises:
      ConfigError: no trajectories, of another length or tokenizer, or fewer than a batch.
    """
    folder = check(config)
    own = load_tokenizer(folder / "tokenizer.json")
    if tokenizer is not None and not own.same_as(tokenizer):
        raise ConfigError(f"data.source={config.source!r}: was written by a network with another tokenizer; train the "
                          "layer for the network that wrote it, or go on from that")
    tokens, rank = read(folder)
    valid = held_out(len(tokens), config.valid_fraction)
    if (~valid).sum() < batch_size:
        raise ConfigError(f"data.source={config.source!r}: {(~valid).sum()} training rows are fewer than "
                          f"train.batch_size={batch_size}; lower it, or make more")
    pipelines = {split: Trajectories(tokens[chosen], rank[chosen], batch_size=batch_size, seed=config.seed,
                                     tokenizer=own) for split, chosen in (("train", ~valid), ("valid", valid))}
    info = {split: {"documents": p.num_rows, "bytes": 0, "tokens": p.tokens_per_epoch, "bytes_per_token": None,
                    "rows": p.num_rows, "dropped_tokens": 0} for split, p in pipelines.items()}
    return make_built(config, pipelines, own, info, 0)
