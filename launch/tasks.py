"""Tasks with verdicts: ``python -m launch.tasks --checkpoint=DIR --task=gsm8k --data=test.jsonl --output=DIR``.

Prompts are made here and answered as launch.sample answers a file of them: each once, by any number of processes,
killed and resumed; whoever completes the answers judges them. Everything is checked before jax is imported;
launch/run_tasks.py does the work.
"""

import contextlib
import dataclasses
import hashlib
import json
import re
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from mdlm_jax.config import ConfigError
from mdlm_jax.config.choices import require_seed
from mdlm_jax.data.files import write_text
from mdlm_jax.tasks import registry
from mdlm_jax.tasks.base import Task, check_rows, read_rows

from . import _cli, _decoders, _distributed, _help, _sample_flags, sample

_OWN = (
    _cli.Flag("checkpoint", "DIR", "as for launch.sample. Required, but for --records and --make."),
    _cli.Flag("task", "NAME", f"what is asked (below): {', '.join(registry.TASKS)}. Required."),
    _cli.Flag("data", "FILE", "the rows, .jsonl or .jsonl.gz. Required, but for --make."),
    _cli.Flag("output", "DIR", "the folder for answers (with their prompts), verdicts and the result. Required with "
              "--checkpoint.", written=True),
    _cli.Flag("shots", "N", "solved examples before every prompt: the first N rows of --shots_from; none unless given",
              int),
    _cli.Flag("shots_from", "FILE", "where they come from, with the fields of --data"),
    _cli.Flag("limit", "N", "ask the first N rows alone", int),
    _cli.Flag("make", "FILE.jsonl", "ask nothing: write --items rows of a task that makes its own, by --seed",
              written=True),
    _cli.Flag("items", "N", "how many rows to make; 100 unless given", int),
    _cli.Flag("records", "FILE.jsonl", "ask nothing: write what the rows of --data teach, pairs for data.prompt_field="
              "prompt and data.text_field=completion", written=True),
)
_SAMPLE = tuple(flag for flag in _sample_flags.FLAGS if flag.name not in (
    "checkpoint", "output", "prompt", "prompts", "prompt_field", "length", "picture", "live", "label", "labels"))
FLAGS = (*_OWN, *_SAMPLE, *_decoders.flags())

_HELP = """\
Asks a model every row of a file and says how many answers are right.

usage: {program} --checkpoint=DIR --task=NAME --data=FILE --output=DIR [--shots=N --shots_from=FILE] [--limit=N]
       [flags of launch.sample: --decoder, --steps, --temperature, --guidance, --new_tokens, --mesh, ...]
       {program} --task=NAME --data=FILE --records=FILE.jsonl
       {program} --task=NAME --make=FILE.jsonl [--items=N] [--seed=N]

{flags}
The other flags are those of launch.sample, whose --help lists them; --stop and --new_tokens are the task's unless
given.

tasks
{tasks}

Programs that a model wrote run in processes of their own, with limits on time, memory, files and network; what
cannot be had of that here is said at the start; use a container as well against what wants to do harm. Standard errors
are over rows, the mean of whose samples counts once. The same command again goes on where it was stopped.

examples
  {program} --task=line_shuffle --make=shuffle.jsonl --items=100
  {program} --checkpoint=runs/first --task=humaneval --data=HumanEval.jsonl.gz --output=results/first --limit=20 \\
      --max_length=512
  {program} --checkpoint=LLaDA-8B-Base --task=gsm8k --data=test.jsonl --shots=4 --shots_from=train.jsonl \\
      --output=results/gsm8k --block_length=32 --mesh=fsdp:-1
"""


@dataclasses.dataclass(frozen=True)
class TaskOptions:
    """A checked command line.

    Attributes:
      rows: of the file, asked in order.
      folder: receives answers.jsonl, with the prompts, verdicts.jsonl and result.json.
      answering: the options of launch.sample for the first turn.
      says: what decides the verdicts beside the answers.
      flags: of the commands launch.sample that the turns are, but for their files.
    """

    task: Task
    rows: tuple[dict[str, Any], ...]
    folder: Path
    answering: sample.SampleOptions
    says: dict[str, Any]
    flags: dict[str, Any]

    def following(self, turn: int, prompts: list[dict]) -> sample.SampleOptions:
        """The options of a later turn, counted from 0; ``prompts``: lines of its file."""
        told = {"num": 1, "output": str(self.folder / _answers_of(self.task, turn))}  # samples go on by themselves
        return _answering(self.flags | told, prompts)


def read_options(flags: dict) -> TaskOptions:
    """Makes the folder, unless there is something to refuse, and writes nothing into it.

    Raises:
      ConfigError: no such task or file, a row without a field, prompts that do not fit, the folder of another command.
    """
    _cli.require(flags, "checkpoint", "runs/first", "the trained model")
    task = _task(flags)
    data = _cli.require(flags, "data", "test.jsonl", "the rows")
    rows = _rows("data", data, task)
    if flags.get("limit", 1) < 1:
        raise ConfigError(f"--limit={flags['limit']}: must be at least 1")
    rows = rows[: flags.get("limit")]
    shots = _shots(flags, task)
    folder = Path(_cli.require(flags, "output", "results", "the folder for the answers")).expanduser()
    if folder.exists() and not folder.is_dir() or not folder.absolute().parent.is_dir():
        raise ConfigError(f"--output={folder}: must be a folder, in one that exists")
    with _left_out(folder):
        return _checked(task, flags, folder, rows, shots, data)


@contextlib.contextmanager
def _left_out(folder: Path):
    """Makes the folder; one that is made for what is then refused is taken away again."""
    found = folder.exists()
    folder.mkdir(exist_ok=True)
    try:
        yield
    except ConfigError:
        if not found:
            with contextlib.suppress(OSError):  # another process is at work in it
                folder.rmdir()
        raise


def _checked(task: Task, flags: dict, folder: Path, rows: list[dict], shots: list[dict], data: str) -> TaskOptions:
    prompts = [{"prompt": task.prompt(row, shots), "row": number} for number, row in enumerate(rows)]
    own = {flag.name for flag in _OWN} - {"checkpoint"}
    passed = {name: value for name, value in flags.items() if name not in own}
    passed |= {"new_tokens": flags.get("new_tokens", task.new_tokens)}
    if task.stop:
        passed.setdefault("stop", json.dumps(list(task.stop)))
    says = {"task": task.name, "rows": len(rows), "shots": len(shots),
            "data": hashlib.sha256(Path(data).expanduser().read_bytes()).hexdigest()}
    first = _answering(passed | {"output": str(folder / _answers_of(task, 0))}, prompts, len(shots))
    if task.turns > 1:
        _check_room(task, passed, prompts, first)
    return TaskOptions(task, tuple(rows), folder, first, says, passed)


def _task(flags: dict) -> Task:
    name = _cli.require(flags, "task", "gsm8k", "what to ask")
    if name not in registry.TASKS:
        raise ConfigError(f"--task={name}: choose one of {', '.join(registry.TASKS)}")
    return registry.TASKS[name]


def _answers_of(task: Task, turn: int) -> str:
    return "answers.jsonl" if turn == task.turns - 1 else f"answers-{turn + 1}.jsonl"


def write_records(flags: dict) -> Callable[[], None]:
    """The work of --records. ConfigError: a task without them, a file that cannot be written."""
    task, output = _task(flags), _writable(flags, "records")
    rows = _rows("data", _cli.require(flags, "data", "train.jsonl", "the rows"), task)
    try:
        records = [record for row in rows for record in task.records(row)]
    except ConfigError as error:
        raise ConfigError(f"--records={output}: {error}; take gsm8k_twice, or one that makes its rows") from None
    return _writing("records", output, records, f"records of {len(rows):,} rows")


def _check_alone(flags: dict) -> None:
    """ConfigError for flags that --make and --records would not read."""
    for name, read in (("make", ("task", "items", "seed")), ("records", ("task", "data"))):
        if name in flags and (others := [other for other in flags if other not in (name, *read)]):
            raise ConfigError(f"--{others[0]}={flags[others[0]]}: is not read beside --{name}, which asks nothing; "
                              "leave it out")


def make_rows(flags: dict) -> Callable[[], None]:
    """The work of --make. ConfigError: a task that makes none, numbers out of range, a file that cannot be written."""
    task, output = _task(flags), _writable(flags, "make")
    items, seed = flags.get("items", 100), flags.get("seed", 0)
    if items < 1:
        raise ConfigError(f"--items={items}: must be at least 1")
    require_seed("--seed", seed)
    try:
        rows = task.make(np.random.default_rng(seed), items)
    except ConfigError as error:
        raise ConfigError(f"--make={output}: {error}; give --data, or choose a line_ task, latin_square or sudoku"
                          ) from None
    return _writing("make", output, rows, f"rows of {task.name}, seed {seed}")


def _writable(flags: dict, name: str) -> Path:
    path = Path(flags[name]).expanduser()
    if path.suffix != ".jsonl" or not path.absolute().parent.is_dir():
        raise ConfigError(f"--{name}={path}: must be a .jsonl file in a folder that exists")
    return path


def _writing(flag: str, path: Path, rows: list[dict], what: str) -> Callable[[], None]:
    """The work of writing rows. ConfigError where the file is there and holds others."""
    text = "".join(json.dumps(row) + "\n" for row in rows)
    if path.exists() and path.read_bytes() != text.encode():
        raise ConfigError(f"--{flag}={path}: is there and holds something else; choose another file, or move it away")

    def write() -> None:
        write_text(path, text)
        print(f"{len(rows):,} {what}: {path}")

    return write


def _answering(flags: dict, prompts: list[dict], shots: int = 0) -> sample.SampleOptions:
    """The command launch.sample --prompts; its file is of this moment, so that none of another command is lost.

    Prompts are the rows of --data after solved examples, and errors say so.
    """
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "prompts.jsonl"
        file.write_text("".join(json.dumps(prompt) + "\n" for prompt in prompts), encoding="utf-8")
        try:
            return sample.read_options(flags | {"prompts": str(file)})
        except ConfigError as error:
            after = f", with --shots={shots}" * bool(shots)
            said = re.sub(r"--prompts(?:, |: )prompt (\d+)(:?)",
                          lambda found: f"--data: row {found[1]}, counted from 0{after}{found[2] or ','}", str(error))
            said = re.sub("shorten it, (or )?", "take fewer --shots, or " if shots else "", said)
            raise ConfigError(said.replace(str(file), "of the task")) from None


def _check_room(task: Task, flags: dict, prompts: list[dict], first: sample.SampleOptions) -> None:
    """ConfigError where the last turn of the longest prompt would not fit behind full answers of the earlier ones.

    An answer counts as the tokens it was written in: text that takes more when it is read again, as bytes that are no
    letters do, is noticed in its own turn alone.
    """
    followed = [one["prompt"] for one in prompts]
    for _ in range(task.turns - 1):
        followed = [task.follow(one, "x") for one in followed]  # what stands around an answer, and not next to itself
    most = task.turns * first.new_tokens
    asked = flags | {"new_tokens": most, "output": str(first.output)}
    try:
        _answering(asked, [{"prompt": one} for one in followed])
    except ConfigError as error:
        raise ConfigError(f"--task={task.name}: asks {task.turns} times, with --new_tokens={first.new_tokens} "
                          f"up to {most} new tokens in all: {error}") from None


def _shots(flags: dict, task: Task) -> list[dict]:
    number = flags.get("shots", 0)
    if number < 0:
        raise ConfigError(f"--shots={number}: must not be negative")
    if bool(number) != ("shots_from" in flags):
        raise ConfigError("--shots, --shots_from: go together; give both, or none")
    if not number:
        return []
    found = _rows("shots_from", flags["shots_from"], task)
    if len(found) < number:
        raise ConfigError(f"--shots={number}: {flags['shots_from']} has {len(found)} rows; lower it")
    return found[:number]


def _rows(flag: str, text: str, task: Task) -> list[dict]:
    path, label = Path(text).expanduser(), f"--{flag}={text}"
    if not path.is_file():
        raise ConfigError(f"{label}: there is no such file; choose an existing one")
    rows = read_rows(path, label)
    if not rows:
        raise ConfigError(f"{label}: holds no rows; choose another")
    check_rows(task, rows, label)
    return rows


def _prepare(argv: list[str]) -> Callable[[], None] | None:
    arguments = _cli.parse(argv, FLAGS)
    if arguments.help:
        tasks = "\n".join(_help.row(f"--task={name}", about) for name, about in registry.HELP.items())
        print(_HELP.format(program=_help.program("tasks"), flags=_help.flag_lines(_OWN), tasks=tasks), end="")
        return None
    _check_alone(arguments.flags)
    if "items" in arguments.flags and "make" not in arguments.flags:
        raise ConfigError(f"--items={arguments.flags['items']}: goes with --make; leave it out")
    if "make" in arguments.flags:
        return make_rows(arguments.flags)
    if "records" in arguments.flags:
        return write_records(arguments.flags)
    options = read_options(arguments.flags)
    answers = sample.job(options.answering)
    answers.check()
    return lambda: _ask(options)


def _ask(options: TaskOptions) -> None:
    number, count = _distributed.place(options.answering.distributed)
    from . import run_tasks

    with _distributed.leaving_at_once():
        if number == 0 and (lacking := options.task.lacking()):
            print(f"warning: the programs that are judged are not confined in full here: {'; '.join(lacking)}. Use a "
                  "container against what wants to do harm", file=sys.stderr, flush=True)
        run_tasks.main(options, lambda answering: sample.job(answering, number, count))
        _distributed.part()


def main(argv: list[str] | None = None) -> int:
    """The console script ``mdlm-tasks``; returns the exit status."""
    return _cli.run(_prepare, argv)


if __name__ == "__main__":
    sys.exit(main())
