"""The numbers of a run as it goes: ``metrics.jsonl`` (one record a line) and TensorBoard files beside it.

A run that was killed and resumed leaves the same records as one that was not: what the killed run wrote beyond the
checkpoint is removed before the resumed run writes it again.
"""

import json
import math
import time
from pathlib import Path
from typing import Any

from mdlm_jax.config import ConfigError
from mdlm_jax.training.manifest import write_atomically

FILE = "metrics.jsonl"
_SPELLED = {"NaN": math.nan, "Infinity": math.inf, "-Infinity": -math.inf}


class MetricsWriter:
    """Appends records; a context manager. In a job of several processes only process 0 should have one.

    A line is a flat JSON object: ``step``, ``time`` (seconds since 1970) and the scalars. Floats keep every digit;
    those that JSON has no number for are the strings "NaN", "Infinity" and "-Infinity", which ``read`` turns back.
    Each record reaches the file at once, so a killed program loses none.

    Write the record of step s before saving the checkpoint of step s: then a resumed run has it exactly once.
    """

    def __init__(self, workdir: Path | str, resume_step: int | None = None, also: Any = None):
        """Removes the records with a step above ``resume_step``, or all of them when it is None: a new run.

        Args:
          also: receives each record too by ``write(step, scalars)``, and is closed with this (`wandb_run.WandbRun`).

        Raises:
          ConfigError: ``metrics.jsonl`` holds something else than records.
        """
        from tensorboardX import SummaryWriter

        self._path, self._also = Path(workdir) / FILE, also
        self._path.parent.mkdir(parents=True, exist_ok=True)
        kept = [] if resume_step is None else [record for record in read(self._path) if record["step"] <= resume_step]
        write_atomically(self._path, "".join(map(_line, kept)))
        self._file = open(self._path, "a", encoding="utf-8", buffering=1)
        first = 0 if resume_step is None else resume_step + 1
        suffix = f".{time.time_ns()}"  # tensorboardX names files by the second, and overwrites one of the same second
        self._board = SummaryWriter(str(Path(workdir) / "tensorboard"), purge_step=first, filename_suffix=suffix)

    def write(self, step: int, **scalars: Any) -> None:
        """Appends one record.

        Args:
          step: number of optimiser steps done.
          **scalars: Python, numpy or jax numbers without dimensions; ``**{"eval/loss": x}`` for names like that.

        Raises:
          TypeError: a value that is no number.
        """
        record = {"step": int(step), "time": time.time()}
        for name, value in scalars.items():
            if name == "time":
                raise TypeError("time: the writer itself gives this field; leave it out")
            record[name] = _number(name, value)
        self._file.write(_line(record))
        for name, value in record.items():
            if name not in ("step", "time"):
                self._board.add_scalar(name, value, global_step=record["step"], walltime=record["time"])
        if self._also:
            self._also.write(record["step"], {name: record[name] for name in record if name not in ("step", "time")})

    def flush(self) -> None:
        self._file.flush()
        self._board.flush()

    def close(self) -> None:
        self._file.close()
        self._board.close()
        if self._also:
            self._also.close()

    def __enter__(self) -> "MetricsWriter":
        return self

    def __exit__(self, *exception) -> None:
        self.close()


class Silent:
    """Writes nothing: for all processes of a job but one."""

    def write(self, step: int, **scalars: Any) -> None: ...

    def __enter__(self) -> "Silent":
        return self

    def __exit__(self, *exception) -> None: ...


def read(path: Path | str) -> list[dict]:
    """The records of a ``metrics.jsonl`` (or of the workdir it is in), oldest first; none if there is no such file.

    A last line without its end, as a killed program leaves it, is left out.

    Raises:
      ConfigError: any other line is no record; the message says which.
    """
    path = Path(path)
    path = path / FILE if path.is_dir() else path
    if not path.exists():
        return []
    *lines, _torn = path.read_bytes().split(b"\n")
    return [_parse(path, number, line) for number, line in enumerate(lines, start=1)]


def _parse(path: Path, number: int, line: bytes) -> dict:
    try:
        record = json.loads(line)
    except ValueError:
        record = None
    if not isinstance(record, dict) or not isinstance(record.get("step"), int):
        raise ConfigError(f"{path}: line {number} is no metrics record; move the file away or repair the line")
    return {name: _SPELLED.get(value, value) if isinstance(value, str) else value for name, value in record.items()}


def _line(record: dict) -> str:
    return json.dumps({name: _spell(value) for name, value in record.items()}, allow_nan=False) + "\n"


def _spell(value):
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
    return value


def _number(name: str, value: Any) -> int | float | bool:
    value = value.item() if hasattr(value, "item") and getattr(value, "ndim", None) == 0 else value
    if not isinstance(value, (bool, int, float)):
        raise TypeError(f"{name}={value!r}: must be one number")
    return value
