"""Word problems whose answer is a number, as GSM8K (arXiv 2110.14168)."""

import dataclasses
import re
from collections.abc import Sequence
from fractions import Fraction

from mdlm_jax.tasks.base import Row, Verdict

_MARKED = re.compile(r"####\s*(-?[$0-9.,]+)")
_ANY = re.compile(r"-?[$0-9.,]{2,}|-?[0-9]+")


@dataclasses.dataclass(frozen=True)
class Gsm8k:
    """Rows with ``question`` and ``answer``, which ends in ``#### NUMBER``; prompts and stops of lm-evaluation-harness.

    strict: the number behind the last ``####`` is right; flexible: the last number anywhere is.
    """

    name: str = "gsm8k"
    fields: tuple[str, ...] = ("question", "answer")
    stop: tuple[str, ...] = ("Question:", "</s>", "<|im_end|>")
    new_tokens: int = 256
    main: str = "strict"

    def prompt(self, row: Row, shots: Sequence[Row]) -> str:
        solved = [f"Question: {shot['question']}\nAnswer: {shot['answer']}\n\n" for shot in shots]
        return "".join(solved) + f"Question: {row['question']}\nAnswer:"

    def verdict(self, row: Row, answer: str) -> Verdict:
        right = number(_MARKED.findall(row["answer"])[-1])
        marked, anywhere = _MARKED.findall(answer), _ANY.findall(answer)
        return {"strict": float(bool(marked) and number(marked[-1]) == right),
                "flexible": float(bool(anywhere) and number(anywhere[-1]) == right)}


def number(text: str) -> Fraction | None:
    """What is written, thousands separated or not, dollars or not; None where it is no number."""
    plain = text.replace(",", "").replace("$", "").rstrip(".")
    try:
        return Fraction(plain)
    except (ValueError, ZeroDivisionError):
        return None
