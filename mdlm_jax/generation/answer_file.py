"""Answers to a file of prompts, each once, whatever is killed meanwhile. Never imports jax.

    OUT.jsonl            all answers in the order of their prompts; there only when it is complete
    OUT.jsonl.job.json   what they answer, and how; a command that differs is refused once there is an answer
    OUT.jsonl.parts/     until then: one file of lines for each process, only ever appended to, named after the job

A process answers the prompts whose place, modulo the number of processes, is its own, and leaves out those that any
part holds already. Whoever finds them all answered joins the parts. A line is whole or cut off by a kill: a tail
without its line end is dropped. A part is held by the process that writes it.
"""

import contextlib
import hashlib
import json
import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TextIO

from mdlm_jax.data.files import NoLocks, flush_names, take, write_text
from mdlm_jax.errors import ConfigError

FIELDS = ("index", "sample", "text", "finish", "tokens", "forwards", "token_ids")  # of an answer
_DIGITS = {"prompts": "its prompts, or the fields beside them, are others than these ({count} both times)",
           "weights": "its weights are others than these",
           "code": "its decoder's class has other code than this"}
_PACKED = (".gz", ".bz2", ".xz", ".zst", ".zip")
Key = tuple[int, int]  # place of the prompt, and number of the sample of it


class Prompt(NamedTuple):
    """One prompt: its place from 0, its text or token ids, and what its answer is written beside."""

    index: int  # type: ignore[assignment]  # hides tuple.index, which nobody calls
    prompt: str | list[int]
    fields: dict[str, Any]


class Answers:
    """The answers of one job; a context manager, which lets go of what `open` took.

    Attributes:
      keys: all that are wanted, in order. ``done``: those found answered when `open` looked.
    """

    def __init__(self, output: Path, job: dict[str, Any], keys: list[Key], number: int = 0, count: int = 1,
                 flag: str = "output"):
        """``flag``: what messages call the output."""
        self.output, self.keys = output, keys
        self.done: set[Key] = set()
        self._job, self._number, self._count = json.loads(json.dumps(job)), number, count  # as a file gives it back
        self._parts = output.with_name(output.name + ".parts")
        digits = hashlib.sha256(json.dumps(self._job, sort_keys=True).encode()).hexdigest()[:12]
        self._ours = f"*.{digits}.jsonl"  # parts of this job; what another left or writes is never read for it
        self._own, self._name = self._parts / f"{number:05d}.{digits}.jsonl", f"{flag}={output}"
        self._lock: TextIO | None = None

    def __enter__(self) -> "Answers":
        return self

    def __exit__(self, *exception) -> None:
        if self._lock is not None:
            self._lock.close()
            self._lock = None

    def check(self) -> None:
        """Writes nothing.

        Raises:
          ConfigError: the files there are those of another job, or of none; a name that promises what is packed.
        """
        path = _job_file(self.output)
        if self.output.suffix in _PACKED:
            raise ConfigError(f"{self._name}: is written as plain text, one answer after another; leave out "
                              f"{self.output.suffix}, and pack it when it is done")
        if not path.exists():
            if self.output.exists() or self._found("*.jsonl"):
                raise ConfigError(f"{self._name}: is there already, and no {path.name} says what it answers; choose "
                                  "another file")
            return
        try:
            found = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise ConfigError(f"{self._name}: {path.name} cannot be read ({error}); choose another file") from None
        if not isinstance(found, dict):
            raise ConfigError(f"{self._name}: {path.name} holds no object; choose another file")
        differing = [name for name in self._job | found if self._job.get(name) != found.get(name)]
        if "count" in differing and "prompts" in differing:
            differing.remove("prompts")
        if differing and (self.output.exists() or self._found("*.jsonl")):
            raise ConfigError(f"{self._name}: holds answers of another job: {_differences(differing, found, self._job)}"
                              f"; give the same again, choose another file, or delete {self._there()} to begin anew")

    def _there(self) -> str:
        """Names of the files of the job that are there."""
        found = [path.name for path in (self.output, self._parts, _job_file(self.output)) if path.exists()]
        return " and ".join([", ".join(found[:-1]), found[-1]] if len(found) > 1 else found)

    def open(self) -> list[Key]:
        """Makes the folder, cuts what a kill left half written, and returns what this process has to answer.

        Raises:
          ConfigError: as `check`; another process has it open.
        """
        self.check()
        if self._joined():
            return []
        self._parts.mkdir(parents=True, exist_ok=True)
        self._take()
        self.check()  # what another process wrote before it let go
        self._tell()  # before any answer: a part without it would be nobody's
        with contextlib.suppress(FileNotFoundError):
            os.truncate(self._own, self._own.read_bytes().rfind(b"\n") + 1)
        self.done = set(self._found())
        if self._joined():  # by another process meanwhile, which has removed the parts before they were read, or after
            return []
        return [key for key in self.share() if key not in self.done]

    def _tell(self) -> None:
        """Writes what is answered, unless it stands there."""
        path, job = _job_file(self.output), json.dumps(self._job, indent=2) + "\n"
        if not path.exists() or path.read_text(encoding="utf-8") != job:
            write_text(path, job)

    def _take(self) -> None:
        """Holds this process's place; without effect where the file system has no locks."""
        if self._lock is None:
            try:
                self._lock = take(self._parts / f"{self._number:05d}.lock")
            except BlockingIOError as error:
                raise ConfigError(f"{self._name}: is being written by {error}; wait for it, or choose another "
                                  "file") from None
            except NoLocks:
                pass

    @property
    def speaks(self) -> bool:
        """Whether this process shows progress."""
        return self._number == 0

    def share(self) -> list[Key]:
        """What falls to this process, answered or not."""
        return self.keys[self._number :: self._count]

    def add(self, lines: list[dict[str, Any]]) -> None:
        """Appends answers, each with its ``index`` and ``sample``, and flushes them to the disk."""
        with open(self._own, "a", encoding="utf-8") as file:
            file.write("".join(_json(line) + "\n" for line in lines))
            file.flush()
            os.fsync(file.fileno())
        flush_names(self._parts)

    def join(self) -> int:
        """Writes the output if everything is answered; returns how much is not."""
        if self._joined():
            return 0
        found = self._found()
        missing = sum(key not in found for key in self.keys)
        if missing:
            return 0 if self._joined() else missing  # another process has just joined them
        self._tell()  # a process of another job may have begun before there was an answer
        write_text(self.output, "".join(_json(found[key]) + "\n" for key in self.keys))
        shutil.rmtree(self._parts, ignore_errors=True)
        return 0

    def _joined(self) -> bool:
        """Whether the output is there; then the parts are in the way, if a kill left some.

        Raises:
          ConfigError: it is another job's.
        """
        if not self.output.exists():
            return False
        self.check()
        shutil.rmtree(self._parts, ignore_errors=True)
        self.done = set(self.keys)
        return True

    def _found(self, names: str = "") -> dict[Key, dict[str, Any]]:
        """Every whole line of every part of this job, or of parts of these ``names``; of two of one key, which can only
        be equal, the first."""
        found: dict[Key, dict[str, Any]] = {}
        for path in sorted(self._parts.glob(names or self._ours)) if self._parts.is_dir() else ():
            try:
                text = path.read_bytes()
            except FileNotFoundError:  # joined and removed by another process
                continue
            for line in text[: text.rfind(b"\n") + 1].splitlines():
                try:
                    answer = json.loads(line)
                    found.setdefault((answer["index"], answer["sample"]), answer)
                except (ValueError, TypeError, KeyError):  # what a power cut left: it is answered again
                    continue
        return found


def _differences(names: list[str], there: Mapping[str, Any], here: Mapping[str, Any]) -> str:
    """Of two jobs. Two programs do not tell theirs alike, one before it has read the weights."""
    by, ours = _program(there), _program(here)
    if by != ours:
        return f"{by} began it, which {ours} cannot go on with"
    return ", ".join(_difference(name, there, here) for name in names[:3])


def _program(job: Mapping[str, Any]) -> str:
    return "LanguageModel.answer" if "weights" in job else "launch.sample"


def _difference(name: str, there: Mapping[str, Any], here: Mapping[str, Any]) -> str:
    """Of two jobs: in words where they hold digits alone, which tell nobody anything."""
    if name == "count":
        return f"{there.get(name)} prompts there and {here.get(name)} here"
    if name in _DIGITS and there.get(name) and here.get(name):
        return _DIGITS[name].format(count=here.get("count"))
    return f"{name} is {_shown(there.get(name))} there and {_shown(here.get(name))} here"


def _shown(value) -> str:
    return "not given" if value is None else repr(value)


def check_fields(where: str, found: Mapping[str, Any]) -> None:
    """ConfigError where an answer would write over a field of what it is written beside."""
    if taken := [name for name in FIELDS if name in found]:
        raise ConfigError(f"{where}: has the field {taken[0]!r}, which the answer beside it would write over (so would "
                          f"{', '.join(name for name in FIELDS if name != taken[0])}); name it otherwise")


def read_lines(output: Path) -> list[dict[str, Any]]:
    """The objects of a finished output. Their texts may hold other ends of lines than the one between them."""
    return [json.loads(line) for line in output.read_text(encoding="utf-8").split("\n") if line]


def told_of(prompts: Sequence[Prompt]) -> dict[str, Any]:
    """What a job says of its prompts, and of what their answers are written beside."""
    text = json.dumps([(one.prompt, one.fields) for one in prompts])
    return {"prompts": hashlib.sha256(text.encode()).hexdigest(), "count": len(prompts)}


def _json(line: dict[str, Any]) -> str:
    """With letters as they are, but for halves of UTF-16 pairs, which no file of UTF-8 holds."""
    text = json.dumps(line, ensure_ascii=False)
    return json.dumps(line) if any("\ud800" <= letter <= "\udfff" for letter in text) else text


def _job_file(output: Path) -> Path:
    return output.with_name(output.name + ".job.json")
