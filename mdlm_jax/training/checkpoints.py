"""Checkpoints of a run: one directory a step, whole or recognisably not, restorable onto any mesh.

``<directory>/<step:08d>/``, in a folder or in a bucket (`places`), holds ``state/`` (the arrays, written by orbax),
``meta.json`` (the caller's record, the library versions and the name, shape and dtype of every array), the caller's
small files, and ``manifest.json`` with the digest of all of them. In a folder a step is built under
``<step:08d>.unfinished`` and renamed when it is whole, in a bucket its manifest is written last, so a kill at any
instant leaves the earlier steps as they were.

On the disk the state is a plain nested dict of arrays: optax's tuples become ``{"0": ..}``, named tuples ``{"mu": ..}``
and empty containers vanish. The tree given to ``restore`` says how to put it together again.

This is the only file that knows orbax. It imports jax and orbax inside functions, so looking a checkpoint up costs
neither. Only process 0 writes anything but arrays; the directory must be in a place that all processes see.
"""

import dataclasses
import json
import logging
import os
import re
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from mdlm_jax.config import ConfigError
from mdlm_jax.training import keeping, manifest, named_tree, places

STATE, META = "state", "meta.json"
_NOTHING, _DAMAGED = -1, -2  # what process 0 says in place of a step
_PATIENCE = 1800  # seconds for which a process waits for the others to write
_STEP = re.compile(r"\d{8,}")
_LOG = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Restored:
    """What ``Checkpoints.restore`` and ``restore_path`` give back."""

    step: int
    tree: Any  # the structure of the abstract tree, with arrays placed as it says
    meta: dict  # what the caller gave to save
    path: Path
    passed_over: list[tuple[int, str]]  # newer steps that were not whole, newest first, each with the reason


class Checkpoints:
    """The steps kept in one directory, as ``policy`` says.

    Attributes:
      passed_over: (step, reason) of each step that ``latest_good`` found damaged.
    """

    def __init__(self, directory: Path | str, keep: int = 2, every: int = 0, best: int = 0):
        self.policy = keeping.Policy(keep, every, best)
        self.directory = places.place(directory)
        self._folders = places.steps(self.directory, manifest.NAME)
        self.passed_over: list[tuple[int, str]] = []
        self._newest: tuple[Path | None] | None = None  # the answer of latest_good, until the next save
        self._writing: _Background | None = None
        self._barriers = 0

    def steps(self) -> list[int]:
        """The steps that have a directory, oldest first; whether they are whole is not looked at."""
        return self._folders.numbers()

    def path(self, step: int) -> Path:
        return self._folders.path(step)

    def latest_good(self) -> Path | None:
        """The newest step whose every file matches its digest; newer ones that fail are logged as warnings.

        All files are read for it, so it is done once: until the next save the first answer stands, for `restore` too.
        """
        if self._newest is None:
            self._newest = (self._look_for_newest(),)
        return self._newest[0]

    def newest(self) -> Path | None:
        """`latest_good`, for which process 0 reads all files and tells the others. They must all call it."""
        import jax
        import numpy as np

        if jax.process_count() == 1:
            return self.latest_good()
        from jax.experimental import multihost_utils

        answer = _NOTHING
        if jax.process_index() == 0:
            found = self.latest_good()
            answer = int(found.name) if found else _DAMAGED if self.passed_over else _NOTHING
        answer = int(multihost_utils.broadcast_one_to_all(np.int32(answer)))
        if answer == _DAMAGED and not self.passed_over:
            self.passed_over = [(step, "see what the first process says") for step in self.steps()[-1:]]
        return self.path(answer) if answer >= 0 else None

    def _look_for_newest(self) -> Path | None:
        self.passed_over = []
        for step in reversed(self.steps()):
            problems = manifest.verify(self.path(step))
            if not problems:
                return self.path(step)
            reason = _first_few(problems)
            self.passed_over.append((step, reason))
            _LOG.warning("checkpoint %s is passed over: %s", self.path(step), reason)
        return None

    def best(self) -> Path | None:
        """Of the steps whose held-out bound was measured the whole one with the least; None where there is none."""
        bounds = {step: bound for step in self.steps() if (bound := _bound(self.path(step))) is not None}
        ranked = map(self.path, sorted(bounds, key=lambda step: (bounds[step], -step)))
        return next((path for path in ranked if not manifest.verify(path)), None)

    def save(self, step: int, tree: Any, meta: Mapping, files: Mapping[str, str | bytes]) -> Path:
        """`begin_save`, and waits until the step is whole."""
        path = self.begin_save(step, tree, meta, files)
        self.wait()
        return path

    def begin_save(self, step: int, tree: Any, meta: Mapping, files: Mapping[str, str | bytes],
                   before: Callable[[], None] | None = None) -> Path:
        """Copies the arrays off the devices and writes one step in the background.

        When it is whole, the steps that ``policy`` does not keep and all leftovers are removed. An earlier save is
        waited for first.

        Args:
          step: number of optimiser steps done.
          tree: pytree of jax.Array (of any dtype, typed keys included), none of them empty. May be donated afterwards.
          meta: what JSON can hold: the position in the data, the configuration's fingerprint, ..., and the held-out
            bound by `keeping.measured`.
          files: name -> content of small files to keep beside the state, such as ``tokenizer.json``.
          before: called in the background by process 0, when the arrays are written and before the step is whole.

        Returns:
          The directory that will hold the step. Errors of the writing are raised by `wait` or the next save.
        Raises:
          FileExistsError: the step is there already, and whole.
          TypeError, ValueError: a leaf that cannot be stored; the message names it. Nothing has been written then.
        """
        import jax

        self.wait()
        leaves = named_tree.named_leaves(tree)
        record = {"step": step, "versions": _versions(), "tree": named_tree.describe(leaves), "meta": dict(meta)}
        contents = {META: json.dumps(record, indent=1, allow_nan=False) + "\n", **files}
        _check_names(files)
        self._newest = None
        final, partial = self.path(step), self._folders.building(step)
        if final.is_dir() and not manifest.verify(final):
            raise FileExistsError(f"{final}: is a whole checkpoint already; save another step")
        self._barrier(f"checkpoint {step} checked")  # every process has looked before one of them writes
        if jax.process_index() == 0:
            self._folders.begin(step)
        self._barrier(f"checkpoint {step} started")
        written = _begin_arrays(partial / STATE, named_tree.nest(leaves))

        def finish() -> None:
            written()
            self._barrier(f"checkpoint {step} written")
            if jax.process_index() == 0:
                if before:
                    before()
                self._finish(step, partial, contents)
            self._barrier(f"checkpoint {step} finished")

        self._writing = _Background(finish)
        return final

    def wait(self) -> None:
        """Until the save under way is whole; raises what went wrong in it."""
        writing, self._writing = self._writing, None
        if writing is not None:
            writing.join()

    def restore(self, abstract_tree: Any) -> Restored | None:
        """The newest whole step, or None when there is none; arguments and errors as in ``restore_path``."""
        self.wait()
        path = self.newest()
        return None if path is None else _restore(path, abstract_tree, False, list(self.passed_over))

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, kind, error, trace) -> None:
        """Waits for the save under way, whatever else went wrong."""
        self.wait()

    def _barrier(self, name: str) -> None:
        """Waits for the other processes without their devices, so that the background may; names are made unique."""
        import jax

        if jax.process_count() > 1:
            from orbax.checkpoint import multihost

            self._barriers += 1
            key = f"{self.directory} {self._barriers} {name}"
            multihost.get_barrier_sync_fn()(key=key, timeout_ms=1000 * _PATIENCE)

    def _finish(self, step: int, partial: Path, contents: Mapping[str, str | bytes]) -> None:
        """All that follows the arrays. Free of jax, so that a test can kill it at each of its file operations."""
        for name, content in contents.items():
            (partial / name).write_bytes(content.encode() if isinstance(content, str) else content)
        manifest.write(partial)
        self._folders.publish(step)
        self.passed_over = [entry for entry in self.passed_over if entry[0] != step]
        self._prune(step)

    def _prune(self, written: int) -> None:
        """Removes damaged steps, which must take no whole one's place, and the whole ones that are not to be kept."""
        known = {step for step, _ in self.passed_over}
        whole = {step: _bound(self.path(step)) for step in self.steps()
                 if step not in known and not manifest.verify(self.path(step), digests=False)}
        kept = self.policy.kept(whole) | {written}
        for step in self.steps():
            if step not in kept:
                self._folders.remove(step)



def find(path: Path | str) -> Path:
    """The directory of one whole step: of the newest in a run's workdir or in its ``checkpoints/``, or ``path`` itself.

    Raises:
      ConfigError: nothing is there, or nothing whole; the message says what was looked for and what is damaged.
    """
    path = places.place(path)
    if not path.is_dir():
        raise ConfigError(f"checkpoint {path}: there is no such directory; give a run's workdir or one of its steps")
    folder = path / "checkpoints" if (path / "checkpoints").is_dir() else path
    checkpoints = Checkpoints(folder)
    if checkpoints.steps():
        good = checkpoints.latest_good()
        if good is None:
            reasons = "; ".join(f"step {step}: {reason}" for step, reason in checkpoints.passed_over)
            raise ConfigError(f"checkpoint {path}: no step in {folder} is whole ({reasons}); restore them from a copy")
        return good
    if _STEP.fullmatch(path.name) or (path / META).exists() or (path / manifest.NAME).exists():
        _require_whole(path)
        return path
    runs = sorted(folder.parent.name for folder in path.glob("*/checkpoints"))
    more = ", ..." if len(runs) > 8 else ""
    found = f"it is a folder of runs, give one of them: {', '.join(runs[:8])}{more}"
    remedy = found if runs else "give a run's workdir or one of its steps"
    raise ConfigError(
        f"checkpoint {path}: holds no checkpoint; looked for a step ({META}, {manifest.NAME}), for steps named like "
        f"00000500, and for such steps in checkpoints/; {remedy}"
    )


def restore_path(path: Path | str, abstract_tree: Any, partial: bool = False, verified: bool = False) -> Restored:
    """The state saved in one step directory, after checking the digest of every file.

    Args:
      path: one step directory; ``find`` gives it.
      abstract_tree: jax.ShapeDtypeStruct leaves with the shape and dtype that were saved and the sharding that is
        wanted, on this mesh or any other; without a sharding a leaf goes to the first local device.
      partial: read only the arrays that ``abstract_tree`` names, such as ``{"ema": ...}`` alone.
      verified: the digests have just been checked, as ``find`` does; do not read every file again.

    Raises:
      ConfigError: damaged files, or arrays that are missing, unexpected or of another shape or dtype, each named.
    """
    path = places.place(path)
    if not verified:
        _require_whole(path)
    return _restore(path, abstract_tree, partial, [])


def abstract(path: Path | str) -> dict:
    """The state in a step directory as nested dicts of jax.ShapeDtypeStruct, without shardings; needs no model code."""
    return named_tree.nest(named_tree.undescribe(_record(path)["tree"]))


def read_meta(path: Path | str) -> dict:
    """What the caller of ``save`` gave as ``meta``."""
    return _record(path)["meta"]


def read_file(path: Path | str, name: str) -> bytes:
    """The content of one of the small files of a step directory."""
    file = places.place(path) / name
    if not file.is_file():
        raise ConfigError(f"checkpoint {path}: has no {name}; give another step, or put it there")
    return file.read_bytes()


def _require_whole(path: Path) -> None:
    problems = manifest.verify(path)
    if problems:
        raise ConfigError(f"checkpoint {path}: {_first_few(problems)}; give another step")


def _bound(path: Path) -> float | None:
    """The held-out bound of a step; None where it was not measured, or the record cannot be read."""
    try:
        return read_meta(path).get(keeping.BOUND)
    except (ConfigError, OSError, ValueError, KeyError, TypeError):
        return None


def _record(path: Path | str) -> dict:
    return json.loads(read_file(path, META))


def _restore(path: Path, abstract_tree: Any, partial: bool, passed_over: list[tuple[int, str]]) -> Restored:
    import jax
    from orbax.checkpoint import v1 as ocp

    record = _record(path)
    stored, wanted = named_tree.undescribe(record["tree"]), named_tree.named_leaves(abstract_tree)
    problems = named_tree.mismatches(stored, wanted, partial)  # orbax would cast another dtype silently
    if problems:
        raise ConfigError(f"checkpoint {path}: must have the leaves of this run: {_first_few(problems)}")
    first = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    request = dict.fromkeys(stored, ocp.PLACEHOLDER)
    for names, leaf in wanted.items():
        request[names] = jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding or first)
    loaded = named_tree.named_leaves(ocp.load(path / STATE, named_tree.nest(request)))
    tree = jax.tree.unflatten(jax.tree.structure(abstract_tree), [loaded[names] for names in wanted])
    return Restored(record["step"], tree, record["meta"], path, passed_over)


def _begin_arrays(path: Path, nested: dict) -> Callable[[], None]:
    """Returns when the arrays are copied off the devices; the function it returns waits until they are written."""
    from orbax.checkpoint import v1 as ocp

    return ocp.save_async(path, nested).result  # wants an absolute path


class _Background(threading.Thread):
    """Runs a function beside the training; ``join`` raises what it raised."""

    def __init__(self, function: Callable[[], None]):
        super().__init__(name="checkpoint")
        self._function = function
        self._error: BaseException | None = None
        self.start()

    def run(self) -> None:
        try:
            self._function()
        except BaseException as error:
            self._error = error

    def join(self, timeout: float | None = None) -> None:
        super().join(timeout)
        if self._error is not None:
            raise self._error


def _check_names(files: Mapping[str, str | bytes]) -> None:
    for name in files:
        if name != os.path.basename(name) or name in ("", STATE, META, manifest.NAME, manifest.NAME + ".tmp"):
            raise ValueError(f"{name!r}: cannot name a file beside the state; choose another name")


def _versions() -> dict[str, str]:
    from importlib.metadata import version

    return {name: version(name) for name in ("jax", "jaxlib", "orbax-checkpoint")}


def _first_few(problems: list[str]) -> str:
    return "; ".join(problems[:3]) + (f"; and {len(problems) - 3} more" if len(problems) > 3 else "")
