"""What tests provoke: every error raised in the code under test, with the lines that it passed through.

``pytest --errors=DIR`` writes a file a process into DIR; ``python -m tests.errors DIR`` reads them. An error is
recorded where it is made (ConfigError) or where ``pytest.raises`` catches it, with those that it took over from.
"""

import json
import os
import sys
import traceback
from pathlib import Path

import pytest

from mdlm_jax.errors import ConfigError

ROOT = Path(__file__).parents[2]
PACKAGES = tuple(str(ROOT / name) + os.sep for name in ("mdlm_jax", "launch", "configs"))


class Recorder:
    """The errors of one process; a line of its file is [type, message, [[file, line, function], ...]], inmost last."""

    def __init__(self, folder: Path):
        self._seen: set[str] = set()
        folder.mkdir(parents=True, exist_ok=True)
        self._file = open(folder / f"{os.getpid()}.jsonl", "w", encoding="utf-8")

    def install(self) -> None:
        caught = type(pytest.raises(ValueError))
        leave = caught.__exit__

        def made(error, *args):
            ValueError.__init__(error, *args)
            self._record(error, _ours(traceback.walk_stack(sys._getframe(1)))[::-1])
            self._chain(sys.exc_info()[1])

        def left(context, kind, error, trace):
            __tracebackhide__ = True
            self._chain(error)
            return leave(context, kind, error, trace)

        ConfigError.__init__, caught.__exit__ = made, left

    def _chain(self, error: BaseException | None) -> None:
        while error is not None:
            self._record(error, frames_of(error))
            error = error.__cause__ or error.__context__

    def _record(self, error: BaseException, frames: list) -> None:
        path = str(frames)
        if frames and path not in self._seen:  # one message of each path is enough
            self._seen.add(path)
            print(json.dumps([type(error).__name__, str(error), frames]), file=self._file, flush=True)


def frames_of(error: BaseException) -> list[list]:
    """[file, line, function] of the code under test that an error passed through, where it was raised last."""
    return _ours(traceback.walk_tb(error.__traceback__))


def _ours(frames) -> list[list]:
    return [[os.path.relpath(frame.f_code.co_filename, ROOT), line, frame.f_code.co_name]
            for frame, line in frames if frame.f_code.co_filename.startswith(PACKAGES)]
