"""May this run use that workdir? Answered by reading alone, before anything is written or compiled."""

import itertools
import json
import os
import re
from pathlib import Path

from mdlm_jax.config import ConfigError, RunConfig, freeze, to_dict
from mdlm_jax.config.run import HOW_FIELDS, REPORT_SECTIONS
from mdlm_jax.training import places
from mdlm_jax.training.checkpoints import Checkpoints

_OURS = ("metrics.jsonl", "checkpoints", "tensorboard", "wandb-id", "wandb", "samples.txt", "summary.json", "loss.png",
         "denoising.html", "denoising.png", "samples.png", "samples.npz")
_SHOWN = 5


def check_workdir(text: str, config: RunConfig) -> Path:
    """The workdir of a new run of ``config``, or of one that it may resume; a folder, or in a bucket (`places`).

    An existing run may be resumed with the same configuration, with a larger ``train.steps``, and with any ``eval``,
    ``sample`` and ``log`` section, and on other devices (`HOW_FIELDS`). One that has no checkpoint yet may have any
    other: `set_aside` makes room for it, but not in a bucket.

    Raises:
      ConfigError: not a folder, not writable, or in use by a run with another configuration (naming the fields).
    """
    check_address(text)
    workdir = places.place(text) if places.in_bucket(text) else _writable(text)
    stored = workdir / "config.json"
    if stored.exists():
        raw = _read(stored)
        if _has_checkpoint(workdir) or places.in_bucket(workdir):
            _check_same_run(text, raw, config)
    else:
        found = [name for name in _OURS if (workdir / name).exists()]
        if found:
            raise ConfigError(f"--workdir={text}: holds {found[0]} but no config.json, so the run it belongs to is "
                              "unknown; choose another --workdir")
    return workdir


def check_address(text: str) -> None:
    """ConfigError for an address of another kind than gs://BUCKET/NAME."""
    if not places.in_bucket(text) and re.match(r"[A-Za-z][A-Za-z0-9+.-]*:/", text):
        raise ConfigError(f"--workdir={text}: must be a folder, or an address gs://BUCKET/NAME; no other is known")


def _writable(text: str) -> Path:
    workdir = Path(text).expanduser()
    nearest = workdir
    while not os.path.lexists(nearest):
        nearest = nearest.parent
    if not nearest.is_dir():
        raise ConfigError(f"--workdir={text}: {nearest} is not a folder; choose another --workdir")
    if not os.access(nearest, os.W_OK | os.X_OK):
        raise ConfigError(f"--workdir={text}: no permission to write in {nearest}; choose another --workdir")
    return workdir


def set_aside(workdir: Path, config: RunConfig) -> Path | None:
    """Moves what a run of another configuration left, if it has no checkpoint, into a new folder ``earlier-N`` beside.

    config.json goes last, so that a kill in between leaves a workdir of which this can be asked again.

    Returns:
      The folder, or None where there was nothing to move.
    """
    stored = workdir / "config.json"
    if places.in_bucket(workdir) or not stored.exists() or _has_checkpoint(workdir):
        return None
    old, new = _both(_read(stored), config)
    if all(old.get(name) == new.get(name) for name in old | new if not _is_free(name)):
        return None
    folder = next(path for path in map(workdir.joinpath, map("earlier-{}".format, itertools.count(1)))
                  if not os.path.lexists(path))
    folder.mkdir()
    for name in (*_OURS, "tokenizer.json", "twin.json", "config.json"):
        if (workdir / name).exists():
            os.rename(workdir / name, folder / name)
    return folder


def _has_checkpoint(workdir: Path) -> bool:
    return bool(Checkpoints(workdir / "checkpoints").steps())


def read_config(path: Path) -> RunConfig:
    """The configuration in a run's ``config.json``; ConfigError, naming the file, where it holds none."""
    raw = _read(path)
    try:
        return freeze(raw)
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from None


def _read(path: Path) -> dict:
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path}: cannot be read as the config.json of a run ({error}); choose another "
                          "folder") from error
    if not isinstance(raw, dict) or not all(isinstance(section, dict) for section in raw.values()):
        raise ConfigError(f"{path}: is not the config.json of a run; choose another folder")
    return raw


def _check_same_run(text: str, stored: dict, config: RunConfig) -> None:
    old, new = _both(stored, config)
    differing = [name for name in old | new if not _compatible(name, old.get(name), new.get(name))]
    if differing:
        shown = [f"{name} is {old.get(name)!r} there and {new.get(name)!r} here" for name in differing[:_SHOWN]]
        more = f", and {len(differing) - _SHOWN} more fields" if len(differing) > _SHOWN else ""
        only_steps = differing == ["train.steps"]
        remedy = "steps may only grow" if only_steps else "give its values to resume it"
        raise ConfigError(f"--workdir={text} holds another run: {', '.join(shown)}{more}; {remedy}, or choose another "
                          "--workdir")


def _both(stored: dict, config: RunConfig) -> tuple[dict, dict]:
    """Both leaf by leaf; a field that the stored run did not know yet had the default that it has now."""
    return _flat(to_dict(RunConfig())) | _flat(stored), _flat(to_dict(config))


def _is_free(name: str) -> bool:
    return name.split(".")[0] in REPORT_SECTIONS or name in HOW_FIELDS


def _compatible(name: str, old, new) -> bool:
    if _is_free(name):
        return True
    if name == "train.steps" and isinstance(old, int):
        return new >= old
    return old == new


def _flat(raw: dict) -> dict:
    return {f"{section}.{field}": value for section, fields in raw.items() for field, value in fields.items()}
