"""``manifest.json`` of prepared rows: what they are, how many, and a digest of every file; and its checks."""

import concurrent.futures
import hashlib
import json
import tempfile
from pathlib import Path

from mdlm_jax.config import ConfigError, DataConfig
from mdlm_jax.data.files import flush_names, sha256_of, write_whole
from mdlm_jax.data.tokenizers import Tokenizer, is_file, load_tokenizer

NAME, TOKENIZER, SUFFIX, UNFINISHED = "manifest.json", "tokenizer.json", ".array_record", "unfinished"
_FORMAT = "mdlm_jax prepared rows 1"
SPLITS = ("train", "valid")
_LATER = {"packing": "concat", "detokenizer": "", "valid_last": 0}  # settings that the first manifests do not have


def seal(manifest: dict) -> dict:
    """The manifest with its format and the digest of itself."""
    manifest = {"format": _FORMAT, **manifest}
    return {**manifest, "digest": _digest(manifest)}


def write(folder: Path, manifest: dict, scratch: Path) -> None:
    """Writes it last: the shards' names are on the disk before its own appears."""
    flush_names(folder)
    write_whole(folder / NAME, json.dumps(manifest, indent=1) + "\n", scratch)
    flush_names(folder)


def read(folder: Path) -> dict:
    """The manifest of a folder.

    Raises:
      ConfigError: no such folder, one whose preparation was not finished, or a damaged manifest.
    """
    if not folder.is_dir():
        raise ConfigError(f"prepared rows in {folder}: there is no such folder; make it with launch.prepare")
    path = folder / NAME
    if not path.is_file():
        if (folder / UNFINISHED).is_dir():
            raise ConfigError(f"prepared rows in {folder}: were not finished; run the same launch.prepare again")
        raise ConfigError(f"prepared rows in {folder}: it has no {NAME}; name a folder made by launch.prepare")
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ConfigError(f"{path}: is not JSON ({error}); prepare the rows again") from None
    if not isinstance(manifest, dict) or manifest.get("format") != _FORMAT:
        raise ConfigError(f"{path}: is no manifest of {_FORMAT!r}; prepare the rows again with this version")
    digest = manifest.pop("digest", None)
    if digest != _digest(manifest):
        raise ConfigError(f"{path}: is damaged: its content does not have its digest; restore it or prepare again")
    return {**manifest, "digest": digest}


def shards(manifest: dict) -> list[dict]:
    """``name``, ``rows``, ``bytes`` and ``sha256`` of every shard of both splits."""
    return [shard for split in SPLITS for shard in manifest["splits"][split]["shards"]]


def check_files(folder: Path, manifest: dict) -> None:
    """Are all files there, of their sizes, and no others? ConfigError names the first that is not. Reads no rows."""
    listed = {shard["name"]: shard for shard in shards(manifest)}
    for name, shard in listed.items():
        path = folder / name
        if not path.is_file():
            raise ConfigError(f"{path}: is missing; restore it or prepare the rows again")
        if path.stat().st_size != shard["bytes"]:
            raise ConfigError(f"{path}: has {path.stat().st_size:,} bytes instead of {shard['bytes']:,}; restore it or "
                              "prepare the rows again")
    foreign = sorted(path.name for path in folder.glob(f"*{SUFFIX}") if path.name not in listed)
    if foreign:
        raise ConfigError(f"{folder / foreign[0]}: does not belong to these rows; remove it")
    path = folder / TOKENIZER
    if not path.is_file() or sha256_of(path) != manifest["tokenizer"]["sha256"]:
        raise ConfigError(f"{path}: is missing or not the tokenizer of these rows; restore it or prepare again")


def verify(folder: Path, manifest: dict, threads: int = 4) -> int:
    """Reads every byte and compares the digests.

    Returns:
      the bytes read.

    Raises:
      ConfigError: what ``check_files`` refuses, or naming every shard that is damaged.
    """
    check_files(folder, manifest)
    listed = shards(manifest)
    with concurrent.futures.ThreadPoolExecutor(threads) as pool:
        found = list(pool.map(lambda shard: sha256_of(folder / shard["name"]), listed))
    bad = [shard["name"] for shard, digest in zip(listed, found, strict=True) if digest != shard["sha256"]]
    if bad:
        raise ConfigError(f"{folder}: damaged: {', '.join(bad)}; restore what is named or prepare the rows again")
    return sum(shard["bytes"] for shard in listed)


def setting(manifest: dict, name: str):
    """How the rows were prepared; a manifest older than the setting has its default."""
    return manifest["settings"].get(name, _LATER.get(name))


def check_settings(config: DataConfig, folder: Path, manifest: dict) -> None:
    """ConfigError where a run's ``data.packing`` or ``data.detokenizer`` is not that of the rows."""
    for name in ("packing", "detokenizer"):
        wanted, there = getattr(config, name), setting(manifest, name)
        if wanted != there and not (wanted, there) == ("documents", "concat"):
            raise ConfigError(f"data.{name}={wanted!r}: the rows in {folder} were prepared with {there!r}; set it to "
                              "that, or prepare others")


def check_length(config: DataConfig, folder: Path, manifest: dict) -> None:
    """ConfigError where a run's ``data.length`` is not that of the rows."""
    if config.length != manifest["length"]:
        raise ConfigError(f"data.length={config.length}: the rows in {folder} have {manifest['length']} tokens; set it "
                          "to that or prepare others")


def check_tokenizer(config: DataConfig, folder: Path, manifest: dict) -> None:
    """ConfigError where a run's ``data.tokenizer`` is not that of the rows: neither the same word nor the same file."""
    spec = manifest["tokenizer"]["spec"]
    if config.tokenizer == spec:
        return
    if not is_file(config.tokenizer) or (
            digest_of(load_tokenizer(config.tokenizer)) != manifest["tokenizer"]["sha256"]):
        raise ConfigError(f"data.tokenizer={config.tokenizer!r}: the rows in {folder} were made with {spec!r}; give "
                          f"that or {str(folder / TOKENIZER)!r}, or prepare others")


def digest_of(tokenizer: Tokenizer) -> str:
    """Hex sha256 of the file that the tokenizer saves."""
    with tempfile.TemporaryDirectory() as folder:
        tokenizer.save(Path(folder) / TOKENIZER)
        return sha256_of(Path(folder) / TOKENIZER)


def _digest(manifest: dict) -> str:
    return hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()
