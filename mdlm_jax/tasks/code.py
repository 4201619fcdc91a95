"""Programs that must pass tests: HumanEval (arXiv 2107.03374) and MBPP (2108.07732)."""

import dataclasses
from collections.abc import Sequence

from mdlm_jax.tasks import sandbox
from mdlm_jax.tasks.base import Row, Task, Verdict


class _Programs(Task):
    """What tasks share whose answers are run."""

    def lacking(self) -> list[str]:
        return sandbox.lacking()


@dataclasses.dataclass(frozen=True)
class HumanEval(_Programs):
    """Rows with ``prompt``, ``test`` and ``entry_point``: the rest of a function, without examples.

    passed: the line behind the last test was reached, in a module that is not ``__main__``. timed_out: it was stopped.
    """

    name: str = "humaneval"
    fields: tuple[str, ...] = ("prompt", "test", "entry_point")
    stop: tuple[str, ...] = ("\nclass", "\ndef", "\n#", "\nif", "\nprint")
    new_tokens: int = 512
    main: str = "passed"
    limits: sandbox.Limits = sandbox.Limits()

    def prompt(self, row: Row, shots: Sequence[Row]) -> str:
        del shots  # the prompt is the beginning of a program
        return row["prompt"]

    def verdict(self, row: Row, answer: str) -> Verdict:
        return _ran(f"{row['prompt']}{answer}\n{row['test']}\ncheck({row['entry_point']})\n", self.limits)


@dataclasses.dataclass(frozen=True)
class Mbpp(_Programs):
    """Rows with ``text``, ``code`` and ``test_list``; three solved examples are usual."""

    name: str = "mbpp"
    fields: tuple[str, ...] = ("text", "code", "test_list")
    stop: tuple[str, ...] = ("[DONE]",)
    new_tokens: int = 512
    main: str = "passed"
    limits: sandbox.Limits = sandbox.Limits()

    def prompt(self, row: Row, shots: Sequence[Row]) -> str:
        return "".join(f"{self._task(shot)}{shot['code']}\n[DONE]\n\n" for shot in shots) + self._task(row)

    def _task(self, row: Row) -> str:
        tests = "\n".join(row["test_list"])
        return (f"You are an expert Python programmer, and here is your task: {row['text']} Your code should pass "
                f"these tests:\n\n{tests}\n[BEGIN]\n")

    def verdict(self, row: Row, answer: str) -> Verdict:
        tests = "\n".join([row.get("test_setup_code", ""), *row["test_list"]])
        return _ran(f"{answer}\n{tests}\n", self.limits)


def _ran(program: str, limits: sandbox.Limits) -> Verdict:
    found = sandbox.run(program, limits)
    return {"passed": float(found.finished), "timed_out": float(found.timed_out)}
