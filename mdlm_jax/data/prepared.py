"""Rows prepared by ``launch.prepare``, read through grain by their numbers as they are needed, never all at once."""

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np

from mdlm_jax.config import ConfigError, DataConfig
from mdlm_jax.config.data import parse_prepared
from mdlm_jax.data import manifest as manifests
from mdlm_jax.data.orders import Mixed
from mdlm_jax.data.pipeline import Built, make_built, make_pipelines, too_small
from mdlm_jax.data.tokenizers import Tokenizer, load_tokenizer


class Rows:
    """The rows of one split, indexed like an array [R, L]; threads may share it.

    Attributes:
      shape: (R, L).
      digest: hex sha256 of the shards' row counts and digests, from the manifest.
    """

    def __init__(self, folder: Path, manifest: dict, split: str):
        """Opens every shard once for its number of rows.

        Raises:
          ConfigError: a shard cannot be read or has another number of rows than the manifest says; it is named.
        """
        from grain.sources import ArrayRecordDataSource  # grain imports jax: not before there is something to read

        listed = manifest["splits"][split]["shards"]
        self._paths = [folder / shard["name"] for shard in listed]
        self._dtype = np.dtype(manifest["dtype"]).newbyteorder("<")
        self.shape = (sum(shard["rows"] for shard in listed), manifest["length"])
        self._starts = np.cumsum([0] + [shard["rows"] for shard in listed])
        self.digest = hashlib.sha256(json.dumps([[s["rows"], s["sha256"]] for s in listed]).encode()).hexdigest()
        try:
            self._records = ArrayRecordDataSource(list(map(str, self._paths)))
        except Exception as error:  # array_record raises whatever its C++ has met
            raise self._unreadable(ArrayRecordDataSource, listed) or error from error
        if len(self._records) != self.shape[0]:
            damaged = self._unreadable(ArrayRecordDataSource, listed)
            assert damaged is not None  # one of the shards has another number of rows
            raise damaged

    def _unreadable(self, source, listed: list[dict]) -> ConfigError | None:
        for path, shard in zip(self._paths, listed, strict=True):
            try:
                count = len(source(str(path)))
            except Exception as error:
                return ConfigError(f"{path}: cannot be read ({_gist(error)}); restore it or prepare the rows again")
            if count != shard["rows"]:
                return ConfigError(f"{path}: holds {count} rows instead of {shard['rows']}; prepare them again")
        return None

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, index: np.ndarray | slice) -> np.ndarray:
        """Rows by their numbers [b] or as a slice: unsigned integers [b, L]. O(b).

        Raises:
          ConfigError: a shard is damaged; it is named.
        """
        keys = range(*index.indices(self.shape[0])) if isinstance(index, slice) else np.asarray(index).tolist()
        try:
            return self._join(self._records.__getitems__(keys))
        except Exception as error:
            raise self._damaged(keys) or error from error

    def _join(self, records: list[bytes]) -> np.ndarray:
        return np.frombuffer(b"".join(records), self._dtype).reshape(len(records), self.shape[1])

    def _damaged(self, keys) -> ConfigError | None:
        for key in keys:
            try:
                self._join([self._records[key]])
            except Exception as error:
                path = self._paths[int(np.searchsorted(self._starts, key, "right")) - 1]
                return ConfigError(f"{path}: row {key} cannot be read ({_gist(error)}); launch.prepare --verify names "
                                   "all that is damaged")
        return None


class Joined:
    """The rows of several sources, one source after the other, indexed like an array [R, L]."""

    def __init__(self, parts: list[Rows]):
        self._parts = parts
        self._starts = np.cumsum([0] + [len(part) for part in parts])
        self.shape = (int(self._starts[-1]), parts[0].shape[1])
        self.digest = hashlib.sha256(json.dumps([part.digest for part in parts]).encode()).hexdigest()

    def __getitem__(self, index: np.ndarray | slice) -> np.ndarray:
        wanted = np.arange(*index.indices(self.shape[0])) if isinstance(index, slice) else np.asarray(index)
        rows = np.empty((len(wanted), self.shape[1]), np.int32)
        for part, start, stop in zip(self._parts, self._starts, self._starts[1:], strict=False):
            mine = (wanted >= start) & (wanted < stop)
            if mine.any():
                rows[mine] = part[wanted[mine] - start]
        return rows


def read_manifests(config: DataConfig) -> list[tuple[float, Path, dict]]:
    """Weight, folder and manifest of each source of a ``prepared:`` or ``mixture:``, checked without reading a row.

    Raises:
      ConfigError: a folder, shard, length, tokenizer or weight that does not fit.
    """
    found: list[tuple] = []
    for weight, name in parse_prepared(config.source):
        if "://" in name:
            raise ConfigError(f"data.source={config.source!r}: only folders of this machine can be read; mount or copy "
                              f"{name}")
        folder = Path(name).expanduser()
        manifest = manifests.read(folder)
        manifests.check_length(config, folder, manifest)
        manifests.check_settings(config, folder, manifest)
        if not found:
            manifests.check_tokenizer(config, folder, manifest)
        elif manifest["tokenizer"]["sha256"] != found[0][2]["tokenizer"]["sha256"]:
            raise ConfigError(f"data.source={config.source!r}: {folder} has another tokenizer than {found[0][1]}; "
                              f"prepare it with --tokenizer={found[0][1] / manifests.TOKENIZER}")
        manifests.check_files(folder, manifest)
        found.append((weight, folder, manifest))
    if len(found) > 1:
        _ = _mixed(found, 1, 0).counts  # refuses a weight that is too small
    return found


def _mixed(found: list[tuple[float, Path, dict]], batch_size: int, seed: int) -> Mixed:
    rows = tuple(manifest["splits"]["train"]["rows"] for _, _, manifest in found)
    return Mixed(rows, tuple(weight for weight, _, _ in found), batch_size, seed)


def check_prepared(config: DataConfig, batch_size: int) -> list[tuple[float, Path, dict]]:
    """``read_manifests``, and ConfigError where the training rows are fewer than one batch."""
    found = read_manifests(config)
    splits = {split: [manifest["splits"][split] for _, _, manifest in found] for split in manifests.SPLITS}
    rows = sum(part["rows"] for part in splits["train"])
    if rows < batch_size:
        raise too_small(config, batch_size, sum(part["bytes"] for split in splits.values() for part in split),
                        f"there are {rows} and {sum(part['rows'] for part in splits['valid'])}")
    return found


def build_prepared(config: DataConfig, batch_size: int, tokenizer: Tokenizer | None = None) -> Built:
    """``pipeline.build`` for prepared rows; ``info`` also has ``folders``: name, weight and rows of each.

    Args:
      tokenizer: that of a checkpoint; must be that of the rows.

    Raises:
      ConfigError: whatever ``check_prepared`` and ``Rows`` refuse, or a checkpoint's tokenizer that is another.
    """
    found = check_prepared(config, batch_size)
    first = found[0]
    own = load_tokenizer(first[1] / manifests.TOKENIZER)
    if tokenizer is not None and manifests.digest_of(tokenizer) != first[2]["tokenizer"]["sha256"]:
        raise ConfigError(f"data.source={config.source!r}: its rows have another tokenizer than the checkpoint; give "
                          "the rows that the run began with, or choose another --workdir")
    rows = {split: [Rows(folder, manifest, split) for _, folder, manifest in found] for split in manifests.SPLITS}
    mixed = _mixed(found, batch_size, config.seed) if len(found) > 1 else None
    joined = {split: parts[0] if len(parts) == 1 else Joined(parts) for split, parts in rows.items()}
    info: dict[str, Any] = {split: _account([manifest["splits"][split] for _, _, manifest in found])
                            for split in manifests.SPLITS}
    info["folders"] = [{"folder": str(folder), "weight": weight, "rows": manifest["splits"]["train"]["rows"]}
                       for weight, folder, manifest in found]
    skipped = sum(manifest["skipped_files"] for _, _, manifest in found)
    return make_built(config, make_pipelines(joined, config, batch_size, own, mixed=mixed), own, info, skipped)


def _account(parts: list[dict]) -> dict:
    total = {name: sum(part[name] for part in parts)
             for name in ("documents", "bytes", "tokens", "rows", "dropped_tokens")}
    return total | {"bytes_per_token": total["bytes"] / total["tokens"] if total["bytes"] else None}


def _gist(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
