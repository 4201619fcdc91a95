"""Answers that must hold a text: the protocol of the reversal curse (arXiv 2309.12288; SMDM, 2410.18514)."""

import dataclasses
import math
from collections import Counter
from collections.abc import Sequence

from mdlm_jax.tasks.base import Row, Task, Verdict


@dataclasses.dataclass(frozen=True)
class Match(Task):
    """Rows with ``prompt`` and ``completion``.

    match: the completion stands somewhere in the answer, capitals apart. bleu: of characters, up to four in a row.
    """

    name: str = "match"
    fields: tuple[str, ...] = ("prompt", "completion")
    stop: tuple[str, ...] = ()
    new_tokens: int = 32
    main: str = "match"

    def prompt(self, row: Row, shots: Sequence[Row]) -> str:
        return "".join(f"{shot['prompt']}{shot['completion']}\n" for shot in shots) + row["prompt"]

    def verdict(self, row: Row, answer: str) -> Verdict:
        wanted = row["completion"].strip()
        return {"match": float(wanted.lower() in answer.lower()), "bleu": bleu(wanted, answer.strip())}


def bleu(reference: str, text: str, most: int = 4) -> float:
    """BLEU (Papineni et al., 2002) of characters: the geometric mean of the clipped precisions of 1 to ``most`` in a
    row, times the penalty of brevity. 0 where one of the precisions is.

    SMDM calls nltk's ``sentence_bleu`` on strings, which amounts to this.
    """
    logs = 0.0
    for n in range(1, most + 1):
        have, want = _grams(text, n), _grams(reference, n)
        found = sum(min(count, want[gram]) for gram, count in have.items())
        if not found:
            return 0.0
        logs += math.log(found / max(sum(have.values()), 1)) / most
    return math.exp(logs + min(0.0, 1 - len(reference) / len(text)))


def _grams(text: str, n: int) -> Counter:
    return Counter(text[i : i + n] for i in range(len(text) - n + 1))
