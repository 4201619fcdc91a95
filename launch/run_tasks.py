"""What launch.tasks does once its options are checked: answers, verdicts, the result."""

import json
import sys
import time
from collections.abc import Callable

from mdlm_jax.data.files import write_text
from mdlm_jax.generation.answer_file import Answers, read_lines
from mdlm_jax.progress import Progress
from mdlm_jax.tasks.base import Mean

from . import run_answers
from .sample import SampleOptions
from .tasks import TaskOptions

_PAUSE = 2.0  # seconds between two looks at what the other processes have answered
_REMINDER = 60.0  # seconds between two lines about it


def main(options: TaskOptions, job: Callable[[SampleOptions], Answers]) -> None:
    """Answers what is left, turn after turn, each when all of the one before is there. Whoever finds the last turn
    whole at its end judges, and prints the figures, the one that counts last. ``job``: this process's part of a turn.

    Processes that find it whole at one moment all judge, and write the same.
    """
    answering = options.answering
    for turn in range(options.task.turns):
        if turn:
            answering = options.following(turn, [_next(options, line) for line in _lines(answering)])
        answers = job(answering)
        run_answers.main(answering, answers)
        if turn < options.task.turns - 1:
            _wait(answers, turn)
    assert answering.output is not None
    if not answering.output.exists():
        print(f"{options.task.name}: whoever answers the last of {answering.output} judges them all", file=sys.stderr)
        return
    verdicts = _judged(options, answering)
    figures = {name: Mean.of_rows([(one["row"], one["verdict"][name]) for one in verdicts])
               for name in verdicts[0]["verdict"]}
    forwards = Mean.of([float(one["forwards"]) for one in verdicts]).value
    samples = options.answering.sample.num
    result = options.says | {"samples": samples, "checkpoint": str(options.answering.folder), "forwards": forwards,
                             "figures": {name: [mean.value, mean.stderr] for name, mean in figures.items()}}
    write_text(options.folder / "result.json", json.dumps(result, indent=1) + "\n")
    out = sys.stdout if answers.speaks else sys.stderr  # the standard output of the others may be shut
    print(f"written to {options.folder}: answers.jsonl, verdicts.jsonl, result.json; {forwards:.1f} forwards an answer",
          file=out)
    for name in sorted(figures, key=lambda name: name == options.task.main):
        of = f"{figures[name].number} rows of {samples} samples" if samples > 1 else f"{len(verdicts)} answers"
        print(f"{options.task.name}: {name} {figures[name]} ({of})", file=out, flush=True)


def _wait(answers: Answers, turn: int) -> None:
    """Until all answers of a turn are there; whoever sees it first joins them. Says what it waits for."""
    said = -_REMINDER
    while missing := answers.join():
        if time.monotonic() - said >= _REMINDER:
            said = time.monotonic()
            print(f"turn {turn + 2} waits for {missing} of {len(answers.keys)} answers of turn {turn + 1}, which other "
                  f"processes write ({answers.output}.parts); give one that has ended the same command again",
                  file=sys.stderr, flush=True)
        time.sleep(_PAUSE)


def _lines(answering: SampleOptions) -> list[dict]:
    """The objects of its output."""
    assert answering.output is not None
    return read_lines(answering.output)


def _next(options: TaskOptions, answer: dict) -> dict:
    """The line of the next turn's prompts. A row may come several times: each of its samples goes on by itself."""
    return {"prompt": options.task.follow(answer["prompt"], answer["text"]), "row": answer["row"]}


def _judged(options: TaskOptions, answering: SampleOptions) -> list[dict]:
    """The answers with their verdicts, as verdicts.jsonl holds them."""
    answers, found = _lines(answering), []
    with Progress(len(answers), desc="verdicts", unit="answer") as progress:
        for answer in answers:
            row = options.rows[answer["row"]]
            kept = {name: answer[name] for name in ("row", "sample", "text", "tokens", "forwards", "finish")}
            found.append(kept | {"verdict": options.task.verdict(row, answer["text"])})
            progress.update(len(found))
    write_text(options.folder / "verdicts.jsonl", "".join(json.dumps(one) + "\n" for one in found))
    return found
