"""What is to be prepared, and whether a folder belongs to it."""

import dataclasses
import hashlib
import json
import shutil
from pathlib import Path

from mdlm_jax.config import ConfigError, DataConfig
from mdlm_jax.data import manifest as manifests
from mdlm_jax.data.files import write_whole
from mdlm_jax.data.manifest import UNFINISHED
from mdlm_jax.data.several import Several, open_sources
from mdlm_jax.data.sources import FileTree, Source
from mdlm_jax.data.tfds_source import TfdsSource

PLAN, FAILED = "plan.json", "failed"


@dataclasses.dataclass(frozen=True)
class Preparation:
    """What is to be prepared. Fields as in ``DataConfig``.

    Attributes:
      sources: what ``data.source`` takes, text only.
      packing: concat, which serves ``data.packing=documents`` as well, or wrapped.
      shards: of the training split; 0: as many as make about 256 MiB each.
    """

    sources: tuple[str, ...]
    tokenizer: str = "byte"
    length: int = 256
    text_field: str = "text"
    data_dir: str = ""
    valid_fraction: float = 0.05
    valid_last: int = 0
    detokenizer: str = ""
    packing: str = "concat"
    shards: int = 0

    def __post_init__(self):
        DataConfig(tokenizer=self.tokenizer, length=self.length, packing=self.packing, detokenizer=self.detokenizer,
                   valid_fraction=self.valid_fraction, valid_last=self.valid_last)
        if self.packing not in ("concat", "wrapped"):
            raise ConfigError(f"data.packing={self.packing!r}: choose concat, whose rows serve for documents too, or "
                              "wrapped")
        if self.shards < 0:
            raise ConfigError(f"--shards={self.shards}: must be positive, or left out")

    def open(self) -> Several:
        """The sources, opened. Raises what ``open_sources`` raises."""
        return open_sources(self.sources, self.length, self.text_field, self.data_dir, self.valid_fraction,
                            self.valid_last)


def describe(preparation: Preparation, sources: Several) -> dict:
    """The settings and the state of every source: if either changes it is another preparation."""
    return {"settings": dataclasses.asdict(preparation) | {"sources": list(preparation.sources)},
            "sources": [_state(name, part) for name, part in zip(preparation.sources, sources.parts, strict=True)]}


def _state(name: str, source: Source) -> dict:
    """``source``, ``files``, ``bytes`` and the digest of names, sizes and times; of a dataset its examples."""
    if isinstance(source, FileTree):
        paths = {file: source.root / file for file in source.names}
    elif hasattr(source, "path"):
        paths = {source.path.name: source.path}
    else:
        assert isinstance(source, TfdsSource)
        return {"source": name, "examples": {part: count for part, (_, count) in source.splits().items()}}
    states = {file: path.stat() for file, path in paths.items()}
    digest = hashlib.sha256(json.dumps([[f, s.st_size, s.st_mtime_ns] for f, s in states.items()]).encode())
    return {"source": name, "files": len(states), "bytes": sum(s.st_size for s in states.values()),
            "state": digest.hexdigest()}


def finished(out: Path, described: dict) -> dict:
    """The manifest of a folder that is complete. ConfigError where it is another preparation's or not whole."""
    manifest = manifests.read(out)
    _compare(out, {name: manifest[name] for name in described}, described)
    manifests.check_files(out, manifest)
    return manifest


def claim(out: Path, described: dict) -> Path:
    """Makes ``out`` this preparation's, or finds that it is already; the folder for what is unfinished.

    Raises:
      ConfigError: another preparation was begun there and did not fail (`failed`), or it holds something else.
    """
    folder = out / UNFINISHED
    plan = folder / PLAN
    if (folder / FAILED).exists() and json.loads(plan.read_text()) != json.loads(json.dumps(described)):
        release(out)
    if plan.exists():
        _compare(out, json.loads(plan.read_text()), described)
    elif out.exists() and any(path.name != UNFINISHED for path in out.iterdir()):
        raise ConfigError(f"--out={out}: is not empty and holds no prepared rows; choose another folder")
    else:
        folder.mkdir(parents=True, exist_ok=True)
        write_whole(plan, json.dumps(described))
    return folder


def failed(out: Path) -> None:
    """After a mistake in the settings or the sources, which the same preparation would meet again: ``out`` is free for
    another one. What is finished is kept where there is any, for the same one all the same."""
    folder = out / UNFINISHED
    if any(path.suffix == ".json" and path.name != PLAN for path in folder.iterdir()):
        write_whole(folder / FAILED, "")
    else:
        release(out)


def release(out: Path) -> None:
    """Removes all that an unfinished preparation has written."""
    shutil.rmtree(out / UNFINISHED, ignore_errors=True)
    for path in (out / manifests.TOKENIZER, *out.glob(f"*{manifests.SUFFIX}")):
        path.unlink(missing_ok=True)
    if not any(out.iterdir()):
        out.rmdir()


def _compare(out: Path, old: dict, new: dict) -> None:
    for name, value in new["settings"].items():
        before = manifests.setting(old, name)
        if before != value:
            raise ConfigError(f"--out={out}: holds rows prepared with {name}={before!r}, and now it is {value!r}; give "
                              "that, delete the folder, or choose another")
    for before, now in zip(old["sources"], new["sources"], strict=True):
        if before != now:
            raise ConfigError(f"--out={out}: holds rows of {now['source']!r} as it was before it changed; delete "
                              "the folder or choose another")
