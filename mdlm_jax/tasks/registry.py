"""The tasks by name."""

from mdlm_jax.tasks.base import Task
from mdlm_jax.tasks.code import HumanEval, Mbpp
from mdlm_jax.tasks.match import Match
from mdlm_jax.tasks.numbers import Gsm8k, Gsm8kTwice

TASKS: dict[str, Task] = {task.name: task for task in (Gsm8k(), Gsm8kTwice(), HumanEval(), Mbpp(), Match())}
HELP = {
    "gsm8k": "word problems; question, answer ending in #### NUMBER. Solved examples from --shots. strict: "
             "the number after ####; flexible: the last number",
    "gsm8k_twice": "the same, asked for the thought and then for the number, of models trained on --records",
    "humaneval": "the rest of a function; prompt, test, entry_point. passed, timed_out, of what runs in a "
                 "sandbox",
    "mbpp": "a function that passes tests; text, code, test_list. passed, timed_out",
    "match": "answers that must hold a text; prompt, completion (reversal curse). match; bleu, of characters",
}
