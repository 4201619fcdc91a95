"""The tasks by name."""

from mdlm_jax.tasks.base import Task
from mdlm_jax.tasks.code import HumanEval, Mbpp
from mdlm_jax.tasks.match import Match
from mdlm_jax.tasks.numbers import Gsm8k, Gsm8kTwice
from mdlm_jax.tasks.squares import Square
from mdlm_jax.tasks.waiting_line import KINDS, WaitingLine

_LINES = ", ".join(kind.removeprefix("line_") for kind in KINDS)
_MADE = (*(WaitingLine(kind) for kind in KINDS), Square(), Square("sudoku", boxes=True, given=12))
TASKS: dict[str, Task] = {task.name: task for task in (Gsm8k(), Gsm8kTwice(), HumanEval(), Mbpp(), Match(), *_MADE)}
HELP = {
    "gsm8k": "word problems; question, answer ending in #### NUMBER. Solved examples from --shots. strict: "
             "the number after ####; flexible: the last number",
    "gsm8k_twice": "the same, asked for the thought and then for the number, of models trained on --records",
    "humaneval": "the rest of a function; prompt, test, entry_point. passed, timed_out, of what runs in a "
                 "sandbox",
    "mbpp": "a function that passes tests; text, code, test_list. passed, timed_out",
    "line_KIND": f"waiting lines (ParallelBench), rows from --make: {_LINES}. right; form, whether it is a list",
    "latin_square": "a Latin square of 4 x 4 symbols, rows from --make. right; form",
    "sudoku": "a Sudoku of 4 x 4 with 4 cells left, rows from --make. right; form",
    "match": "answers that must hold a text; prompt, completion (reversal curse). match; bleu, of characters",
}
