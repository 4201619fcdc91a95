"""Word problems whose answer is a number, as GSM8K (arXiv 2110.14168)."""

import dataclasses
import re
from collections.abc import Sequence
from fractions import Fraction

from mdlm_jax.errors import ConfigError
from mdlm_jax.tasks.base import Row, Task, Verdict

_MARKED = re.compile(r"####\s*(-?[$0-9.,]+)")
_ANY = re.compile(r"-?[$0-9.,]{2,}|-?[0-9]+")


@dataclasses.dataclass(frozen=True)
class Gsm8k(Task):
    """Rows with ``question`` and ``answer``, which ends in ``#### NUMBER``; prompts and stops of lm-evaluation-harness.

    strict: the number behind the last ``####`` is right; flexible: the last number anywhere is.
    """

    name: str = "gsm8k"
    fields: tuple[str, ...] = ("question", "answer")
    stop: tuple[str, ...] = ("Question:", "</s>", "<|im_end|>")
    new_tokens: int = 256
    main: str = "strict"

    def mistake(self, row: Row) -> str:
        found = _MARKED.findall(row["answer"]) if isinstance(row["answer"], str) else []
        return "" if found and number(found[-1]) is not None else "answer ends in no '#### NUMBER'"

    def prompt(self, row: Row, shots: Sequence[Row]) -> str:
        solved = [f"Question: {shot['question']}\nAnswer: {shot['answer']}\n\n" for shot in shots]
        return "".join(solved) + f"Question: {row['question']}\nAnswer:"

    def verdict(self, row: Row, answer: str) -> Verdict:
        right = number(_MARKED.findall(row["answer"])[-1])
        marked, anywhere = _MARKED.findall(answer), _ANY.findall(answer)
        return {"strict": float(bool(marked) and number(marked[-1]) == right),
                "flexible": float(bool(anywhere) and number(anywhere[-1]) == right)}


@dataclasses.dataclass(frozen=True)
class Gsm8kTwice(Gsm8k):
    """The same, asked twice: for the thought, then for the number behind it; each is a record of its own in training
    (implicit chain of thought as SMDM trains it, arXiv 2410.18514)."""

    name: str = "gsm8k_twice"
    stop: tuple[str, ...] = ()
    turns: int = 2

    def prompt(self, row: Row, shots: Sequence[Row]) -> str:
        if shots:
            raise ConfigError("gsm8k_twice: is for models trained on its records, which saw no solved examples; leave "
                              "--shots out")
        return f"Question: {row['question'].strip()}\n"

    def follow(self, prompt: str, answer: str) -> str:
        return f"{prompt}{answer.strip()}\n"

    def records(self, row: Row) -> list[dict[str, str]]:
        thought, _, last = row["answer"].rpartition("####")
        question, thought = self.prompt(row, ()), f"Answer: {thought.strip()}"
        return [{"prompt": question, "completion": thought},
                {"prompt": self.follow(question, thought), "completion": f"#### {last.strip()}"}]


def number(text: str) -> Fraction | None:
    """What is written, thousands separated or not, dollars or not; None where it is no number."""
    plain = text.replace(",", "").replace("$", "").rstrip(".")
    try:
        return Fraction(plain)
    except (ValueError, ZeroDivisionError):
        return None
