"""What launch.tasks does once its options are checked: answers, verdicts, the result."""

import json

from mdlm_jax.tasks.base import Mean
from mdlm_jax.training.manifest import write_atomically
from mdlm_jax.training.progress import Progress

from . import run_answers
from ._answers import Answers
from .tasks import TaskOptions


def main(options: TaskOptions, answers: Answers) -> None:
    """Answers what is left; judges when all is there, and prints the figures, the one that counts last."""
    run_answers.main(options.answering, answers)
    if not options.answering.output.exists() or not answers.speaks:
        return
    verdicts = _judged(options)
    figures = {name: Mean.of([one["verdict"][name] for one in verdicts]) for name in verdicts[0]["verdict"]}
    forwards = Mean.of([float(one["forwards"]) for one in verdicts]).value
    result = options.says | {"checkpoint": str(options.answering.folder), "forwards": forwards,
                             "figures": {name: [mean.value, mean.stderr] for name, mean in figures.items()}}
    write_atomically(options.folder / "result.json", json.dumps(result, indent=1) + "\n")
    print(f"written to {options.folder}: answers.jsonl, verdicts.jsonl, result.json; {forwards:.1f} forwards an answer")
    for name in sorted(figures, key=lambda name: name == options.task.main):
        print(f"{options.task.name}: {name} {figures[name]} ({figures[name].number} answers)", flush=True)


def _judged(options: TaskOptions) -> list[dict]:
    """The answers with their verdicts, as verdicts.jsonl holds them."""
    lines = options.answering.output.read_text(encoding="utf-8").splitlines()
    found = []
    with Progress(len(lines), desc="verdicts", unit="answer") as progress:
        for line in lines:
            answer = json.loads(line)
            row = options.rows[answer["row"]]
            kept = {name: answer[name] for name in ("row", "sample", "text", "tokens", "forwards", "finish")}
            found.append(kept | {"verdict": options.task.verdict(row, answer["text"])})
            progress.update(len(found))
    text = "".join(json.dumps(one) + "\n" for one in found)
    write_atomically(options.folder / "verdicts.jsonl", text)
    return found
