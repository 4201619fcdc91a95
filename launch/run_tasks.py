"""What launch.tasks does once its options are checked: answers, verdicts, the result."""

import json
from collections.abc import Callable

from mdlm_jax.tasks.base import Mean
from mdlm_jax.training.manifest import write_atomically
from mdlm_jax.training.progress import Progress

from . import run_answers
from ._answers import Answers
from .sample import SampleOptions
from .tasks import TaskOptions


def main(options: TaskOptions, job: Callable[[SampleOptions], Answers]) -> None:
    """Answers what is left, turn after turn; judges when all is there, and prints the figures, the one that counts
    last. ``job``: this process's part of a turn."""
    answering = options.answering
    for turn in range(options.task.turns):
        if turn:
            answering = options.following(turn, [_next(options, line) for line in _lines(answering)])
        answers = job(answering)
        run_answers.main(answering, answers)
        if not answering.output.exists():
            return
    if not answers.speaks:
        return
    verdicts = _judged(options, answering)
    figures = {name: Mean.of([one["verdict"][name] for one in verdicts]) for name in verdicts[0]["verdict"]}
    forwards = Mean.of([float(one["forwards"]) for one in verdicts]).value
    result = options.says | {"checkpoint": str(options.answering.folder), "forwards": forwards,
                             "figures": {name: [mean.value, mean.stderr] for name, mean in figures.items()}}
    write_atomically(options.folder / "result.json", json.dumps(result, indent=1) + "\n")
    print(f"written to {options.folder}: answers.jsonl, verdicts.jsonl, result.json; {forwards:.1f} forwards an answer")
    for name in sorted(figures, key=lambda name: name == options.task.main):
        print(f"{options.task.name}: {name} {figures[name]} ({figures[name].number} answers)", flush=True)


def _lines(answering: SampleOptions) -> list[dict]:
    return [json.loads(line) for line in answering.output.read_text(encoding="utf-8").splitlines()]


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
    text = "".join(json.dumps(one) + "\n" for one in found)
    write_atomically(options.folder / "verdicts.jsonl", text)
    return found
